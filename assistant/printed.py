"""Safe printing of text that others wrote: errors of plugins, reasons, names.

Rich interprets `[/x]` as markup, and a terminal interprets escape sequences. In text of others both are plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def visible(text: str) -> str:
    """Return the text with its control characters written out, such as `\\x1b`."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def minute(moment: str | None) -> str:
    """Return a moment in ISO 8601 (UTC) up to the minute, for tables: `2026-01-31 12:00`."""
    return (moment or "")[:16].replace("T", " ")


def print_table(
    columns: Sequence[str], rows: Iterable[tuple[Iterable[object], str]], *, wrap: bool = True, tight: bool = False
) -> None:
    """Print rows of cells. Each row has a style of Rich, or none (`""`)."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0) if tight else (0, 1))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not wrap)
    for cells, style in rows:
        table.add_row(*(Text(visible(str(cell))) for cell in cells), style=style or None)
    Console().print(table)
