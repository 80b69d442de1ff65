"""`thumbwise policies`: what versions there are, and which one answers.

Through the running assistant where there is one. Otherwise this takes the home's lock and reads the
database itself; promotion then needs the assistant, because a version must be probed before it answers.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from thumbwise import artifacts
from thumbwise.client import call, database, running
from thumbwise.errors import NotFound
from thumbwise.home import Home, running_url
from thumbwise.settings import Settings
from thumbwise.versions import BASE, Versions


@click.group()
def policies() -> None:
    """List, promote and roll back policy versions."""


def _listing(home: Home) -> list[dict[str, Any]]:
    url = running_url(home)
    if url is not None:
        answer: list[dict[str, Any]] = call(home, url, "GET", "/ops/api/policies")
        return answer
    with database(home) as store:
        return [version.as_json() for version in Versions(store).all()]


def _stable(home: Home) -> str:
    return next(str(row["version"]) for row in _listing(home) if row["state"] == "stable")


@policies.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(as_json: bool) -> None:
    """List every version with its state, newest last."""
    rows = _listing(Home.find())
    if as_json:
        click.echo(json.dumps(rows))
        return
    table = Table(box=None, header_style="bold")
    for column in ("version", "state", "algorithm", "votes", "parent", "created", "reason"):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = ("version", "state", "algorithm", "n_labels", "parent", "created_at", "reason")
        style = "green" if row["state"] == "stable" else "red" if row["state"] == "rejected" else None
        table.add_row(*(str(row[cell] if row[cell] is not None else "") for cell in cells), style=style)
    Console().print(table)


@policies.command()
@click.argument("version")
def show(version: str) -> None:
    """Show one version: its record, gates and metrics (JSON)."""
    home = Home.find()
    rows = [row for row in _listing(home) if row["version"] == version]
    if not rows:
        raise NotFound(f"There is no policy version {version!r}. `thumbwise policies list` names them all.")
    record = rows[0]
    if version != BASE:
        manifest = artifacts.verify(home.policies / version)
        record |= {key: value for key, value in manifest.items() if key not in ("probes", *record)}
    click.echo(json.dumps(record, indent=2))


@policies.command()
@click.argument("version")
@click.option("--reason", default="by hand", help="Kept in the log.")
@click.option("--canary", type=click.FloatRange(0, 0.5), help="Share of people whom it answers first. [default: all]")
def promote(version: str, reason: str, canary: float | None) -> None:
    """Load, probe and make a version the one that answers; replies under way are not touched."""
    home = Home.find()
    url = running(home)
    body = {"expect_stable": _stable(home), "reason": reason, "share": canary}
    answer = call(home, url, "POST", f"/ops/api/policies/{version}/promote", json=body)
    click.echo(f"{answer['version']} is {answer['state']}.")


@policies.command()
@click.option("--reason", default="by hand", help="Kept in the log.")
def rollback(reason: str) -> None:
    """Take back the canary, or go back to the version before; takes effect with the next message."""
    home = Home.find()
    url = running_url(home)
    if url is not None:
        moved = call(home, url, "POST", "/ops/api/rollback", json={"reason": reason})
        click.echo(f"{moved['new']} answers again, instead of {moved['old']}.")
        return
    from thumbwise.metrics import Metrics
    from thumbwise.plugin_manager import PluginManager
    from thumbwise.policies import Policies

    with database(home) as store:
        service = Policies(home, Settings.load(home), Versions(store), PluginManager(home).load(), Metrics())
        old, new = asyncio.run(service.rollback(reason))
    click.echo(f"{new} answers again, instead of {old}.")
