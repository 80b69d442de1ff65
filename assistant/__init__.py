"""Thumbwise: a self-hosted chat assistant that learns from the people who use it.

A plugin needs one name from here: `from thumbwise import hookimpl`. Importing this package stays cheap
(no torch, no gradio), because vLLM's worker processes import it for `thumbwise.cpu_adapters`.
"""

from importlib.metadata import PackageNotFoundError, version

import pluggy

hookimpl = pluggy.HookimplMarker("thumbwise")

try:
    __version__ = version("thumbwise")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__", "hookimpl"]
