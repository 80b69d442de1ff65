"""`thumbwise feedback`: what people said.

The running assistant does the work. If none runs, this takes the home's lock and does it itself.
"""

from __future__ import annotations

import json
from typing import Any

import click

from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.accounts.users import Users
from thumbwise.cli.client import call, database
from thumbwise.home import Home, running_url
from thumbwise.serving.forgetting import Forgetting
from thumbwise.versions.record import Versions


@click.group()
def feedback() -> None:
    """Forget what somebody said."""


@feedback.command()
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def forget(user: str, yes: bool, as_json: bool) -> None:
    """Delete all that USER said, for good.

    USER is the name or the id of an account; without accounts it is local, or the name of an API key.

    Chats, votes, corrections and comments are removed from the database, from kept snapshots and from the folders of
    training runs. A run that used them cannot be resumed. The account stays. Versions that learned from them are
    listed, and the next round begins at the base. Backups are not reached.
    """
    if not yes:
        click.confirm(f"Delete all that {user} said, for good?", abort=True)
    home = Home.find()
    url = running_url(home)
    if url is not None:
        done: dict[str, Any] = call(home, url, "POST", "/ops/api/forget", json={"user": user})
    else:
        with database(home) as store:
            forgetting = Forgetting(home, store, Versions(store))
            done = forgetting.forget_named(user, Users(store), COMMAND_LINE).as_json()
    if as_json:
        click.echo(json.dumps(done))
        return
    click.echo(f"Replies, comparisons and votes removed: {done['items']}. Snapshots redacted: {done['snapshots']}.")
    if learned := done["learned"]:
        click.echo(f"Versions that learned from it: {', '.join(learned)}.")
        click.echo("If the stable version is one of them, the next round begins at the base.")
    else:
        click.echo("No version learned from it.")
    if not done["finished"]:
        click.echo("A training job or a long read still holds some of it. The running assistant removes it afterwards.")
