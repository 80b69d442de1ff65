"""Makes the proxies that the environment names usable for httpx.

Gradio makes an httpx client when it is imported, and httpx reads the environment then. Our own requests stay on this
machine and use no proxy. Proxies are for downloads.
"""

from __future__ import annotations

import os

from thumbwise.errors import ThumbwiseError

_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def settle_proxies() -> None:
    """Rewrite `[::1]` in NO_PROXY to `::1`, which httpx can read; raises ThumbwiseError if httpx cannot use them."""
    for name in ("NO_PROXY", "no_proxy"):
        if "[" in os.environ.get(name, ""):
            os.environ[name] = ",".join(_address(host.strip()) for host in os.environ[name].split(","))
    import httpx

    try:
        httpx.Client(verify=False).close()
    except Exception as error:  # httpx raises several kinds: ValueError, ImportError, InvalidURL
        there = ", ".join(name for name in os.environ if name.upper() in _NAMES)
        raise ThumbwiseError(
            f"The proxies in the environment cannot be used ({error}): correct or unset {there or 'the proxy'}."
        ) from None


def _address(host: str) -> str:
    """`::1` for `[::1]` and `[::1]:80`."""
    return host[1:].partition("]")[0] if host.startswith("[") else host
