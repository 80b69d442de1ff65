"""Tokens a second of sampling with our attention and with transformers' own, for drafts and for chat replies.

    python tests/bench/training/generation.py [--pairs 3] [--quick]

The same prompts, seeds and weights in one process, by turns; nothing stops early, so that both sides have as many
tokens. About twelve minutes on two cores. Log-probabilities of both sides' first tokens are held together too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.extend(map(str, (Path(__file__).parents[2] / "support").iterdir()))

import kept

from thumbwise.base_model.prepare import prepare
from thumbwise.home import Home
from thumbwise.settings import Settings
from thumbwise.training.backbone.attention import GROUPED
from thumbwise.training.backbone.backbone import NO_ADAPTER, Backbone
from thumbwise.training.data.prompts import seed_prompts
from thumbwise.training.policy.rollouts import BATCH, Generated, generate

SIDES = (GROUPED, "sdpa")
LENGTHS = {"draft": (48, BATCH, 0.85), "chat": (256, BATCH // 2, 0.7)}
"""Tokens, replies together, and the part of transformers' time that ours may take."""


def sample(backbone: Backbone, side: str, tokens: int, replies: int) -> tuple[list[Generated], float]:
    """Replies of the base with the attention of `side`, and the seconds that they took."""
    prompts = [backbone.chat.prompt_ids(prompt.messages) for prompt in seed_prompts()[:replies]]
    with backbone.sampling(NO_ADAPTER) as model:
        model.set_attn_implementation(side)
        start = time.perf_counter()
        found = generate(
            model, prompts, max_tokens=tokens, temperature=0.7, stop_ids=frozenset(), pad_id=backbone.pad_id, seed=0
        )
    return found, time.perf_counter() - start


def compare(backbone: Backbone, pairs: int, tokens: int, replies: int) -> dict[str, Any]:
    """Both sides by turns: the median of the ratios of their times, theirs in seconds, and how far they differ."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    first: dict[str, list[float]] = {}
    for number in range(pairs):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            found, took = sample(backbone, side, tokens, replies)
            seconds[side].append(round(took, 2))
            first[side] = [reply.logprobs[1] for reply in found]  # the first that a single token's attention made
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*seconds.values(), strict=True))
    apart = max(abs(ours - theirs) for ours, theirs in zip(*first.values(), strict=True))
    return {"ratio": round(ratio, 3), "apart": apart, "seconds": seconds, "tokens": tokens, "replies": replies}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both lengths, with versions and bars."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.load(Home.find(Path(folder)) if args.quick else Home.find())
        if args.quick:
            from tiny_model import make_tiny_model

            model = make_tiny_model(Path(folder) / "tiny")
        else:
            model = prepare(Home.find(), settings.model).folder
        backbone = Backbone(model, settings.train)
    figures, bars = {}, []
    for name, (tokens, replies, limit) in LENGTHS.items():
        figures[name] = found = compare(backbone, 1 if args.quick else args.pairs, tokens, replies)
        bars.append(kept.bar(f"{name}: log-probabilities apart", found["apart"], "<=", 0.01))
        if not args.quick:  # two layers have as many key-value heads as query heads
            bars.append(kept.bar(f"{name}: time, times transformers'", found["ratio"], "<=", limit))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "seed": 0, "versions": versions}
    return {**about, "figures": figures, "bars": bars}


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    kept.report("generation", args, lambda: measure(args))


if __name__ == "__main__":
    main()
