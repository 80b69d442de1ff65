"""What the command line prints of others' text: plugins' errors, reasons, names.

Rich reads `[/x]` as markup and a terminal reads escape sequences; in what others wrote both are text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def visible(text: str) -> str:
    """The text with what a terminal would act on written out, such as `\\x1b`."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def minute(moment: str | None) -> str:
    """A moment in ISO 8601, UTC, as a table has room for it: `2026-01-31 12:00`."""
    return (moment or "")[:16].replace("T", " ")


def print_table(
    columns: Sequence[str], rows: Iterable[tuple[Iterable[object], str]], *, wrap: bool = True, tight: bool = False
) -> None:
    """Print rows of cells, each row with a style of Rich's or none (`""`)."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0) if tight else (0, 1))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not wrap)
    for cells, style in rows:
        table.add_row(*(Text(visible(str(cell))) for cell in cells), style=style or None)
    Console().print(table)
