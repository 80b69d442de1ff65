"""What accounts that were made in one minute cost the reward model.

    python tests/bench/training/sybil_accounts.py [--seeds 6] [--quick]

Replies, judge (long words) and hidden states are those of `sybil.py`. 20 settled accounts give 30 votes each, of which
a sixth is flipped. They stand alone; beside 30 young accounts with 30 contrary votes each; and beside the same 30 where
no account counts as young. Two cases say what honest people lose: a team in which everybody is young, and one of which
a half is young. Accuracy is over pairs of replies to held-out prompts, judged without noise. A draw has its own flips
and voters. Five minutes on one core, once the hidden states are there.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import platformdirs

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.extend(map(str, (Path(__file__).parents[2] / "support").iterdir()))

import kept
import sybil
from build_at import environment
from sybil import FIT, NOISE, Replies, judge, pairs_of, replies, reply_of

from thumbwise.contracts import Sample
from thumbwise.feedback.records import prompt_sha256
from thumbwise.training.rehearsal.win_rates import by_prompt, pair_accuracy

Pair = tuple[Sample, Sample]
PEOPLE, MADE, EACH = 20, 30, 30
"""Honest accounts, accounts of the attack, and votes of each."""
CASES: dict[str, tuple[int, bool]] = {
    "settled": (0, False), "attack": (0, True), "attack, all counted alike": (0, True),
    "young team": (PEOPLE, False), "half of the team young": (PEOPLE // 2, False),
}  # fmt: skip
"""How many of the honest accounts are young, and whether there is an attack."""


def lines(pairs: Sequence[Pair], case: str, seed: int, each: int) -> Iterator[dict[str, Any]]:
    """The lines of a snapshot. The honest votes are the same in every case of one seed."""
    rng, (honest_young, attacked) = random.Random(f"accounts:{seed}"), CASES[case]
    votes = [(n % PEOPLE, rng.random() < NOISE, pair, rng.random() < 0.5) for n, pair in enumerate(pairs)]
    if attacked:
        turns = range(MADE * each)
        votes += [(PEOPLE + n % MADE, True, rng.choice(pairs), rng.random() < 0.5) for n in turns]
    for number, (account, wrong, pair, turned) in enumerate(votes):
        left, right = (reply_of(side) for side in (pair[::-1] if turned else pair))
        messages, name = list(pair[0].prompt), f"usr_{account:02d}"
        line = {
            "type": "comparison", "id": f"vote-{number}", "user": name, "person": name, "strength": 1,
            "choice": "left" if wrong == turned else "right", "left": left, "right": right, "prompt": messages,
            "group": prompt_sha256(messages),
        }  # fmt: skip
        if case != "attack, all counted alike" and (account >= PEOPLE or account < honest_young):
            line["young"] = True
        yield line


def accuracies(found: Replies, pairs: Sequence[Pair], seed: int, each: int) -> dict[str, Any]:
    """Accuracy of the reward model of every case of one draw, and whom it doubts."""
    with tempfile.TemporaryDirectory() as name:
        paths = {case: Path(name) / f"{number}.jsonl" for number, case in enumerate(CASES)}
        for case, path in paths.items():
            path.write_text("".join(json.dumps(line) + "\n" for line in lines(pairs, case, seed, each)))
        test = [[sample.prompt_ids, sample.response_ids] for row in found.test for sample in row]
        job = {"features": str(found.features), "test": test, "seed": seed}
        job["snapshots"] = {case: str(path) for case, path in paths.items()}
        done = subprocess.run(
            [sys.executable, str(FIT)], input=json.dumps(job), env=environment(None), stdout=subprocess.PIPE,
            text=True, check=True,
        )  # fmt: skip
    clean, said = [[judge(sample.response) for sample in row] for row in found.test], {}
    for case, fit in json.loads(done.stdout).items():
        given = fit.get("scores")  # a round that ended has none, and is worth a coin
        rate = 0.5 if given is None else pair_accuracy(clean, by_prompt([sybil.EACH] * len(clean), given)).rate
        said[case] = {"accuracy": round(rate, 4), "doubted": len(fit.get("doubted", ())), "ended": fit.get("ended")}
    return said


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Figures and the bar."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not args.quick:
            folder = Path(platformdirs.user_cache_dir("thumbwise", False)) / "sybil" / kept.number_format()
            folder.mkdir(parents=True, exist_ok=True)
        found = replies(args, folder)
        seeds, each = (1, 6) if args.quick else (args.seeds, EACH)
        pairs, draws = pairs_of(found, PEOPLE * each), []
        for seed in range(seeds):
            make: Callable[[], Any] = functools.partial(accuracies, found, pairs, seed, each)
            draws.append(kept.part("sybil_accounts", args, str(seed), make)[0])
            print(seed, draws[-1], file=sys.stderr)
    mean = {case: round(statistics.mean(draw[case]["accuracy"] for draw in draws), 4) for case in CASES}
    lost = {f"lost: {case}": round(mean["settled"] - mean[case], 4) for case in CASES if case != "settled"}
    bar = kept.bar("accuracy lost to 30 accounts made at once", lost["lost: attack"], "<=", 0.03)
    about: dict[str, Any] = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "judge": "letters a word"}
    about |= {"versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")}}
    return {**about, "figures": {**mean, **lost, "draws": draws}, "bars": [] if args.quick else [bar]}


def main() -> None:
    """Measure, print one JSON object, and exit 0 where the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6, help="draws of flips and voters")
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    kept.report("sybil_accounts", args, lambda: run(args))


if __name__ == "__main__":
    main()
