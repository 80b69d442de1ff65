"""`thumbwise backup`: a consistent copy of the database.

The running assistant makes it. If none runs, this takes the home's lock and reads the database itself. Left out:
everything else in the home. Its files never change once they are written, so any copy of them is good.
"""

from __future__ import annotations

from pathlib import Path

import click

from thumbwise.cli.client import call, database
from thumbwise.home import Home, running_url


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(file: Path) -> None:
    """Copy the database, also while the assistant runs.

    FILE must not exist yet. To restore it, stop the assistant and put FILE into the home as feedback.db.
    """
    home, path = Home.find(), file.absolute()
    url = running_url(home)
    if url is not None:
        call(home, url, "POST", "/ops/api/backup", json={"path": str(path)})
    else:
        with database(home) as store:
            store.backup(path)
    click.echo(f"The database is in {path} ({path.stat().st_size / 1e6:.1f} MB).")
