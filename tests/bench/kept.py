"""Results of the long benchmarks, kept in `results/` under a digest of what was measured, so that nothing runs twice.

The digest is over the code measured (for most, `training/` and `plugins/`), the settings that it goes by (defaults and
environment), the processor's number format and the arguments; older code's result stays until a new one of the same
arguments and format takes its place. What takes hours is kept in parts, from which a stopped measurement goes on, on
another machine too where they are committed. Quick forms are not kept.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch

from thumbwise import plugins, training
from thumbwise.home import write_durably
from thumbwise.settings import Settings
from thumbwise.system.processor import train_format

RESULTS = Path(__file__).parent / "results"
HOLDS = {">=": float.__ge__, "<=": float.__le__, ">": float.__gt__}


TRAINING = (plugins, training)
GOES_BY = {"model", "temperature", "max_tokens"}
"""Settings that may change a figure; those of serving alone do not."""
TRAINING_GOES_BY = GOES_BY | {"reward", "train", "gates", "chat_max_tokens"}


def number_format() -> str:
    """What the frozen weights are computed in, by settings and processor (quick forms say float32 for themselves)."""
    return train_format(Settings().train.dtype)


@functools.cache
def _code(folder: Path) -> str:
    """Read once: what is measured is the code as it was at the start, whatever is written there since."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".jsonl")]
    return "".join(f"{path.relative_to(folder.parent)}\n{path.read_text(encoding='utf-8')}" for path in files)


def digest(packages: Sequence[ModuleType]) -> str:
    """Twelve hex digits over the code of `packages` and the settings that it goes by."""
    text = "".join(_code(Path(str(package.__file__)).parent) for package in packages)
    goes_by = TRAINING_GOES_BY if training in packages else GOES_BY
    text += number_format() + Settings().model_dump_json(include=goes_by)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def bar(name: str, value: float, op: str, limit: float) -> dict[str, Any]:
    """One thing that must hold."""
    return {"name": name, "value": value, "op": op, "limit": limit, "holds": HOLDS[op](float(value), float(limit))}


def path_of(bench: str, args: argparse.Namespace, packages: Sequence[ModuleType]) -> Path:
    """Where the result of `bench` with `args` is kept; paths among the arguments do not count."""
    key = hashlib.sha256(json.dumps(_said(args)).encode()).hexdigest()[:6]
    return RESULTS / f"{bench}-{key}-{digest(packages)}.json"


def part(bench: str, args: argparse.Namespace, name: str, make: Callable[[], Any]) -> tuple[Any, float]:
    """What `make` returns (as JSON can say it), and the seconds that it took, now or before the measurement stopped."""
    path = path_of(bench, args, TRAINING).with_suffix("") / f"{name}.json"
    if not args.quick and path.exists():
        kept = json.loads(path.read_text())
        return kept["found"], kept["seconds"]
    started = time.monotonic()
    found = make()
    seconds = time.monotonic() - started
    if not args.quick:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, json.dumps({"found": found, "seconds": seconds}).encode())
    return found, seconds


def _said(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in sorted(vars(args).items()) if not isinstance(value, Path)}


def report(
    bench: str,
    args: argparse.Namespace,
    measure: Callable[[], dict[str, Any]],
    packages: Sequence[ModuleType] = TRAINING,
) -> NoReturn:
    """Print the result that is kept, or measure and keep it; exit status 0 only where every bar holds.

    `packages` hold the code measured.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else servers that it started stay
    path = path_of(bench, args, packages)
    if args.quick or not path.exists():
        about = {"bench": bench, "arguments": _said(args), "number format": number_format()}
        about["threads"] = torch.get_num_threads()
        result = about | measure()
        if not args.quick:
            _keep(path, result)
    else:
        result = json.loads(path.read_text())
        print(f"measured before: {path.name}", file=sys.stderr)
    print(json.dumps(result))
    sys.exit(0 if all(found["holds"] for found in result["bars"]) else 1)


def _keep(path: Path, result: dict[str, Any]) -> None:
    """Write `result`, and delete its parts and older code's: else a mean over seeds would have this one twice."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    bench_and_arguments = path.name.rpartition("-")[0]
    for other in path.parent.glob(f"{bench_and_arguments}-*.json"):
        if other != path and json.loads(other.read_text())["number format"] == result["number format"]:
            other.unlink()
