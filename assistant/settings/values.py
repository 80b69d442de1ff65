"""Values that settings take, checked: intervals, addresses, arguments of a chat template."""

from __future__ import annotations

import json
import re
from typing import Any

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

RESERVED = {
    "add_generation_prompt", "chat_template", "content", "continue_final_message", "conversation", "documents",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors",
    "strftime_now", "tokenize", "tokenizer_kwargs", "tools", "truncation",
}  # fmt: skip
"""What is ours, vLLM's or transformers' to say."""


def seconds_of(text: str) -> float:
    """`90m`, `24h` or `7d` in seconds; raises ValueError for anything else, and for less than a minute."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds < 60:
        raise ValueError(f"{text!r} is no interval: write a number and s, m, h or d, of a minute or more, such as 24h")
    return seconds


def interval(text: str) -> str:
    """An interval as it is written, or nothing."""
    if text:
        seconds_of(text)
    return text


def urls_of(text: str) -> list[str]:
    """The addresses in a comma-separated list; raises ValueError for one that is none, or is there twice."""
    found = [url.strip() for url in text.split(",") if url.strip()]
    for url in found:
        if not re.match(r"https?://[^/]|unix:/", url):
            raise ValueError(f"{url!r} is no address of a vLLM server: write http://host:port or unix:/socket")
    if len(set(found)) < len(found):
        raise ValueError("a vLLM server is named twice: name each once")
    return found


def urls(text: str) -> str:
    """Addresses as they are kept: with commas between them."""
    return ",".join(urls_of(text))


def arguments_of(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a template; raises ValueError for what is not the operator's to give, or cannot be sent."""
    if taken := sorted(RESERVED & given.keys()):
        raise ValueError(f"{', '.join(taken)} cannot be given to a chat template: leave it out")
    try:
        json.dumps(given, allow_nan=False)
    except ValueError:
        raise ValueError("nan and inf cannot be sent to it: give other numbers") from None
    return given
