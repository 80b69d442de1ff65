"""A policy version's folder: checked before it is written, written whole or not at all, never changed.

What is refused here would otherwise do harm in vLLM:

- keys that match nothing: vLLM answers with the base model and status 200;
- a rank that is too large breaks its engine;
- pickles run code;
- values that are not finite spoil the replies of other versions: on CPU, a NaN that one request leaves in vLLM's
  key-value cache reaches the request that gets this block next.

Only the three known files are accepted, and from bytes in memory. So no path, link or archive can lead elsewhere.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.feedback.records import sha256
from thumbwise.home import fsync_folder, write_durably
from thumbwise.names import CONFIG, MANIFEST, VERSION, WEIGHTS

KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
MAX_BYTES = 2 * 1024**3
MAX_JSON = 8 * 1024**2
LARGEST = 1000.0
"""Largest weight and scale of an adapter: far above what training makes, far below a flipped exponent bit."""
_NEEDED = {
    "version", "number", "parent", "base_digest", "snapshot_id", "algorithm", "n_labels", "metrics",
    "created_at", "files", "probes",
}  # fmt: skip
_LEAST, _LEAST_OF_TOP = -1e6, -100.0
"""Lower limits of a probe's log-probabilities: of any token, and of its likeliest token."""
_PROBE = ("context_ids", "top_ids", "top_logprobs", "base_top_logprobs")


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
    named = VERSION.fullmatch(version)
    if named is None:
        raise _refused(f"{version[:80]!r} is not a version name (policy-<number>-<12 hex digits>)")
    if len(files[WEIGHTS]) > MAX_BYTES or max(len(files[CONFIG]), len(files[MANIFEST])) > MAX_JSON:
        raise _refused("it is too large")
    manifest, config = _json(files[MANIFEST], MANIFEST), _json(files[CONFIG], CONFIG)
    _check_manifest(manifest)
    if manifest["version"] != version or int(named[1]) != manifest["number"]:
        raise _refused(f"{MANIFEST} names another version")
    if manifest["base_digest"] != base_digest:
        raise _refused("it was trained on another base model: train on the one that is served")
    for name in (WEIGHTS, CONFIG):
        if manifest["files"][name] != sha256(files[name]):
            raise _refused(f"{name} does not match its SHA-256 in {MANIFEST} (damaged on the way)")
    if not sha256(files[WEIGHTS]).startswith(named[2]):
        raise _refused("its name does not match its weights")
    _check_config(config, max_rank)
    _check_weights(files[WEIGHTS], modules, int(config["r"]))
    return manifest


def _check_manifest(manifest: dict[str, Any]) -> None:
    missing = sorted(_NEEDED - set(manifest))
    if missing:
        raise _refused(f"{MANIFEST} has no {', '.join(missing)}")
    wrong = [name for name, fits in _KINDS.items() if not fits(manifest[name])]
    if wrong:
        raise _refused(f"{', '.join(wrong)} in {MANIFEST} has the wrong type or is out of range")
    if not isinstance(manifest["files"], dict) or set(manifest["files"]) != {WEIGHTS, CONFIG}:
        raise _refused(f"the files in {MANIFEST} are not {WEIGHTS} and {CONFIG}")
    if not manifest["probes"]:
        raise _refused("it brings no probes, so it could not be verified")
    if not isinstance(manifest["probes"], list) or not all(map(_is_probe, manifest["probes"])):
        raise _refused(f"{MANIFEST} has a probe without its context, tokens or log-probabilities")


