"""`thumbwise keys`: the API keys of programs.

The running assistant does the work. If none runs, this takes the home's lock and writes the database itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from thumbwise.accounts.keys import SCOPES, Keys, owner_needed
from thumbwise.accounts.users import Users
from thumbwise.cli.client import call, database
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home, running_url
from thumbwise.printed import minute, print_table
from thumbwise.settings.values import seconds_of

if TYPE_CHECKING:
    from thumbwise.feedback.store import Store

COLUMNS = ("name", "user", "begins", "scopes", "created (UTC)", "expires", "last used", "revoked")
USER = click.option("--user", metavar="USER", help="The account that owns the key. Leave it out in `auth = local`.")


@click.group()
def keys() -> None:
    """Make, list and revoke API keys.

    A key opens the API only, never a page. Without accounts (`auth = local`), whoever can reach the port can open the
    pages without a key.
    """


@keys.command()
@click.argument("name")
@USER
@click.option(
    "--scope",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What the key may do; repeat the option for several. `operate` (operations and metrics) is for an operator's "
    "keys. [default: chat and feedback]",
)
@click.option("--expires", metavar="TIME", help="When the key ends, such as 12h or 90d. [default: never]")
def create(name: str, user: str | None, scope: tuple[str, ...], expires: str | None) -> None:
    """Make a key and print it. It is printed only once, because only its hash is stored."""
    home, scopes = Home.find(), list(scope or SCOPES[:2])
    try:
        seconds = seconds_of(expires) if expires else None
    except ValueError as error:
        raise ThumbwiseError(f"{error}.") from None
    url = running_url(home)
    if url is not None:
        body = {"name": name, "scopes": scopes, "user": user, "expires": seconds}
        click.echo(call(home, url, "POST", "/ops/api/keys", json=body)["key"])
        return
    if user is None and _has_accounts(home):
        raise owner_needed()
    with database(home) as store:
        click.echo(Keys(store).create(name, scopes, owner=_owner(store, user), expires=seconds))


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
            rows = Keys(store).as_json(Users(store))
    if as_json:
        click.echo(json.dumps(rows))
        return
    times = ("created_at", "expires_at", "used_at", "revoked_at")
    cells = (
        (row["name"], row["user"] or "", row["prefix"] and f"{row['prefix']}…", ", ".join(row["scopes"]),
         *(minute(row[time]) for time in times))
        for row in rows
    )  # fmt: skip
    print_table(COLUMNS, ((row, "") for row in cells))


@keys.command()
@click.argument("name")
@USER
def revoke(name: str, user: str | None) -> None:
    """Refuse a key, by its name or id, from the next request on.

    In `auth = local` its name cannot be used again.
    """
    home = Home.find()
    url = running_url(home)
    if url is not None:
        call(home, url, "DELETE", f"/ops/api/keys/{name}", params={"user": user} if user else None)
    else:
        with database(home) as store:
            Keys(store).revoke(name, _owner(store, user))
    click.echo(f"The key {name} is revoked.")


def _owner(store: Store, user: str | None) -> str | None:
    return Users(store).get(user).id if user else None


def _has_accounts(home: Home) -> bool:
    from thumbwise.settings import Settings  # here, because it takes a second

    return Settings.load(home).auth != "local"
