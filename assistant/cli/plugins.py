"""`thumbwise plugins`: which plugins are loaded, which failed and why, and which may run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import click

from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.home import Home
from thumbwise.plugin_host import sources
from thumbwise.plugin_host.manager import KINDS, PluginInfo, PluginManager
from thumbwise.printed import print_table, visible


@click.group()
def plugins() -> None:
    """List, enable, disable and check plugins.

    Built-in plugins and files in the home's plugins folder are on. A plugin from an installed package is
    off until it is enabled. The assistant reads the list when it starts.
    """


def _provides(info: PluginInfo) -> list[str]:
    return [f"{KINDS[kind]} {name}" for kind, names in info.provides.items() for name in names]


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(as_json: bool) -> None:
    """List every plugin, with what it provides or why it is not on."""
    infos = PluginManager(Home.find()).load(quiet=True).list()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(info) for info in infos]))
        return
    styles = {"on": "green", "off": "dim", "failed": "red"}
    rows = ((info.name, info.source, info.status, info.version, _told(info)) for info in infos)
    columns = ("name", "source", "status", "version", "provides, or why not")
    print_table(columns, zip(rows, (styles[info.status] for info in infos), strict=True))


def _told(info: PluginInfo) -> str:
    return info.reason or ", ".join(_provides(info)) or ", ".join(info.hooks)


@plugins.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show one plugin: its hooks, what it registered, and where it failed."""
    infos = PluginManager(Home.find()).load(quiet=True).list()
    found = [info for info in infos if info.name == name]
    if not found:
        known = ", ".join(sorted({info.name for info in infos}))
        raise NotFound(f"There is no plugin {name!r} (known: {known}).")
    for info in found:
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(info), indent=2))
            continue
        click.echo(visible(f"{info.name} {info.version}".strip() + f" ({info.source}): {info.status}"))
        lines = {"reason": info.reason, "hooks": ", ".join(info.hooks), "provides": ", ".join(_provides(info))}
        for label, text in lines.items():
            if text:
                click.echo(visible(f"  {label}: {text}"))
        if info.traceback:
            click.echo(visible(info.traceback.rstrip()))


@plugins.command()
@click.argument("name")
def enable(name: str) -> None:
    """Turn on a plugin of an installed package. Its code runs from now on."""
    home = Home.find()
    sources.enable(home, name)
    infos = PluginManager(home).load(quiet=True).list()
    info = next(info for info in infos if info.name == name and info.source == "entry point")
    if info.status != "on":
        raise ThumbwiseError(f"{name} is enabled but fails to load: {info.reason}.")
    click.echo(f"{name} {info.version} is on: {', '.join(_provides(info)) or ', '.join(info.hooks)}.")


@plugins.command()
@click.argument("name")
def disable(name: str) -> None:
    """Turn off a plugin of an installed package."""
    sources.disable(Home.find(), name)
    click.echo(f"{name} is off.")


@plugins.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def check(path: Path) -> None:
    """Check a plugin file before you put it into the plugins folder. This runs its code.

    The file is loaded together with the built-in plugins, and each of its judges scores two replies.
    """
    manager = PluginManager(Home.find())
    manager.load_builtins()
    info = manager.load_source(path, path.read_bytes())
    if info.status != "on":
        raise ThumbwiseError(f"{path} fails to load: {info.reason}.")
    for name in info.provides.get("judges", ()):
        _try_judge(manager, name)
    click.echo(f"{path} is valid: {', '.join(_provides(info)) or ', '.join(info.hooks)}.")


def _try_judge(manager: PluginManager, name: str) -> None:
    """Ask a judge for two scores, as rehearsals do. Raise ThumbwiseError unless it returns two finite numbers."""
    try:
        scores = manager.judges[name]("How are you?", ["Very well, thank you!", "Leave me alone."])
    except Exception as error:
        raise ThumbwiseError(f"Judge {name} fails on two short replies: {type(error).__name__}: {error}.") from error
    numbers = isinstance(scores, list) and len(scores) == 2 and all(isinstance(s, (int, float)) for s in scores)
    if not numbers or not all(math.isfinite(score) for score in scores):
        raise ThumbwiseError(f"Judge {name} must return a list of two finite numbers for two replies, not {scores!r}.")
