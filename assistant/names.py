"""Names that several rooms must agree on, each written once: versions and their files, runs and their record."""

from __future__ import annotations

import re

BASE = "policy-0000"
"""The base model as a version, and the name under which vLLM serves it."""

VERSION = re.compile(r"policy-(\d{4,})-([0-9a-f]{12})")
"""A version's name: the number of its run, and the first 12 hex digits of the SHA-256 of its weights."""

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"
"""The files of a version. WEIGHTS and CONFIG are PEFT's names, which vLLM looks for. MANIFEST is written last."""

RUN_RECORD = "run.json"
"""What a training run was given, in its folder."""


def version_name(number: int, weights_sha256: str) -> str:
    """The name of the version with these weights that run `number` makes."""
    return f"policy-{number:04d}-{weights_sha256[:12]}"
