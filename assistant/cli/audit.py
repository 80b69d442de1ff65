"""`thumbwise audit`: who did what, when and from where."""

from __future__ import annotations

import json
from typing import Any

import click

from thumbwise.accounts.audit import Audit
from thumbwise.accounts.users import Users
from thumbwise.cli.client import call, database
from thumbwise.home import Home, running_url
from thumbwise.printed import minute, print_table


@click.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many entries.")
@click.option("--actor", default="", help="Only what this account did, by name or id, or `command line`, or `job`.")
@click.option("--action", default="", help="Only actions that begin so, such as `login` or `user.role`.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def audit(limit: int, actor: str, action: str, as_json: bool) -> None:
    """Print the audit log: logins, and changes of accounts, keys and versions.

    The newest entry comes first.
    """
    home = Home.find()
    if url := running_url(home):
        wanted = {"limit": limit, "actor": actor, "action": action}
        rows: list[dict[str, Any]] = call(home, url, "GET", "/ops/api/audit", params=wanted)
        people = {row["id"]: row["name"] for row in call(home, url, "GET", "/ops/api/users")}
    else:
        with database(home) as store:
            users = Users(store)
            people = {account.id: account.name for account in users.all()}
            found = users.named(actor) if actor else None
            rows = Audit(store).entries(limit, actor=found.id if found else actor, action=action)
    if as_json:
        click.echo(json.dumps(rows))
        return
    cells = (
        (minute(row["at"]), people.get(row["actor"], row["actor"]), row["via"], row["address"], row["action"],
         people.get(row["target"], row["target"]), _said(row["detail"]))
        for row in rows
    )  # fmt: skip
    print_table(("at (UTC)", "who", "by", "from", "action", "what", "detail"), ((row, "") for row in cells))


def _said(detail: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in detail.items())
