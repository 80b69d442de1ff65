"""How much a reward model learns from noisy votes, and what contrary raters cost it, with defences off and on.

    python tests/bench/training/reward_model.py [--judge sentiment] [--votes 600] [--noise 0.16] [--seeds 5] [--quick]

The base model answers each prompt of the rehearsal in pairs; a judge's votes on them are flipped with the noise, and
20 raters share them. Accuracy is over pairs with unequal scores of held-out prompts, judged without noise. The same
pairs carry every case: clean votes, noisy ones, and noisy ones of which a fifth of the raters vote against the judge
always, with rater weights and cap off and on. A seed draws votes, noise, raters; replies are sampled once. More than
half an hour on two cores.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.extend(map(str, (Path(__file__).parents[2] / "support").iterdir()))

import kept
from tiny_model import make_tiny_model

from thumbwise.base_model.prepare import prepare
from thumbwise.contracts import Comparison, Labels, Prompt, RunContext, Sample
from thumbwise.home import Home
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.plugins.bradley_terry import BradleyTerry
from thumbwise.settings import Settings
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.data.prompts import rehearsal_prompts, rehearsal_split
from thumbwise.training.policy.rollouts import InProcess
from thumbwise.training.rehearsal.raters import judge_scores
from thumbwise.training.rehearsal.win_rates import by_prompt, pair_accuracy

RATERS = 20
HELD_OUT = 8
"""Replies to each held-out prompt."""
Scorer = Callable[[Prompt, Sequence[str]], list[float]]


def remember(backbone: Backbone) -> None:
    """Compute each reply's hidden states once, however many fits read them."""
    compute, kept = backbone.pooled, dict[tuple[Any, ...], tuple[Any, ...]]()

    def pooled(samples: Sequence[Sample], layers: Sequence[int], last: Sequence[int] = ()) -> tuple[Any, ...]:
        keys = [(s.prompt_ids, s.response_ids, len(last)) for s in samples]
        missing = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in kept}
        if missing:
            kept.update(zip(missing, zip(*compute(list(missing.values()), layers, last), strict=True), strict=True))
        return tuple(np.stack(column) for column in zip(*(kept[key] for key in keys), strict=True))

    backbone.pooled = pooled  # type: ignore[method-assign]


def pairs_of(context: RunContext, prompts: Sequence[Prompt], count: int, judge: Scorer) -> list[tuple[Any, ...]]:
    """`count` pairs of replies with unequal scores: (prompt, left, right, left is better)."""
    assert context.rollouts is not None
    found: list[tuple[Any, ...]] = []
    batch = 0
    while len(found) < count:
        asked = [prompt for prompt in prompts for _ in range(2)]
        replies = context.rollouts.sample(asked, None, batch)
        for n, prompt in enumerate(prompts):
            left, right = replies[2 * n : 2 * n + 2]
            scores = judge(prompt, [left.response, right.response])
            if scores[0] != scores[1]:
                found.append((prompt, left, right, scores[0] > scores[1]))
        batch += 1
        print(f"{len(found)} of {count} pairs", file=sys.stderr)
    return found[:count]


def labels(pairs: Sequence[tuple[Any, ...]], seed: int, noise: float, adversarial: float) -> Labels:
    """Votes of RATERS raters on `pairs`."""
    rng = random.Random(seed)
    made = []
    for number, (prompt, left, right, better) in enumerate(pairs):
        rater = rng.randrange(RATERS)
        wrong = rng.random() < noise or rater < adversarial * RATERS
        choice: Any = "left" if better != wrong else "right"
        made.append(Comparison(str(number), f"rater-{rater}", prompt.messages[-1]["content"], left, right, choice))
    return Labels(tuple(made))


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", default="sentiment")
    parser.add_argument("--votes", type=int, default=600)
    parser.add_argument("--noise", type=float, default=0.16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    kept.report("reward_model", args, lambda: run(args))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Figures and bars."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home.find() if not args.quick else Home.find(Path(folder) / "home")
        settings = Settings.load(home)
        if args.quick:
            args.judge, args.votes, args.seeds = "concise", 120, 1
        scorer = PluginManager(home).load().get("judges", args.judge)
        judge: Scorer = lambda prompt, replies: judge_scores(args.judge, scorer, prompt, replies)  # noqa: E731
        model = make_tiny_model(Path(folder) / "tiny") if args.quick else prepare(home, settings.model).folder
        train = settings.train.model_copy(update={"dtype": "float32"} if args.quick else {})
        backbone = Backbone(model, train)
        remember(backbone)
        context = RunContext(backbone, train, settings.temperature, settings.max_tokens, (), (), Path(folder))
        context = replace(context, rollouts=InProcess(context))
        figures = measure(context, args, judge)
    loss = {key: figures["noisy"] - figures[key] for key in ("adversarial_off", "adversarial_on")}
    loss["adversarial_on"] = figures["noisy_on"] - figures["adversarial_on"]
    lost = loss["adversarial_on"] / max(loss["adversarial_off"], 1e-9)
    bars = [] if args.quick else [
        kept.bar("accuracy", figures["noisy_on"], ">=", 0.78),
        kept.bar("lost to noise", figures["clean"] - figures["noisy_on"], "<=", 0.05),
        kept.bar("lost to adversaries, of what is lost undefended", lost, "<=", 0.5),
    ]  # fmt: skip
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "judge": args.judge}
    about |= {"votes": args.votes, "noise": args.noise, "seeds": args.seeds, "versions": versions}
    return {**about, "figures": figures, "bars": bars}


def measure(context: RunContext, args: argparse.Namespace, judge: Scorer) -> dict[str, Any]:
    """Mean accuracy of each case over the seeds, and every seed's."""
    assert context.rollouts is not None
    voted, held_out = rehearsal_split(rehearsal_prompts())
    pairs = pairs_of(context, voted, args.votes + args.votes // 2, judge)
    test = context.rollouts.sample([prompt for prompt in held_out for _ in range(HELD_OUT)], None, 10_001)
    counts = [HELD_OUT] * len(held_out)
    scores = [
        judge(prompt, [s.response for s in row]) for prompt, row in zip(held_out, by_prompt(counts, test), strict=True)
    ]
    cases = {
        "clean": (0.0, 0.0, True), "noisy": (args.noise, 0.0, False), "noisy_on": (args.noise, 0.0, True),
        "adversarial_off": (args.noise, 0.2, False), "adversarial_on": (args.noise, 0.2, True),
    }  # fmt: skip
    each: dict[str, list[float]] = {name: [] for name in cases}

    def accuracy(votes: Labels, seed: int, defended: bool) -> float:
        train = context.train.model_copy(update={"rm_rater_weights": defended})
        model = BradleyTerry(replace(context, train=train))
        model.fit(votes, seed)
        rewards = by_prompt(counts, model.score(test).value.tolist())
        return round(pair_accuracy(scores, rewards).rate, 4)

    for seed in range(args.seeds):
        drawn = random.Random(f"votes:{seed}").sample(pairs, args.votes)
        for name, (noise, adversarial, defended) in cases.items():
            make = functools.partial(accuracy, labels(drawn, seed, noise, adversarial), seed, defended)
            each[name].append(kept.part("reward_model", args, f"{seed}-{name}", make)[0])
        print({name: values[-1] for name, values in each.items()}, file=sys.stderr)
    figures: dict[str, Any] = {name: round(statistics.mean(values), 4) for name, values in each.items()}
    return figures | {"each": each, "test_pairs": pair_accuracy(scores, by_prompt(counts, [0.0] * len(test))).pairs}


if __name__ == "__main__":
    main()
