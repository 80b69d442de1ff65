"""A policy version's folder: checked before it is written, written whole or not at all, never changed.

What is refused here would otherwise be answered by vLLM with the base model and status 200 (keys that
match nothing), or break its engine (a rank too large), or run code (pickles). Only the three known files
are accepted, from bytes in memory, so there is no path, link or archive to escape from.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.feedback.records import sha256
from thumbwise.home import fsync_folder, write_durably

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"
NAME = re.compile(r"policy-(\d{4,})-([0-9a-f]{12})")
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
MAX_BYTES = 2 * 1024**3
MAX_JSON = 8 * 1024**2
_NEEDED = {
    "version", "number", "parent", "base_digest", "snapshot_id", "algorithm", "n_labels", "metrics",
    "created_at", "files", "probes",
}  # fmt: skip


def base_modules(model: Path) -> dict[str, tuple[int, int]]:
    """Return {module name: (out, in)} of every 2-d weight in a model folder, from safetensors headers."""
    shapes: dict[str, tuple[int, int]] = {}
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for key, entry in header.items():
            if key.endswith(".weight") and len(entry["shape"]) == 2:
                shapes[key.removesuffix(".weight")] = (entry["shape"][0], entry["shape"][1])
    return shapes


def check(
    version: str,
    files: dict[str, bytes],
    *,
    modules: dict[str, tuple[int, int]],
    base_digest: str,
    max_rank: int,
) -> dict[str, Any]:
    """Validate a candidate's three files and return its manifest; raises ThumbwiseError (422) on the first fault."""
    if set(files) != {WEIGHTS, CONFIG, MANIFEST}:
        raise _refused(f"it must be exactly {WEIGHTS}, {CONFIG} and {MANIFEST}")
    named = NAME.fullmatch(version)
    if named is None:
        raise _refused(f"{version[:80]!r} is not a version name (policy-<number>-<12 hex digits>)")
    if len(files[WEIGHTS]) > MAX_BYTES or max(len(files[CONFIG]), len(files[MANIFEST])) > MAX_JSON:
        raise _refused("it is too large")
    manifest, config = _json(files[MANIFEST], MANIFEST), _json(files[CONFIG], CONFIG)
    missing = sorted(_NEEDED - set(manifest))
    if missing:
        raise _refused(f"{MANIFEST} has no {', '.join(missing)}")
    if manifest["version"] != version or int(named[1]) != manifest["number"]:
        raise _refused(f"{MANIFEST} names another version")
    if manifest["base_digest"] != base_digest:
        raise _refused("it was trained on another base model: train on the one that is served")
    for name in (WEIGHTS, CONFIG):
        if manifest["files"].get(name) != sha256(files[name]):
            raise _refused(f"{name} does not match its SHA-256 in {MANIFEST} (damaged on the way)")
    if not sha256(files[WEIGHTS]).startswith(named[2]):
        raise _refused("its name does not match its weights")
    if not manifest["probes"]:
        raise _refused("it brings no probes, so it could not be verified")
    _check_config(config, max_rank)
    _check_weights(files[WEIGHTS], modules, int(config["r"]))
    return manifest


def _check_config(config: dict[str, Any], max_rank: int) -> None:
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("modules_to_save"):
        raise _refused("only plain LoRA adapters can be served (no DoRA, no modules_to_save)")
    if config.get("bias", "none") != "none":
        raise _refused("adapters with bias cannot be served")
    if not isinstance(config.get("r"), int) or not 1 <= config["r"] <= max_rank:
        raise _refused(f"rank {config.get('r')} is outside 1 to {max_rank} (setting engine.max_lora_rank)")
    if any(name in str(config.get("target_modules")) for name in ("lm_head", "embed")):
        raise _refused("adapters on lm_head or embeddings cannot be served")


def _check_weights(data: bytes, modules: dict[str, tuple[int, int]], rank: int) -> None:
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _refused(f"{WEIGHTS} is not readable safetensors in float32 or float16 ({error})") from None
    if not tensors:
        raise _refused("it has no weights")
    for key, tensor in tensors.items():
        part = KEY.fullmatch(key)
        if part is None or part[1] not in modules:
            raise _refused(f"{key[:120]!r} matches nothing in the base model")
        out, width = modules[part[1]]
        expected = (rank, width) if part[2] == "A" else (out, rank)
        if tensor.shape != expected:
            raise _refused(f"{key} has shape {tensor.shape}, not {expected}")
        if not np.isfinite(tensor).all():
            raise _refused(f"{key} has values that are not finite")
    halves = {key.replace(".lora_A.", ".lora_B.") for key in tensors if ".lora_A." in key}
    if halves != {key for key in tensors if ".lora_B." in key}:
        raise _refused("some adapters have only one of their two matrices")


def write(root: Path, version: str, files: dict[str, bytes]) -> Path:
    """Write a checked version under `root`: side folder, fsync, rename, `manifest.json` last.

    A complete folder with the same bytes is success (the call may be repeated); with others, a Conflict.
    """
    folder = root / version
    if (folder / MANIFEST).is_file():
        if (folder / MANIFEST).read_bytes() == files[MANIFEST]:
            return folder
        raise Conflict(f"{version} exists already with another content: version names are never reused.")
    side = root / f".incoming-{version}"
    shutil.rmtree(side, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # left without its manifest by a crash: never complete
    try:
        side.mkdir(mode=0o700)
        for name in (WEIGHTS, CONFIG):
            write_durably(side / name, files[name])
        fault_point("adapter_incoming")
        side.rename(folder)
        fsync_folder(root)
        fault_point("adapter_renamed")
        write_durably(folder / MANIFEST, files[MANIFEST])
        fault_point("adapter_complete")
    except OSError as error:
        shutil.rmtree(side, ignore_errors=True)
        raise ThumbwiseError(
            f"{version} could not be written ({error.strerror}); nothing of it is visible. Make room and train again.",
            status=507,
        ) from error
    for path in folder.iterdir():
        path.chmod(0o400)
    return folder


def verify(folder: Path) -> dict[str, Any]:
    """Re-hash a version's files against its manifest and return the manifest; raises ThumbwiseError."""
    if not (folder / MANIFEST).is_file():
        raise _refused(f"{folder.name} is not complete (no {MANIFEST})")
    manifest = _json((folder / MANIFEST).read_bytes(), MANIFEST)
    for name, digest in manifest["files"].items():
        path = folder / name
        if name not in (WEIGHTS, CONFIG) or path.is_symlink() or not path.is_file():
            raise _refused(f"{name[:80]!r} is missing or not a plain file")
        if sha256(path.read_bytes()) != digest:
            raise _refused(f"{name} was changed after it was written")
    return manifest


def _json(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _refused(f"{name} is not JSON") from None
    if not isinstance(value, dict):
        raise _refused(f"{name} is not a JSON object")
    return value


def _refused(why: str) -> ThumbwiseError:
    return ThumbwiseError(f"The adapter is refused: {why}.", status=422, code="adapter_refused")
