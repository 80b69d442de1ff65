"""Reads a model's layer shapes and context length from its files, without loading the model."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
Shapes = dict[str, tuple[int, int]]
"""(out, in) by a module's full name."""
# As in vLLM. With a scaling of positions that is not named here, the model has more positions than the config says.
_LENGTHS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "max_seq_length",
    "seq_len",
)  # fmt: skip
_SCALED_ALREADY = (
    "default",
    "su",
    "longrope",
    "llama3",
    "yarn",
    "deepseek_yarn",
    "deepseek_llama_scaling",
    "proportional",
)


def weight_files(model: Path) -> list[Path]:
    """The model's safetensors: those in its index, or its one file. Other files in the folder are not the model's."""
    index, whole = _read(model / INDEX), model / "model.safetensors"
    if isinstance(named := index.get("weight_map"), dict):
        names = {name for name in named.values() if isinstance(name, str) and Path(name).name == name}
        return sorted(model / name for name in names)
    return [whole] if whole.is_file() else sorted(model.glob("*.safetensors"))


def base_modules(model: Path) -> Shapes:
    """Return the shape of every 2-d weight in a model folder; empty if nothing is readable."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in tensors(model).items()
        if name.endswith(".weight") and len(shape) == 2
    }


def tensors(model: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor in a model folder, by its name, as far as the files can be read."""
    found: dict[str, list[int]] = {}
    for path in weight_files(model):
        with contextlib.suppress(
            OSError, struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError
        ):
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, 100_000_000)))
            found |= {key: list(entry["shape"]) for key, entry in header.items() if key != "__metadata__"}
    return found


def positions(model: Path) -> int | None:
    """How many tokens the model was made for; None if its config does not say, or leaves it to a scaling."""
    config = _read(model / "config.json")
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    for part in (config.get("rope_scaling"), config.get("rope_parameters")):
        rope: dict[str, Any] = part if isinstance(part, dict) else {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in _SCALED_ALREADY and rope.get("factor") is not None:
            return None
    tokenizer = _read(model / "tokenizer_config.json").get("model_max_length")
    known = [length for length in (*map(config.get, _LENGTHS), tokenizer) if type(length) is int and length > 0]
    return min(known, default=None)


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_bytes())
        return value if isinstance(value, dict) else {}
    return {}


def block_modules(model: Path) -> Shapes:
    """Return the shapes of the linear layers inside the blocks, without heads and embeddings."""
    shapes = base_modules(model)
    return {name: shape for name, shape in shapes.items() if any(part.isdecimal() for part in name.split("."))}


def linear_layers(model: Path) -> list[str]:
    """Return the last parts of these layers' names, each once."""
    return sorted({name.rpartition(".")[2] for name in block_modules(model)})