def _is_probe(probe: Any) -> bool:
    if not isinstance(probe, dict) or not all(isinstance(probe.get(part), list) and probe[part] for part in _PROBE):
        return False
    ids = all(type(value) is int and 0 <= value < 2**31 for part in _PROBE[:2] for value in probe[part])
    numbers = all(type(value) in (int, float) and _LEAST < value < 1 for part in _PROBE[2:] for value in probe[part])
    if not ids or not numbers or len({len(probe[part]) for part in _PROBE[1:]}) != 1:
        return False
    return bool(max(probe["top_logprobs"]) > _LEAST_OF_TOP)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200 and not re.search("[\ud800-\udfff]", value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_date(value: Any) -> bool:
    try:
        return bool(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return False


_KINDS: dict[str, Callable[[Any], bool]] = {
    "version": _is_text,
    "number": _is_count,
    "parent": lambda value: value is None or _is_text(value),
    "base_digest": _is_text,
    "snapshot_id": _is_text,
    "algorithm": _is_text,
    "n_labels": _is_count,
    "metrics": lambda value: isinstance(value, dict),
    "created_at": _is_date,
}


def _check_config(config: dict[str, Any], max_rank: int) -> None:
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("modules_to_save"):
        raise _refused("only plain LoRA adapters can be served (no DoRA, no modules_to_save)")
    if config.get("bias", "none") != "none":
        raise _refused("adapters with bias cannot be served")
    if not isinstance(config.get("r"), int) or not 1 <= config["r"] <= max_rank:
        raise _refused(f"rank {config.get('r')} is outside 1 to {max_rank} (setting engine.max_lora_rank)")
    alpha = config.get("lora_alpha", 1)
    if (
        type(alpha) not in (int, float) or not 0 < alpha <= LARGEST
    ):  # refuses Infinity and NaN too, which Python's JSON accepts
        raise _refused(f"lora_alpha {alpha!r:.40} is outside 0 to {LARGEST:g}")
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
        if tensor.size and np.abs(tensor).max() > LARGEST:
            raise _refused(
                f"{key} has the value {np.abs(tensor).max():.3g}, where {LARGEST:g} is more than training makes"
            )
    halves = {key.replace(".lora_A.", ".lora_B.") for key in tensors if ".lora_A." in key}
    if halves != {key for key in tensors if ".lora_B." in key}:
        raise _refused("some adapters have only one of their two matrices")


def write(root: Path, version: str, files: dict[str, bytes]) -> Path:
    """Write a checked version under `root`: side folder, fsync, rename, `manifest.json` last.

    If a complete folder with the same bytes exists, that is success, so the call may be repeated. Other bytes are a
    Conflict.
    """
    folder = root / version
    if (folder / MANIFEST).is_file():
        if (folder / MANIFEST).read_bytes() == files[MANIFEST]:
            return _sealed(folder)
        raise Conflict(
            f"{version} exists already with another content, and version names are never reused: start a new run with "
            "`thumbwise train`, which gets another number."
        )
    side = root / f".incoming-{version}"
    shutil.rmtree(side, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # a crash left it without its manifest: it was never complete
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
        for unfinished in (side, folder):
            shutil.rmtree(unfinished, ignore_errors=True)
        raise ThumbwiseError(
            f"{version} could not be written ({error.strerror}); nothing of it is visible. Make room and train again.",
            status=507,
        ) from error
    return _sealed(folder)


def _sealed(folder: Path) -> Path:
    """Make a complete version's files read-only."""
    for path in folder.iterdir():
        path.chmod(0o400)
    return folder


def verify(folder: Path) -> dict[str, Any]:
    """Re-hash a version's files against its manifest and return the manifest; raises ThumbwiseError."""
    if not (folder / MANIFEST).is_file():
        raise _refused(f"{folder.name} is not complete (no {MANIFEST})")
    manifest = _json(_read(folder / MANIFEST), MANIFEST)
    _check_manifest(manifest)
    if manifest["version"] != folder.name:
        raise _refused(f"{MANIFEST} names another version")
    for name in (WEIGHTS, CONFIG):
        if sha256(_read(folder / name)) != manifest["files"][name]:
            raise _refused(f"{name} was changed after it was written")
    return manifest


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise _refused(f"{path.name} is missing or not a plain file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise _refused(f"{path.name} cannot be read ({error.strerror})") from error


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
