"""`thumbwise users`: accounts, for the operator at the terminal.

The running assistant does the work. If none runs, this takes the home's lock and writes the database itself. A password
comes from a prompt or from stdin, never from the arguments, which other users of the machine can read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import quote

import click

from thumbwise.accounts.keys import Keys
from thumbwise.accounts.links import Kind, Links
from thumbwise.accounts.passwords import Passwords, checked
from thumbwise.accounts.people import People
from thumbwise.accounts.principal import COMMAND_LINE, ROLES, Role
from thumbwise.accounts.sessions import Sessions
from thumbwise.accounts.users import Users
from thumbwise.cli.client import call, database
from thumbwise.home import Home, running_url
from thumbwise.printed import minute, print_table
from thumbwise.serving.forgetting import Forgetting
from thumbwise.settings import Settings
from thumbwise.versions.record import Versions

_ROLE = click.Choice(ROLES)


@click.group()
def users() -> None:
    """Make, invite, list and delete accounts, and change what they may do.

    Accounts count where the setting `auth` is not `local`.
    """


@users.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(as_json: bool) -> None:
    """List every account."""
    home = Home.find()
    if url := running_url(home):
        rows: list[dict[str, Any]] = call(home, url, "GET", "/ops/api/users")
    else:
        with _people(home) as people:
            rows = people.listing()
    if as_json:
        click.echo(json.dumps(rows))
        return
    cells = (
        (row["name"], row["role"], row["state"], "yes" if row["has_password"] else "no", minute(row["created_at"]),
         minute(row["seen_at"]), row["id"])
        for row in rows
    )  # fmt: skip
    columns = ("name", "role", "state", "password", "created (UTC)", "last seen (UTC)", "id")
    print_table(columns, ((row, "") for row in cells))


@users.command()
@click.argument("name")
@click.option("--role", type=_ROLE, default="user", show_default=True, help="What the account may do.")
@click.option("--password-stdin", is_flag=True, help="Read the password from the first line of stdin.")
def create(name: str, role: str, password_stdin: bool) -> None:
    """Make an account.

    Asks for a password. If you give none, or there is no terminal, prints a link by which the person sets one.
    """
    home, password = Home.find(), _password(password_stdin)
    if url := running_url(home):
        body = {"name": name, "role": role, "password": password}
        made = call(home, url, "POST", "/ops/api/users", json=body)
        name, link = made["name"], made["link"]
    else:
        with _people(home) as people:
            hashed = Passwords().hashed(password) if password is not None else None
            account, text = people.create(name, cast(Role, role), COMMAND_LINE, hashed)
            name, link = account.name, text and _address(people, "reset", text)
    click.echo(f"The account {name} is made, with the role {role}.")
    _warn_in_local(home)
    if link:
        click.echo(f"It has no password yet. This link sets one, once, within a day:\n{link}")


@users.command()
@click.option("--role", type=_ROLE, default="user", show_default=True, help="What the account may do.")
def invite(role: str) -> None:
    """Print a link by which one person makes an account. It works once, within a week."""
    home = Home.find()
    if url := running_url(home):
        click.echo(call(home, url, "POST", "/ops/api/users/invitations", json={"role": role})["link"])
    else:
        with _people(home) as people:
            click.echo(_address(people, "invite", people.invite(cast(Role, role), COMMAND_LINE)))
    _warn_in_local(home)


@users.command()
@click.argument("name")
def reset(name: str) -> None:
    """Print a link by which a person sets a new password. It works once, within a day.

    All logins of the account end when the link is used.
    """
    home = Home.find()
    if url := running_url(home):
        click.echo(call(home, url, "POST", _path(name, "reset"))["link"])
    else:
        with _people(home) as people:
            click.echo(_address(people, "reset", people.reset(name, COMMAND_LINE)))
    _warn_in_local(home)


@users.command()
@click.argument("name")
def approve(name: str) -> None:
    """Let a person in who signed up and waits."""
    _change(name, "approve")
    click.echo(f"The account {name} is active.")


@users.command()
@click.argument("name")
def enable(name: str) -> None:
    """Let a disabled account in again."""
    _change(name, "enable")
    click.echo(f"The account {name} is active.")


@users.command()
@click.argument("name")
def disable(name: str) -> None:
    """Let an account no longer in. All its logins end now, and its keys are refused."""
    _change(name, "disable")
    click.echo(f"The account {name} is disabled.")


@users.command()
@click.argument("name")
@click.argument("role", type=_ROLE)
def role(name: str, role: str) -> None:
    """Change what an account may do."""
    home = Home.find()
    if url := running_url(home):
        call(home, url, "POST", _path(name, "role"), json={"role": role})
    else:
        with _people(home) as people:
            people.set_role(name, cast(Role, role), COMMAND_LINE)
    click.echo(f"The account {name} has the role {role}.")


@users.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(name: str, yes: bool) -> None:
    """Delete an account, with its logins, keys and everything that it said. This cannot be undone."""
    if not yes:
        click.confirm(f"Delete {name} and everything that it said?", abort=True)
    home = Home.find()
    if url := running_url(home):
        call(home, url, "DELETE", _path(name))
    else:
        with _people(home) as people:
            people.delete(name, COMMAND_LINE)
    click.echo(f"The account {name} is deleted.")


@users.command()
@click.argument("name")
def adopt(name: str) -> None:
    """Give an account all chats, votes and API keys from the time when there were no accounts."""
    home = Home.find()
    if url := running_url(home):
        moved: dict[str, int] = call(home, url, "POST", _path(name, "adopt"))
    else:
        with _people(home) as people:
            moved = people.adopt(name, COMMAND_LINE)
    said = ", ".join(f"{count} {what}" for what, count in moved.items())
    click.echo(f"{name} now owns what `local` said: {said}.")


@contextmanager
def _people(home: Home) -> Iterator[People]:
    """The accounts in the database of a home without a running assistant."""
    settings = Settings.load(home)
    with database(home) as store:
        accounts = Users(store)
        Sessions(store, accounts, settings.accounts.session_days)
        forget = Forgetting(home, store, Versions(store)).forget_person
        yield People(settings, accounts, Links(store), Keys(store), forget)


def _warn_in_local(home: Home) -> None:
    """Say on stderr, because stdout may be read by a program, that accounts do not count yet."""
    if Settings.load(home).auth == "local":
        click.echo("Accounts and links count once the setting `auth` is `accounts`.", err=True)


def _change(name: str, what: str) -> None:
    home = Home.find()
    if url := running_url(home):
        call(home, url, "POST", _path(name, what))
        return
    with _people(home) as people:
        (people.disable if what == "disable" else people.activate)(name, COMMAND_LINE)


def _path(name: str, *what: str) -> str:
    return "/".join(("/ops/api/users", quote(name, safe=""), *what))


def _address(people: People, kind: Kind, text: str) -> str:
    settings = people.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return people.address(f"http://{host}:{settings.port}", kind, text)


def _password(from_stdin: bool) -> str | None:
    """The password that somebody gives, or None for none."""
    if from_stdin:
        return checked(sys.stdin.readline().rstrip("\r\n"))
    if not sys.stdin.isatty():
        return None
    given: str = click.prompt(
        "Password (empty: print a link by which the person sets one)", default="", show_default=False,
        hide_input=True, confirmation_prompt="The same again",
    )  # fmt: skip
    return checked(given) if given else None
