"""`thumbwise keys`: the API keys of programs.

The running assistant does the work. If none runs, this takes the home's lock and writes the database itself.
"""

from __future__ import annotations

import json
from typing import Any

import click

from thumbwise.accounts.keys import SCOPES, Keys
from thumbwise.cli.client import call, database
from thumbwise.home import Home, running_url
from thumbwise.printed import minute, print_table


@click.group()
def keys() -> None:
    """Make, list and revoke API keys.

    Keys protect only the API. Whoever can reach the port can open the pages without a key.
    """


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What the key may do; repeat the option for both. [default: all]",
)
def create(name: str, scope: tuple[str, ...]) -> None:
    """Make a key and print it. It is printed only once, because only its hash is stored."""
    home, scopes = Home.find(), list(scope or SCOPES)
    url = running_url(home)
    if url is not None:
        click.echo(call(home, url, "POST", "/ops/api/keys", json={"name": name, "scopes": scopes})["key"])
        return
    with database(home) as store:
        click.echo(Keys(store).create(name, scopes))


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(as_json: bool) -> None:
    """List every key, without its text."""
    home = Home.find()
    url = running_url(home)
    if url is not None:
        rows: list[dict[str, Any]] = call(home, url, "GET", "/ops/api/keys")
    else:
        with database(home) as store:
            rows = [key.as_json() for key in Keys(store).all()]
    if as_json:
        click.echo(json.dumps(rows))
        return
    cells = (
        (row["name"], ", ".join(row["scopes"]), minute(row["created_at"]), minute(row["revoked_at"])) for row in rows
    )
    print_table(("name", "scopes", "created (UTC)", "revoked (UTC)"), ((row, "") for row in cells))


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Refuse a key from the next request on. Its name cannot be used again."""
    home = Home.find()
    url = running_url(home)
    if url is not None:
        call(home, url, "DELETE", f"/ops/api/keys/{name}")
    else:
        with database(home) as store:
            Keys(store).revoke(name)
    click.echo(f"The key {name} is revoked.")
