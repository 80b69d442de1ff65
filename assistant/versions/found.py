"""Versions that are in the home's folders but not in its database, because an older backup of it was restored.

Numbers are never used twice, so a new run gets a number above those of all versions and runs on disk too. A version
that the database does not know is recorded once, if it is complete and made for this base model. It takes no traffic;
an operator can promote it. Left out: what people said about it, because only the lost database had that.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from thumbwise import names
from thumbwise.base_model.prepare import PreparedModel
from thumbwise.base_model.weights import base_modules
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.settings.engine import EngineSettings
from thumbwise.versions import artifacts
from thumbwise.versions.record import Versions
from thumbwise.versions.states import State

log = logging.getLogger(__name__)
FOUND = "it was on disk when an older database was restored: promote it by hand, if you want it"


def highest(home: Home) -> int:
    """The highest number of a version or run in the home's folders; 0 if there is none."""
    named = (names.VERSION.fullmatch(path.name) for path in home.policies.iterdir())
    numbers = [int(name[1]) for name in named if name]
    for path in home.runs.glob(f"*/{names.RUN_RECORD}"):
        try:
            numbers.append(int(json.loads(path.read_text())["given"]["number"]))
        except (OSError, ValueError, KeyError, TypeError):  # of another build, or damaged
            continue
    return max(numbers, default=0)


def unknown(home: Home, versions: Versions, model: PreparedModel, engine: EngineSettings) -> list[dict[str, Any]]:
    """The manifests of versions on disk that are not in the record, oldest first; unusable ones are logged."""
    known = {version.version for version in versions.all()}
    numbers = {version.number for version in versions.all()} | versions.runs.numbers()
    manifests: list[dict[str, Any]] = []
    for path in sorted(home.policies.iterdir()):
        name = names.VERSION.fullmatch(path.name)
        if name is None or path.name in known:
            continue
        try:
            if not (path / names.MANIFEST).is_file():  # a crash left this folder: it never became a version
                continue
            if int(name[1]) in numbers:
                raise ThumbwiseError(f"Number {int(name[1])} is another's, or its run may still hand it over.")
            manifests.append(_checked(path, model, engine.max_lora_rank))
            numbers.add(int(name[1]))
        except (ThumbwiseError, OSError) as error:
            log.warning("%s is on disk, but the database does not know it; it is not used: %s", path.name, error)
    return manifests


def _checked(path: Path, model: PreparedModel, max_rank: int) -> dict[str, Any]:
    files = {name: (path / name).read_bytes() for name in (names.WEIGHTS, names.CONFIG, names.MANIFEST)}
    modules = base_modules(model.folder)
    return artifacts.check(path.name, files, modules=modules, base_digest=model.digest, max_rank=max_rank)


def take_in(versions: Versions, manifests: list[dict[str, Any]]) -> None:
    """Record them as retired, or as rejected if a gate had refused them; blocking."""
    for manifest in manifests:
        version, refused = manifest["version"], _refused(manifest.get("gates"))
        versions.stage(manifest, None)
        versions.set_state(version, State.REJECTED if refused else State.RETIRED, " ".join(refused) or FOUND)
        log.warning("%s was on disk, but the database did not know it: it is listed now, and takes no traffic", version)


def _refused(gates: object) -> list[str]:
    """What the gates that refused a version said."""
    reports = [gate for gate in gates if isinstance(gate, dict)] if isinstance(gates, list) else []
    return [str(gate.get("detail")) for gate in reports if gate.get("passed") is not True]
