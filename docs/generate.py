"""Write the docs that are made from code and measurements: settings.md, commands.md and measured.md (`make docs`).

A test fails where the files are not what this writes, so that no setting or option is documented twice, and no bar is
said to hold that was not measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from thumbwise.cli import main
from thumbwise.settings import PREFIX, describe

HERE = Path(__file__).parent
RESULTS = HERE.parent / "tests" / "bench" / "results"


def settings_page() -> str:
    """Return docs/settings.md: every setting with its default and its help."""
    rows = [
        f"| `{name}` | `{_toml(default)}` | {text} | `{PREFIX}{name.replace('.', '__').upper()}` |"
        for name, default, text in describe()
    ]
    return "\n".join(
        [
            "# Settings",
            "",
            "Made by `make docs` from the code; do not edit.",
            "",
            "The command line wins over the environment, that over `config.toml` in the home folder, and that over",
            "the defaults below. An unknown name is an error. A dot is a table in `config.toml`:",
            "",
            "    port = 8000",
            "    [engine]",
            "    kv_cache_gb = 2",
            "",
            "`thumbwise doctor --settings` shows what a command that is started here and now would use; `serve` reads",
            "its settings once, when it starts. The training job takes model, `max_tokens` and `temperature` from the",
            "running assistant and the rest from its own environment, so what both need belongs into `config.toml`.",
            "Drafts end after `max_tokens`, chat replies after `chat_max_tokens`.",
            "",
            "| setting | default | what it is | environment |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def commands_page() -> str:
    """Return docs/commands.md: the help of every command."""
    parts = ["# Commands\n\nMade by `make docs` from the code; do not edit.\n"]
    parts += [f"## {path}\n\n```text\n{text}\n```\n" for path, text in _helps(main, "thumbwise", None)]
    return "\n".join(parts)


def measured_page() -> str:
    """Return docs/measured.md: every result that is kept in tests/bench/results, by its bars."""
    head = [
        "# Measured",
        "",
        "Made by `make docs` from `tests/bench/results/`; do not edit. A title is the script and its arguments. A",
        "file's name ends with a digest of the code that was measured, which may be older than what is here.",
        "",
    ]
    found = {path: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    lines = [line for path, result in found.items() for line in _measured(path, result)]
    return "\n".join([*head, *lines, *_over_seeds(list(found.values()))])


def _over_seeds(results: list[dict[str, Any]]) -> Iterator[str]:
    """Mean and deviation of each bar over results that differ in their seed alone."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for found in results:
        if "seed" in found["arguments"]:
            name = found["bench"] + ".py" + _said({k: v for k, v in found["arguments"].items() if k != "seed"})
            alike.setdefault(name, []).append(found)
    for name, group in alike.items():
        if len(group) > 1:
            group.sort(key=lambda found: found["arguments"]["seed"])
            seeds = ", ".join(str(found["arguments"]["seed"]) for found in group)
            yield from (f"## Over seeds {seeds}: tests/bench/{name}", "")
            yield from ("| | mean | deviation | each, by seed | wanted |", "|---|---|---|---|---|")
            for bars in _common(group):
                values = [float(bar["value"]) for bar in bars]
                each = ", ".join(f"{value:.4g}" for value in values)
                spread = f"{statistics.mean(values):.4g} | {statistics.stdev(values):.2g}"
                yield f"| {bars[0]['name']} | {spread} | {each} | {bars[0]['op']} {bars[0]['limit']:.4g} |"
            yield ""


def _common(results: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Each bar that all of `results` have, of one after the other: older code's may have other bars."""
    by_name = [{bar["name"]: bar for bar in found["bars"]} for found in results]
    return [[found[name] for found in by_name] for name in by_name[0] if all(name in found for found in by_name)]


def _said(arguments: dict[str, Any]) -> str:
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in arguments.items() if name != "quick")


def _measured(path: Path, found: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield from (f"## tests/bench/{found['bench']}.py{_said(found['arguments'])}", "")
    yield f"{found['model']} in {found['number format']}; {versions}. All figures:"
    yield from (f"[{path.name}](../tests/bench/results/{path.name}).", "")
    yield from ("| | measured | wanted | |", "|---|---|---|---|")
    for bar in found["bars"]:
        holds = "yes" if bar["holds"] else "**no**"
        yield f"| {bar['name']} | {bar['value']:.4g} | {bar['op']} {bar['limit']:.4g} | {holds} |"
    yield ""
    if "cases" in found:
        yield from (*cases_table(found["cases"]), "")


def cases_table(cases: dict[str, dict[str, Any]]) -> list[str]:
    """The algorithms side by side (tests/bench/algorithms.py); training/README.md has them too."""
    head = "| | win rate over start | KL, nats a reply | prose's perplexity | replies that end | minutes | iterations |"
    rows = [
        f"| `{name}` | {case['win_rate']:.1%} ({case['win_rate_low']:.1%} to {case['win_rate_high']:.1%}) "
        f"| {case['kl']:.1f} | {case['perplexity_rise']:+.1%} | {case['finish_rate']:.0%} "
        f"| {case['minutes']:.0f} | {case['iterations']} |"
        for name, case in cases.items()
    ]
    return [head, "|---|---|---|---|---|---|---|", *rows]


def _helps(command: click.Command, name: str, parent: click.Context | None) -> list[tuple[str, str]]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
    found = [(context.command_path, command.get_help(context))]
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            loaded = command.get_command(context, child)
            assert loaded is not None
            found += _helps(loaded, child, context)
    return found


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


PAGES = {"settings.md": settings_page, "commands.md": commands_page, "measured.md": measured_page}

if __name__ == "__main__":
    for file_name, page in PAGES.items():
        (HERE / file_name).write_text(page())
