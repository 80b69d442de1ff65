"""Values that settings take, checked: intervals, addresses, arguments of a chat template."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any
from urllib.parse import urlsplit

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

RESERVED = {
    "add_generation_prompt", "chat_template", "content", "continue_final_message", "conversation", "documents",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors",
    "strftime_now", "tokenize", "tokenizer_kwargs", "tools", "truncation",
}  # fmt: skip
"""Arguments that we, vLLM or transformers set; operators may not."""


OWN_PATHS = {
    "compare", "config", "consent", "gradio_api", "health", "join", "login", "logout", "me", "metrics", "oidc", "ops",
    "pages", "password", "pending", "rate", "reset", "setup", "v1",
}  # fmt: skip
"""First parts of our own paths. A proxy may take the prefix of `public_url` away or not, so it is none of these."""


def seconds_of(text: str) -> float:
    """Seconds of an interval such as `90m`, `24h` or `7d`; raises ValueError for other texts, or below a minute."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds < 60:
        raise ValueError(
            f"{text!r} is not an interval: write a number and s, m, h or d, such as 24h, of at least a minute"
        )
    return seconds


def interval(text: str) -> str:
    """Check an interval and return it unchanged; empty is allowed."""
    if text:
        seconds_of(text)
    return text


def urls_of(text: str) -> list[str]:
    """The addresses in a comma-separated list; raises ValueError for a wrong address or one named twice."""
    found = [url.strip() for url in text.split(",") if url.strip()]
    for url in found:
        if not re.match(r"https?://[^/]|unix:/", url):
            raise ValueError(f"{url!r} is not an address of a vLLM server: write http://host:port or unix:/socket")
    if len(set(found)) < len(found):
        raise ValueError("a vLLM server is named twice: name each once")
    return found


def urls(text: str) -> str:
    """Check addresses and return them separated by commas."""
    return ",".join(urls_of(text))


def arguments_of(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a template; raises ValueError for a reserved one, or one that JSON cannot carry."""
    if taken := sorted(RESERVED & given.keys()):
        raise ValueError(f"{', '.join(taken)} cannot be given to a chat template: leave it out")
    try:
        json.dumps(given, allow_nan=False)
    except ValueError:
        raise ValueError("nan and inf cannot be sent to a chat template: use other numbers") from None
    return given


def public_url(text: str) -> str:
    """Check the address under which people reach the assistant; returns it without a slash at its end."""
    if not text:
        return text
    try:
        parts = urlsplit(text)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_right = urlsplit(""), False
    if (
        parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right
        or parts.query or parts.fragment or parts.username is not None or not text.isascii()
        or not re.fullmatch(r"(/[\w~-][\w.~-]*)*/?", parts.path)
    ):  # fmt: skip
        raise ValueError(f"{text!r} is not an address of a web page: write https://chat.example.org or …/prefix")
    if (first := parts.path.strip("/").partition("/")[0]) in OWN_PATHS:
        raise ValueError(f"{text!r} cannot be told from our own page /{first}: take another path")
    return text.rstrip("/")


def peers_of(text: str) -> str:
    """Check addresses of proxies and return them separated by commas."""
    found = [peer.strip() for peer in text.split(",") if peer.strip()]
    for peer in found:
        if peer != "unix":
            try:
                ipaddress.ip_network(peer)
            except ValueError:
                raise ValueError(
                    f"{peer!r} is no address, network or `unix`: write 127.0.0.1, 10.0.0.0/24 or unix"
                ) from None
    return ",".join(found)


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, no port) is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def issuer_url(text: str) -> str:
    """Check the URL of an OpenID Connect provider: https, because http lets others read and change logins."""
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if text and (not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment):
        raise ValueError(f"{text!r} is not a provider's address: write https://login.example.org")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError(f"{text!r} is not protected on its way: use https, or a provider on this machine")
    return text


def attempts(text: str) -> str:
    """Check limits of attempts; returns them unchanged."""
    from limits import parse_many  # here, because most commands need no limits

    try:
        found = parse_many(text)
    except ValueError:
        found = []
    if not found or min(item.amount for item in found) < 1:
        raise ValueError(f"{text!r} is not a limit: write 10/minute, or 10/minute;50/hour")
    return text
