"""Checkpoints for a killed run: the state of a policy algorithm after an iteration, whole or not at all.

A state is nested dicts and lists of tensors and plain values, as `PolicyAlgorithm.state_dict` returns it. Tensors go to
safetensors, everything else to JSON, bit for bit. Nothing is pickled, because unpickling runs code.

A checkpoint is written to a side folder, fsynced and renamed. The last two are kept: the newest one to continue from,
the one before it as the last policy known to be within the KL budget. Those that the caller names are kept too.

Left out: rollouts of an unfinished iteration. They are made again from their seed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from thumbwise.errors import ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.feedback.records import sha256
from thumbwise.home import fsync_folder, write_durably

TENSORS, REST = "tensors.safetensors", "state.json"
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{6})")


class Checkpoints:
    """The checkpoints of one run, in `folder`; number n is the state after n iterations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True, mode=0o700)

    def numbers(self) -> list[int]:
        """The numbers of the checkpoints that are there, oldest first."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in found if name)

    def save(self, number: int, state: Mapping[str, Any], also: Collection[int] = ()) -> None:
        """Write the state after `number` iterations, then delete all but the last KEPT and `also`. Raises OSError."""
        tensors: dict[str, Tensor] = {}
        rest = _pack(state, tensors, "")
        data = save(tensors)
        side = self.folder / ".incoming"
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir(mode=0o700)
        write_durably(side / TENSORS, data)
        fault_point("checkpoint_half")
        write_durably(side / REST, json.dumps({"sha256": sha256(data), "state": rest}).encode())
        side.rename(self._path(number))
        fsync_folder(self.folder)
        for old in self.numbers()[:-KEPT]:
            if old not in also:
                shutil.rmtree(self._path(old))

    def load(self, number: int) -> dict[str, Any]:
        """Read one. Raises ThumbwiseError if it is damaged."""
        path = self._path(number)
        data = (path / TENSORS).read_bytes()
        note = json.loads((path / REST).read_text())
        if sha256(data) != note["sha256"]:
            raise ThumbwiseError(f"{path} is damaged: start a new run with `thumbwise train`.")
        state: dict[str, Any] = _unpack(note["state"], load(data))
        return state

    def _path(self, number: int) -> Path:
        return self.folder / f"checkpoint-{number:06d}"


def _pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """`value` as JSON, with its tensors moved into `tensors` under their path."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):  # as a list, because an optimizer's keys are numbers
        return {"map": [[key, _pack(inner, tensors, f"{path}/{key}")] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        packed = [_pack(inner, tensors, f"{path}/{n}") for n, inner in enumerate(value)]
        return {"tuple": packed} if isinstance(value, tuple) else packed
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"state_dict holds a {type(value).__name__} at {path}: only tensors and plain values are kept")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    (kind,) = value
    inner = value[kind]
    if kind == "tensor":
        return tensors[inner]
    if kind == "tuple":
        return tuple(_unpack(part, tensors) for part in inner)
    return {key: _unpack(part, tensors) for key, part in inner}
