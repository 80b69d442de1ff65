"""The command line in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from thumbwise.cli.main import main


def run(*arguments: str) -> Result:
    """What `thumbwise` says with these arguments, and its exit status."""
    return CliRunner().invoke(main, list(arguments))
