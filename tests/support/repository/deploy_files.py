"""The files of `deploy/`, parsed."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
ASSISTANT, TRAIN = COMPOSE["services"]["assistant"], COMPOSE["services"]["train"]


def lines_of(name: str) -> list[str]:
    """Return a file's lines without comments and empty ones, continuations joined."""
    lines = [line for line in (DEPLOY / name).read_text().splitlines() if line and not line.startswith("#")]
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Return a unit's sections; a key may be there several times, which configparser cannot keep."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in lines_of(name):
        if header := re.fullmatch(r"\[(\w+)\]", line):
            keys = sections.setdefault(header[1], {})
        else:
            key, value = line.split("=", 1)
            keys.setdefault(key, []).append(value)
    return sections
