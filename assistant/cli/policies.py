"""`thumbwise policies`: the versions, and which one answers.

The running assistant does the work. If none runs, this takes the home's lock and reads the database itself. Promotion
always needs the assistant, because a version must be probed before it answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import click

from thumbwise.cli.client import call, database, running
from thumbwise.errors import NotFound
from thumbwise.feedback.reception import reception
from thumbwise.feedback.store import Store
from thumbwise.home import Home, running_url
from thumbwise.names import BASE
from thumbwise.printed import minute, print_table
from thumbwise.settings import Settings
from thumbwise.versions import artifacts
from thumbwise.versions.record import Versions


@click.group()
def policies() -> None:
    """List, promote and roll back policy versions."""


def _rows(home: Home, path: str, read: Callable[[Store], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return what the running assistant answers at `path`, or `read(store)` if none runs."""
    url = running_url(home)
    if url is not None:
        answer: list[dict[str, Any]] = call(home, url, "GET", path)
        return answer
    with database(home) as store:
        return read(store)


def _listing(home: Home) -> list[dict[str, Any]]:
    return _rows(home, "/ops/api/policies", lambda store: [version.as_json() for version in Versions(store).all()])


def _stable(home: Home) -> str:
    return next(str(row["version"]) for row in _listing(home) if row["state"] == "stable")


@policies.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(as_json: bool) -> None:
    """List every version with its state, the newest last."""
    rows = _listing(Home.find())
    if as_json:
        click.echo(json.dumps(rows))
        return
    rows = [row | {"created_at": minute(row["created_at"])} for row in rows]
    cells = ("version", "state", "algorithm", "n_labels", "parent", "created_at", "reason")
    styles = {"stable": "green", "rejected": "red"}
    print_table(
        ("version", "state", "algorithm", "votes", "parent", "created (UTC)", "reason"),
        (
            ([row[cell] if row[cell] is not None else "" for cell in cells], styles.get(row["state"], ""))
            for row in rows
        ),
    )


@policies.command()
@click.argument("version")
def show(version: str) -> None:
    """Show one version: its record, gates and metrics (JSON)."""
    home = Home.find()
    rows = [row for row in _listing(home) if row["version"] == version]
    if not rows:
        raise NotFound(f"There is no policy version {version!r}. `thumbwise policies list` lists them.")
    record = rows[0]
    if version != BASE:
        manifest = artifacts.verify(home.policies / version)
        record |= {key: value for key, value in manifest.items() if key not in ("probes", *record)}
    click.echo(json.dumps(record, indent=2))


@policies.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def people(as_json: bool) -> None:
    """Show what people thought of each version: replies, their length, thumbs, blind comparisons."""
    rows = _rows(Home.find(), "/ops/api/reception", lambda store: [asdict(row) for row in reception(store)])
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        click.echo("There are no replies yet.")
        return
    columns = ("version", "replies", "stopped", "tokens", "ended", "up", "down", "preferred to")
    print_table(columns, ((_people_row(row), "") for row in rows), wrap=False, tight=True)  # fits 80 columns


def _people_row(row: dict[str, Any]) -> list[object]:
    return [
        *(row[cell] for cell in ("version", "done", "stopped")),
        "" if row["tokens"] is None else f"{row['tokens']:.0f}",
        "" if row["ended"] is None else f"{row['ended']:.0%}",
        *(row[cell] for cell in ("up", "down")),
        "\n".join(_preferences(row)),
    ]


def _preferences(row: dict[str, Any]) -> Iterator[str]:
    """Yield how often the version was preferred to each earlier one, by the number of that one."""
    for other, pair in sorted(row["preferred"].items()):
        if other < row["version"]:
            yield f"{other.split('-')[1]}: {pair['won'] / pair['pairs']:.0%} of {pair['pairs']}"


@policies.command()
@click.argument("version")
@click.option("--reason", default="by hand", help="Kept in the log.")
@click.option(
    "--canary", type=click.FloatRange(0, 0.5), help="Share of people whom it answers first, as a canary. [default: all]"
)
def promote(version: str, reason: str, canary: float | None) -> None:
    """Load and probe a version, then let it answer. Replies in flight do not change."""
    home = Home.find()
    url = running(home)
    body = {"expect_stable": _stable(home), "reason": reason, "share": canary}
    answer = call(home, url, "POST", f"/ops/api/policies/{version}/promote", json=body)
    click.echo(f"{answer['version']} is {answer['state']}.")


@policies.command()
@click.option("--reason", default="by hand", help="Kept in the log.")
def rollback(reason: str) -> None:
    """Take back the canary, or go back to the version before, from the next message on."""
    home = Home.find()
    url = running_url(home)
    if url is not None:
        states = {row["state"]: row["version"] for row in _listing(home)}
        expect = states.get("canary", states["stable"])
        moved = call(home, url, "POST", "/ops/api/rollback", json={"reason": reason, "expect": expect})
        click.echo(f"{moved['new']} answers again, instead of {moved['old']}.")
        return
    from thumbwise.metrics import Metrics
    from thumbwise.plugin_host.manager import PluginManager
    from thumbwise.versions.lifecycle import Policies

    with database(home) as store:
        service = Policies(home, Settings.load(home), Versions(store), PluginManager(home).load(), Metrics())
        old, new = asyncio.run(service.rollback(reason))
    click.echo(f"{new} answers again, instead of {old}.")
