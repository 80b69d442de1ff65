"""Download a chat model's files from Hugging Face, but nothing that could run as code.

Run by `thumbwise.base_model.prepare` as a process of its own (`python -m thumbwise.base_model.download NAME OUT`), for
the hub's client waits for its threads: in the assistant, Ctrl-C would wait for the last file. Why it failed is one line
on stdout; the client's progress bars go to stderr.
"""

from __future__ import annotations

import sys

import huggingface_hub

from thumbwise.base_model.prepare import WANTED


def main(name: str, out: str) -> int:
    """Download `name` into the folder `out`; returns the exit status."""
    try:
        huggingface_hub.snapshot_download(
            name,
            local_dir=out,
            allow_patterns=WANTED,
            ignore_patterns=["*/*", "consolidated*"],  # other formats of the same weights
        )
    except Exception as error:  # the client raises its own, the HTTP library's and OSError alike
        print((str(error).strip().splitlines() or [type(error).__name__])[0])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
