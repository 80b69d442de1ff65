"""Write the docs that are made from code and measurements: settings.md, commands.md and measured.md (`make docs`).

A test fails if the files differ from what this writes. So no setting or option is documented twice, and no bar is said
to hold that was not measured.
"""

from __future__ import annotations

import ast
import json
import statistics
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from thumbwise.cli.main import main
from thumbwise.settings import PREFIX, describe

HERE = Path(__file__).parent
RESULTS = HERE.parent / "tests" / "bench" / "results"
WIDTH = 120
MEASURED_HEAD = (
    "# Measured",
    "",
    "Results of the benchmarks. Made by `make docs` from `tests/bench/results/`; do not edit.",
    "",
    "- Each benchmark is a script in `tests/bench/`. The headings below it are the arguments of each measurement.",
    "- The *bar* is the value that we wanted. **no** means that it was not met.",
    "- The name of a result's file ends with a digest of the measured code, which may be older than the code here.",
    "",
)


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
            "The command line wins over the environment, the environment over `config.toml` in the home folder, and",
            "`config.toml` over the defaults below. An unknown name is an error. A dot is a table in `config.toml`:",
            "",
            "    port = 8000",
            "    [engine]",
            "    kv_cache_gb = 2",
            "",
            "- `thumbwise doctor --settings` shows the values that a command started here would use.",
            "- `serve` reads its settings once, when it starts.",
            "- The training job takes `model`, `max_tokens` and `temperature` from the running assistant. It takes all",
            "  other settings from its own environment. Put what both need into `config.toml`.",
            "- Drafts end after `max_tokens`, chat replies after `chat_max_tokens`.",
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
    found = {path: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    lines = list(MEASURED_HEAD)
    for bench in sorted({result["bench"] for result in found.values()}):
        its = {path: result for path, result in found.items() if result["bench"] == bench}
        lines += [f"## {bench}.py", "", *textwrap.wrap(_what_for(bench), WIDTH), ""]
        for path, result in sorted(its.items(), key=lambda item: _said(item[1]["arguments"])):
            lines += _measured(path, result)
        lines += _over_seeds(list(its.values()))
    return "\n".join(lines)


def _what_for(bench: str) -> str:
    """The first paragraph of a benchmark's docstring: what it measures."""
    (script,) = RESULTS.parent.rglob(f"{bench}.py")
    text = ast.get_docstring(ast.parse(script.read_text()))
    assert text is not None
    return " ".join(text.split("\n\n")[0].split())


def _over_seeds(results: list[dict[str, Any]]) -> Iterator[str]:
    """Mean and deviation of each bar over results that differ in their seed alone."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for found in results:
        if "seed" in found["arguments"]:
            name = _said({key: value for key, value in found["arguments"].items() if key != "seed"})
            alike.setdefault(name, []).append(found)
    for name, group in alike.items():
        if len(group) > 1:
            group.sort(key=lambda found: found["arguments"]["seed"])
            seeds = ", ".join(str(found["arguments"]["seed"]) for found in group)
            yield from (f"### Seeds {seeds} together: `{name}`", "")
            yield from ("| what | mean | deviation | each, by seed | bar |", "|---|---|---|---|---|")
            for bars in _common(group):
                values = [float(bar["value"]) for bar in bars]
                each = ", ".join(f"{value:.4g}" for value in values)
                spread = f"{statistics.mean(values):.4g} | {statistics.stdev(values):.2g}"
                yield f"| {bars[0]['name']} | {spread} | {each} | {bars[0]['op']} {bars[0]['limit']:.4g} |"
            yield ""


def _common(results: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The bars that all of `results` have, one list per bar. Results of older code may have other bars."""
    by_name = [{bar["name"]: bar for bar in found["bars"]} for found in results]
    return [[found[name] for found in by_name] for name in by_name[0] if all(name in found for found in by_name)]


def _said(arguments: dict[str, Any]) -> str:
    """The arguments as they are typed, without those that were not given."""
    given = {name: value for name, value in arguments.items() if name != "quick" and value not in (None, [])}
    words = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in given.items()}
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in words.items())


def _measured(path: Path, found: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    model = found["model"][0].upper() + found["model"][1:]
    if not model.startswith(("No model", "Simulated")):
        model += f" in {found['number format']}"
    said = _said(found["arguments"])
    yield from (f"### `{said}`" if said else "### Default arguments", "")
    yield from textwrap.wrap(f"{model}. Versions: {versions}. All figures:", WIDTH)
    yield from (f"[{path.name}](../tests/bench/results/{path.name}).", "")
    yield from ("| what | measured | bar | met |", "|---|---|---|---|")
    for bar in found["bars"]:
        holds = "yes" if bar["holds"] else "**no**"
        yield f"| {bar['name']} | {bar['value']:.4g} | {bar['op']} {bar['limit']:.4g} | {holds} |"
    yield ""
    if "cases" in found:
        yield from (*cases_table(found["cases"]), "")


def cases_table(cases: dict[str, dict[str, Any]]) -> list[str]:
    """The algorithms side by side (tests/bench/training/algorithms.py). training/README.md has the same table."""
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
