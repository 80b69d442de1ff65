"""Checks, before a vLLM takes traffic, that it keeps versions apart which are in one batch.

vLLM 0.32's own code for adapters on CPU gives a request to the base model the weights of the last adapter slot if both
are in one batch, and reports no error. (`thumbwise.cpu_adapters` does not do that.) So the check fills every slot with
an adapter of random weights (rank 1). The base and all adapters answer a few contexts, first one request at a time and
then all at once. A vLLM that passed keeps one of these adapters under the name CHECKED, and is not checked again. Left
out: which version got whose weights.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from thumbwise.base_model.weights import block_modules
from thumbwise.cpu_adapters import TESTED
from thumbwise.engine.client import EngineClient
from thumbwise.engine.probes import distance
from thumbwise.errors import EngineFailed
from thumbwise.names import BASE, CONFIG, WEIGHTS

CHECKED = "thumbwise-checked"
TOP = 20
TOLERANCE = 0.3
"""Nats by which a version may answer differently in a batch. SmolLM2-135M in bfloat16: 0.00, and 1.65 if mixed."""
LEAST = 0.05
"""Nats by which an adapter must change at least one answer. There, each of four changed one by 2.5."""
CONTEXTS = tuple(tuple(range(start, start + 8)) for start in (10, 40, 70))


def random_adapter(shapes: Mapping[str, tuple[int, int]], folder: Path, seed: int) -> Path:
    """Write a PEFT adapter of rank 1 and random weights over layers of `shapes` (out, in); returns `folder`."""
    rng, weights = np.random.default_rng(seed), {}
    for name, (out, into) in shapes.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = rng.standard_normal((1, into), np.float32) / into**0.5
        weights[f"base_model.model.{name}.lora_B.weight"] = rng.standard_normal((out, 1), np.float32)
    folder.mkdir(parents=True)
    save_file(weights, folder / WEIGHTS)
    layers = sorted({name.rpartition(".")[2] for name in shapes})
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": layers, "bias": "none"}
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


async def check(client: EngineClient, model: Path, slots: int, scratch: Path) -> None:
    """Raise EngineFailed if base and adapters answer differently in one batch than alone, or all answer the same.

    `slots` is vLLM's max_loras; `model` the folder that it serves; `scratch` one that it can read.
    """
    if CHECKED in await client.adapters():
        return
    with tempfile.TemporaryDirectory(prefix=".check-", dir=scratch) as folder:
        shapes, run = block_modules(model), secrets.token_hex(4)
        adapters = [random_adapter(shapes, Path(folder) / f"check-{run}-{seed}", seed) for seed in range(slots)]
        loaded: list[str] = []
        try:
            for adapter in adapters:
                await client.load_adapter(adapter.name, adapter)
                loaded.append(adapter.name)
            await _compare(client, [BASE, *loaded])
        finally:
            for name in loaded:
                await client.unload_adapter(name)
        await client.load_adapter(CHECKED, adapters[0])


async def _compare(client: EngineClient, names: list[str]) -> None:
    asked = [(name, context) for context in CONTEXTS for name in names]
    alone = {pair: await client.next_token_logprobs(*pair, top=TOP) for pair in asked}
    for name in names[1:]:
        if max(distance(alone[BASE, context], alone[name, context]) for context in CONTEXTS) < LEAST:
            raise EngineFailed("This vLLM answers through an adapter as without one: policies cannot be served.")
    answers = await asyncio.gather(*(client.next_token_logprobs(*pair, top=3 * TOP) for pair in asked))
    worst = max(distance(alone[pair], answer) for pair, answer in zip(asked, answers, strict=True))
    if not worst <= TOLERANCE:
        raise EngineFailed(
            f"This vLLM mixes policies that are in one batch (an answer is {worst:.1f} nats from its own policy's): "
            f"use a version that thumbwise was tested with ({', '.join(TESTED)})."
        )
