"""The `thumbwise` command: a table of subcommands. Each is imported only when it is called.

So `thumbwise --help` answers at once, without torch or Gradio. A ThumbwiseError of a subcommand, or a full disk,
becomes one sentence on stderr and exit status 1. Any other error is a bug and keeps its traceback.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from thumbwise import __version__
from thumbwise.errors import ThumbwiseError
from thumbwise.faults import disk_is_full

COMMANDS = {
    "serve": ("thumbwise.cli.serve", "Start the assistant: the chat page, the API and the engine behind them."),
    "train": ("thumbwise.cli.train", "Train on the votes so far, and swap the result in if it passes its gates."),
    "rehearse": ("thumbwise.cli.rehearse", "Run the whole loop on simulated people: a dry run, and the benchmark."),
    "policies": ("thumbwise.cli.policies", "List, promote and roll back policy versions."),
    "feedback": ("thumbwise.cli.feedback", "Forget what somebody said."),
    "users": ("thumbwise.cli.users", "Make, invite, list and delete accounts, and change what they may do."),
    "audit": ("thumbwise.cli.audit", "Print the audit log: logins, and changes of accounts, keys and versions."),
    "keys": ("thumbwise.cli.keys", "Make, list and revoke API keys."),
    "backup": ("thumbwise.cli.backup", "Copy the database, also while the assistant runs."),
    "plugins": ("thumbwise.cli.plugins", "List, enable, disable and check plugins."),
    "doctor": ("thumbwise.cli.doctor", "Check this installation, or list every setting."),
}
"""Name -> (module, first sentence of its help). The module's attribute has the name of the command."""


class LazyGroup(click.Group):
    """A click group over COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the subcommands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one subcommand."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand. A ThumbwiseError becomes one sentence."""
        try:
            return super().invoke(ctx)
        except ThumbwiseError as error:
            from thumbwise.printed import visible  # here, so that `--help` does not import Rich

            raise click.ClickException(visible(str(error))) from error
        except OSError as error:
            if not disk_is_full(error):
                raise
            raise click.ClickException("The disk is full: make room, then try again.") from error


@click.group(cls=LazyGroup)
@click.version_option(__version__, message="thumbwise %(version)s")
def main() -> None:
    """A self-hosted chat assistant that learns from the people who use it.

    Everything is kept in one home folder: THUMBWISE_HOME, or the user's data folder.
    """
