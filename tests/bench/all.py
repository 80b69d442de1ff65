"""Run every benchmark in this folder and in training/ in its quick form and print one table (`make bench`).

Exit status 0 only where every bar of every benchmark holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table


def main() -> int:
    """Run the scripts one after another; their progress goes to stderr, a table to stdout."""
    table = Table(box=None, header_style="bold")
    for column in ("bench", "bar", "value", "", "limit", "holds"):
        table.add_column(column)
    failed = 0
    here = Path(__file__).parent
    for script in sorted([*here.glob("*.py"), *here.glob("training/*.py")], key=lambda path: path.stem):
        if script.stem in ("all", "any_build", "build_at", "kept", "large_home"):
            continue
        done = subprocess.run([sys.executable, script, "--quick"], stdout=subprocess.PIPE, text=True, check=False)
        failed += done.returncode != 0
        lines = done.stdout.strip().splitlines()
        if not lines:
            table.add_row(script.stem, f"no result, exit status {done.returncode}", style="red")
            continue
        for bar in json.loads(lines[-1])["bars"]:
            cells = (script.stem, bar["name"], f"{bar['value']:.4g}", bar["op"], f"{bar['limit']:.4g}")
            table.add_row(*cells, "yes" if bar["holds"] else "NO", style=None if bar["holds"] else "red")
    Console().print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
