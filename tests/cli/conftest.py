"""A home of the test's own, which the command line finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from thumbwise.home import Home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in [name for name in os.environ if name.startswith("THUMBWISE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("THUMBWISE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    home = Home.find()
    home.root.chmod(0o700)
    return home
