"""What a model's safetensors headers say about its layers: nothing is loaded."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

Shapes = dict[str, tuple[int, int]]
"""(out, in) by a module's full name."""


def base_modules(model: Path) -> Shapes:
    """Return the shapes of every 2-d weight in a model folder; none where there is nothing readable."""
    found: Shapes = {}
    for path in sorted(model.glob("*.safetensors")):
        with contextlib.suppress(OSError, struct.error, ValueError), path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            for key, entry in json.loads(file.read(min(length, 100_000_000))).items():
                if key.endswith(".weight") and len(entry["shape"]) == 2:
                    found[key.removesuffix(".weight")] = (entry["shape"][0], entry["shape"][1])
    return found


def block_modules(model: Path) -> Shapes:
    """Return the shapes of the linear layers inside its blocks: heads and embeddings are left out."""
    shapes = base_modules(model)
    return {name: shape for name, shape in shapes.items() if any(part.isdecimal() for part in name.split("."))}


def linear_layers(model: Path) -> list[str]:
    """Return the last parts of those layers' names, each once."""
    return sorted({name.rpartition(".")[2] for name in block_modules(model)})
