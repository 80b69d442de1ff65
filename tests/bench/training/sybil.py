"""What one client that invents people costs the reward model, on this build and on an older one.

    python tests/bench/training/sybil.py [--seeds 6] [--before 7d0affc] [--quick]

The base model answers prompts of the rehearsal, and a judge that likes long words orders pairs of its replies. 600
votes by 20 browsers, of which a sixth is flipped, stand alone; beside 1,200 contrary votes of one client without a key
that goes by 40 names; and beside those of a client that takes a new cookie every 30 votes. Accuracy is over pairs of
replies to held-out prompts, judged without noise. A seed draws flips and voters; the pairs are the same. Each build
fits its own reward model, in a process of its own, from the same hidden states. Half an hour on two cores.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.extend(map(str, (Path(__file__).parents[2] / "support").iterdir()))

import kept
from build_at import build_at, environment
from tiny_model import make_tiny_model

from thumbwise.base_model.prepare import prepare
from thumbwise.contracts import RunContext, Sample
from thumbwise.feedback.records import prompt_sha256
from thumbwise.home import Home
from thumbwise.plugins.bradley_terry import BradleyTerry
from thumbwise.settings import Settings
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.data.prompts import rehearsal_prompts, rehearsal_split
from thumbwise.training.policy.rollouts import BATCH, InProcess
from thumbwise.training.rehearsal.measure import keep
from thumbwise.training.rehearsal.measure import kept as kept_samples
from thumbwise.training.rehearsal.win_rates import by_prompt, pair_accuracy

FIT = Path(__file__).parent / "sybil_parts" / "fit.py"
ASKED, TESTED, EACH = 62, 24, 5
"""Prompts voted on, prompts held out, and replies to each; all pairs of these are asked about."""
BROWSERS, VOTES, NOISE = 20, 600, 1 / 6
NAMES, CONTRARY = 40, 1200
CASES = ("people", "client", "cookies")


def judge(text: str) -> float:
    """Mean letters a word."""
    words = text.split()
    return sum(map(len, words)) / len(words) if words else 0.0


@dataclass(frozen=True)
class Replies:
    """Replies to the prompts voted on and to held-out ones, by prompt; `features` is the file of their states."""

    voted: list[list[Sample]]
    test: list[list[Sample]]
    features: Path


def replies(args: argparse.Namespace, folder: Path) -> Replies:
    """Sample the replies and read their states, in pieces that are kept in `folder`."""
    home = Home.find(folder / "home") if args.quick else Home.find()
    settings = Settings.load(home)
    voted, held_out = rehearsal_split(rehearsal_prompts())
    voted, held_out = (voted[:30], held_out[:10]) if args.quick else (voted[:ASKED], held_out[:TESTED])
    train = settings.train.model_copy(update={"dtype": "float32"} if args.quick else {})
    model = make_tiny_model(folder / "tiny") if args.quick else prepare(home, settings.model).folder
    backbone = Backbone(model, train)
    context = RunContext(backbone, train, settings.temperature, settings.max_tokens, (), (), folder)
    reader = BradleyTerry(context)
    asked = [prompt for prompt in voted for _ in range(EACH)] + [p for p in held_out for _ in range(EACH)]
    samples: list[Sample] = []
    pieces: list[Any] = []
    for number, start in enumerate(range(0, len(asked), BATCH)):
        path, states = folder / f"replies-{number}.jsonl", folder / f"states-{number}.npz"
        part = asked[start : start + BATCH]
        if not states.exists() or [s.prompt for s in kept_samples(path)] != [prompt.messages for prompt in part]:
            keep(path, InProcess(context).sample(part, None, number))
            sums, lasts, counts = backbone.pooled(kept_samples(path), reader.layers, reader.last_layers)
            np.savez(folder / "part.npz", sums=sums, lasts=lasts, counts=counts)
            (folder / "part.npz").rename(states)
        samples += kept_samples(path)
        pieces.append(np.load(states))
        print(f"{len(samples)} of {len(asked)} replies", file=sys.stderr)
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in ("sums", "lasts", "counts")}
    keys = [json.dumps([sample.prompt_ids, sample.response_ids]) for sample in samples]
    facts = {"layers": reader.layers, "last_layers": reader.last_layers, "depth": len(backbone.layers)}
    np.savez(folder / "features.npz", keys=keys, stop_ids=sorted(backbone.stop_ids), **facts, **joined)  # type: ignore[arg-type]
    for row, sample in enumerate(samples):
        samples[row] = replace(sample, meta={"id": f"reply-{row}"})
    count = len(voted) * EACH
    rows = by_prompt([EACH] * len(voted), samples[:count]), by_prompt([EACH] * len(held_out), samples[count:])
    return Replies([list(row) for row in rows[0]], [list(row) for row in rows[1]], folder / "features.npz")


def pairs_of(found: Replies, count: int) -> list[tuple[Sample, Sample]]:
    """`count` pairs of replies to one prompt, the better one first; their order is drawn once."""
    pairs = []
    for row in found.voted:
        for one, other in itertools.combinations(row, 2):
            if judge(one.response) != judge(other.response):
                pairs.append((one, other) if judge(one.response) > judge(other.response) else (other, one))
    random.Random("pairs").shuffle(pairs)
    if len(pairs) < count:
        sys.exit(f"There are only {len(pairs)} pairs of replies of which one is better: ask for fewer votes.")
    return pairs[:count]


def snapshot(pairs: Sequence[tuple[Sample, Sample]], case: str, seed: int, contrary: int) -> bytes:
    """The lines of a snapshot: people's votes, and the client's in the cases that have one.

    Builds of before people were told apart go by the name; the client's is that of all browsers where it is one. Each
    of its cookies is younger than a day, whatever their number.
    """
    rng = random.Random(f"votes:{seed}")
    lines = []

    def vote(pair: tuple[Sample, Sample], wrong: bool, user: str, person: str) -> None:
        sides = list(pair)
        turned = rng.random() < 0.5
        choice = "left" if wrong == turned else "right"
        left, right = (reply_of(side) for side in (sides[::-1] if turned else sides))
        messages = list(pair[0].prompt)
        lines.append(
            {
                "type": "comparison", "id": f"vote-{len(lines)}", "user": user, "person": person, "choice": choice,
                "strength": 1, "left": left, "right": right, "prompt": messages, "group": prompt_sha256(messages),
            }
        )  # fmt: skip

    for pair in pairs:
        vote(pair, rng.random() < NOISE, "local", f"browser:{rng.randrange(BROWSERS)}")
    for number in range(contrary if case != "people" else 0):
        user, person = (f"name-{number % NAMES}", "programs") if case == "client" else ("local", "browser:new")
        vote(rng.choice(pairs), True, user, person)
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def reply_of(sample: Sample) -> dict[str, Any]:
    """A reply as a snapshot has it."""
    return {
        "id": sample.meta["id"], "text": sample.response, "prompt_ids": list(sample.prompt_ids),
        "response_ids": list(sample.response_ids), "finish_reason": sample.finish_reason,
        "policy_version": sample.policy_version, "sampling": {"temperature": 0.7, "top_p": 1.0, "max_tokens": 48},
    }  # fmt: skip


def fitted(build: Path | None, found: Replies, pairs: Sequence[tuple[Sample, Sample]], seed: int, contrary: int) -> Any:
    """What a build makes of every case of one draw: accuracy, votes heard, whom it doubts."""
    with tempfile.TemporaryDirectory() as name:
        paths = {case: Path(name) / f"{case}.jsonl" for case in CASES}
        for case, path in paths.items():
            path.write_bytes(snapshot(pairs, case, seed, contrary))
        test = [[sample.prompt_ids, sample.response_ids] for row in found.test for sample in row]
        job = {"features": str(found.features), "test": test, "seed": seed}
        job["snapshots"] = {case: str(path) for case, path in paths.items()}
        done = subprocess.run(
            [sys.executable, str(FIT)], input=json.dumps(job), env=environment(build), stdout=subprocess.PIPE,
            text=True, check=True,
        )  # fmt: skip
    said = json.loads(done.stdout)
    clean = [[judge(sample.response) for sample in row] for row in found.test]
    for fit in said.values():
        given = fit.pop("scores", None)  # a run that ended has none, and is worth a coin
        fit["accuracy"] = 0.5
        if given is not None:
            fit["accuracy"] = round(pair_accuracy(clean, by_prompt([EACH] * len(clean), given)).rate, 4)
    return said


def main() -> None:
    """Measure, print one JSON object, and exit 0 where the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6, help="draws of flips and voters")
    parser.add_argument("--before", default="7d0affc", help="commit of the older build")
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    kept.report("sybil", args, lambda: run(args))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Figures and the bar."""
    builds = {"now": None, "before": build_at(args.before)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not args.quick:
            folder = Path(platformdirs.user_cache_dir("thumbwise", False)) / "sybil" / kept.number_format()
            folder.mkdir(parents=True, exist_ok=True)
        found = replies(args, folder)
        votes, contrary, seeds = (120, 240, 1) if args.quick else (VOTES, CONTRARY, args.seeds)
        pairs = pairs_of(found, votes)
        each: dict[str, list[Any]] = {build: [] for build in builds}
        for seed, (build, path) in itertools.product(range(seeds), builds.items()):
            make = functools.partial(fitted, path, found, pairs, seed, contrary)
            each[build].append(kept.part("sybil", args, f"{seed}-{build}", make)[0])
            print(seed, build, each[build][-1], file=sys.stderr)
    figures: dict[str, Any] = {
        f"{build}: {case}": round(statistics.mean(fit[case]["accuracy"] for fit in fits), 4)
        for build, fits in each.items()
        for case in CASES
    }
    cost = {case: round(figures["now: people"] - figures[f"now: {case}"], 4) for case in CASES[1:]}
    bars = [] if args.quick else [kept.bar("accuracy lost to a client with 40 names", cost["client"], "<=", 0.03)]
    figures |= {f"now: lost to {case}": value for case, value in cost.items()}
    figures |= {
        f"before: lost to {c}": round(figures["before: people"] - figures[f"before: {c}"], 4) for c in CASES[1:]
    }
    about: dict[str, Any] = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "judge": "letters a word"}
    about |= {"versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")}}
    return {**about, "figures": figures | {"each": each}, "bars": bars}


if __name__ == "__main__":
    main()
