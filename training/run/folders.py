"""The files of a run that make it possible to resume it: what it was given, and its settings.

`run.json` is written as soon as the assistant has registered the run. A resumed run works with the settings that it
began with, so it ends with the same adapter as one that was never interrupted. The folder is locked while a process
works in it.

Left out: resuming on another machine. The folder can be copied, but another processor may round differently.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from thumbwise.contracts import GateReport
from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.home import Home, write_durably
from thumbwise.names import RUN_RECORD
from thumbwise.settings import Settings
from thumbwise.settings.gates import GateSettings
from thumbwise.settings.training import TrainSettings
from thumbwise.training.run.client import Run

Outcome = Literal["promoted", "rejected", "too_little_data", "failed"]
RESULT, SNAPSHOT, FIT = "result.json", "snapshot.jsonl", "fit.json"
KEPT = ("reward", "train", "gates", "chat_max_tokens", "chat_template_kwargs")
"""Settings that a run keeps from when it began."""


S = TypeVar("S", bound=BaseModel)


@dataclass
class TrainResult:
    """How a round ended. `reason` is a sentence; `version` is the candidate's name if there is a candidate."""

    outcome: Outcome
    reason: str
    run_id: str
    version: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    gates: list[GateReport] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The result as plain JSON."""
        found: dict[str, Any] = plain(asdict(self))
        return found


@dataclass(frozen=True)
class Record:
    """A run as it began. `algorithm` is the name that was asked for (the snapshot decides what `auto` is)."""

    given: Run
    algorithm: str
    reward: str
    train: TrainSettings
    gates: GateSettings
    chat_max_tokens: int
    new_votes: bool
    chat_template_kwargs: dict[str, Any]

    @classmethod
    def begun(cls, given: Run, algorithm: str, settings: Settings, new_votes: bool) -> Record:
        """The record of a run that begins with `settings`."""
        return cls(
            given, algorithm, settings.reward, settings.train, settings.gates, settings.chat_max_tokens, new_votes,
            settings.chat_template_kwargs,
        )  # fmt: skip

    def settings(self, now: Settings) -> Settings:
        """`now` with what the run began with."""
        kept = {name: getattr(self, name) for name in KEPT}
        return now.model_copy(update=kept)

    def save(self, folder: Path) -> None:
        """Write run.json, whole or not at all."""
        row = {
            "given": asdict(self.given), "algorithm": self.algorithm, "reward": self.reward,
            "train": self.train.model_dump(), "gates": self.gates.model_dump(),
            "chat_max_tokens": self.chat_max_tokens, "new_votes": self.new_votes,
            "chat_template_kwargs": self.chat_template_kwargs,
        }  # fmt: skip
        write_json(folder / RUN_RECORD, row)


def read_record(folder: Path) -> Record:
    """Read run.json. Raises ThumbwiseError if another version of Thumbwise wrote it.

    It raises as well if a setting of today is missing: its default may differ from what the run began with.
    """
    try:
        row = json.loads((folder / RUN_RECORD).read_text())
        train = _as_it_was(TrainSettings, row["train"])
        gates = _as_it_was(GateSettings, row["gates"])
        given = Run(**row["given"])
        return Record(
            given, row["algorithm"], row["reward"], train, gates, row["chat_max_tokens"], row["new_votes"],
            row["chat_template_kwargs"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise ThumbwiseError(
            f"{folder / RUN_RECORD} was written by another version of Thumbwise ({said}): start a new run with "
            "`thumbwise train`."
        ) from None


def _as_it_was(kind: type[S], row: dict[str, Any]) -> S:
    """The settings of `row`, which must name every setting. Raises ValueError."""
    if missing := sorted(set(kind.model_fields) - set(row)):
        raise ValueError(f"it lacks {', '.join(missing)}")
    return kind(**row)


def kept(path: Path) -> dict[str, Any]:
    """A JSON object that a run left. Empty if the file is missing or unreadable: older builds wrote other formats."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def nothing_new(home: Home, folder: Path) -> str:
    """A sentence if the snapshot in `folder` has the same votes as the last finished run; else nothing."""
    ended = [path for path in _runs(home) if kept(path / RESULT).get("outcome") in ("promoted", "rejected")]
    ended = [path for path in ended if (path / SNAPSHOT).exists()]
    if not ended or _votes(last := max(ended, key=_number)) != _votes(folder):
        return ""
    return f"Nobody has voted since {last.name}, which has ended: a round would learn from the same votes."


def _votes(folder: Path) -> set[str]:
    """The ids of what people said of replies and training learns from. Comments are left out, and prompts have no ids.

    A changed mind has a new id. An upgrade may write a line in another way; that is not a vote.
    """
    lines = (folder / SNAPSHOT).read_bytes().split(b"\n")  # str.splitlines would also cut inside what people wrote
    rows = [json.loads(line) for line in lines if line]
    return {str(row.get("id")) for row in rows if row.get("type") not in ("prompt", "comment")}


def _runs(home: Home) -> list[Path]:
    return [path.parent for path in home.runs.glob(f"*/{RUN_RECORD}")]


def _number(folder: Path) -> int:
    """A run's number; -1 if an older build's record does not say."""
    given = kept(folder / RUN_RECORD).get("given")
    number = given.get("number") if isinstance(given, dict) else None
    return number if isinstance(number, int) else -1


def unfinished(home: Home) -> Path:
    """The folder of the newest run, if it has not finished. Raises ThumbwiseError if there is none."""
    folders = _runs(home)
    if not folders:
        raise ThumbwiseError("There is no run to resume: start one with `thumbwise train`.")
    newest = max(folders, key=_number)
    outcome = str(kept(newest / RESULT).get("outcome", "failed"))
    if outcome != "failed":
        raise ThumbwiseError(
            f"The last run, {newest.name}, has ended ({outcome.replace('_', ' ')}): there is nothing to "
            "resume. `thumbwise train` starts a new one."
        )
    return newest


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Lock a run's folder. Raises Conflict while another process works in it."""
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(f"Another process is working on run {folder.name}: wait for it, or stop it.") from None
        yield


def plain(value: Any) -> Any:
    """`value` for JSON, which has no NaN or infinity, and knows neither NumPy's numbers nor its booleans."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all. A plugin's NumPy numbers are written as plain numbers."""
    write_durably(path, (json.dumps(plain(value), indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote, or None if it has not been written."""
    return json.loads(path.read_text()) if path.exists() else None
