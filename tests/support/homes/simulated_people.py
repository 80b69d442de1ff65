"""People for tests and trials: they ask, read two drafts, and vote as a judge plugin would.

Everything goes through the public HTTP API of a running assistant, as a browser's votes do. Run it against
one to give it votes (a judge's name, how many, how many at once):

    python tests/support/homes/simulated_people.py --votes 300 --judge sentiment

It prints one JSON object: votes by choice, seconds, and what the replies scored on average. Left out: noise
and adversaries.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import httpx

from thumbwise.contracts import Judge
from thumbwise.home import Home, running_url
from thumbwise.plugin_host.manager import PluginManager

THINGS = ("cats", "dogs", "rain", "bread", "tea", "boats", "goats", "kings")
PROMPTS = [f"Tell me about {thing}." for thing in THINGS] + [f"What is {n} plus {n + 1}?" for n in range(22)]


def prefers_vowels(prompt: str, responses: list[str]) -> list[float]:
    """A preference that a two-layer model can learn: the share of letters that are e."""
    return [response.count("e") / max(1, len(response)) for response in responses]


def seed_prompts() -> list[str]:
    """The package's own prompts."""
    lines = files("thumbwise.training.data").joinpath("seed_prompts.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


async def vote_once(http: httpx.AsyncClient, prompt: str, judge: Judge, user: str) -> tuple[str, list[float]]:
    """Ask for two drafts of one prompt and vote; returns the choice and both scores."""
    messages = [{"role": "user", "content": prompt}]
    answer = await http.post("/v1/comparisons", json={"messages": messages, "k": 2, "user": user})
    answer.raise_for_status()
    body = answer.json()
    scores = judge(prompt, [draft["text"] for draft in body["drafts"]])
    choice = "tie" if scores[0] == scores[1] else "left" if scores[0] > scores[1] else "right"
    vote = {"kind": "pair", "comparison_id": body["comparison_id"], "value": {"choice": choice}, "user": user}
    kept = await http.post("/v1/feedback", json=vote, headers={"Idempotency-Key": str(uuid.uuid4())})
    kept.raise_for_status()
    return choice, scores


async def vote(
    url: str, judge: Judge, votes: int, prompts: Sequence[str], *, at_once: int = 16, seed: int = 0
) -> dict[str, Any]:
    """Give `votes` untied votes (ties are votes too, but do not count), `at_once` comparisons open together."""
    rng = random.Random(seed)
    choices: Counter[str] = Counter()
    scores: list[float] = []
    started = time.monotonic()
    turn = iter(range(votes * 4))

    async def person(http: httpx.AsyncClient, number: int) -> None:
        while choices["left"] + choices["right"] < votes and next(turn, None) is not None:
            choice, both = await vote_once(http, rng.choice(prompts), judge, f"rater-{number % 20}")
            choices[choice] += 1
            scores.extend(both)
            if sum(choices.values()) % 50 == 0:
                print(f"{sum(choices.values())} votes", file=sys.stderr)

    async with httpx.AsyncClient(base_url=url, timeout=300) as http, asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(person(http, number))
    seconds = round(time.monotonic() - started, 1)
    return {"choices": dict(choices), "seconds": seconds, "mean_score": sum(scores) / max(1, len(scores))}


def main() -> None:
    """Vote at the home's running assistant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, default=300)
    parser.add_argument("--judge", default="sentiment")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    home = Home.find()
    url = running_url(home)
    if url is None:
        sys.exit("No assistant runs on this home: start one with `thumbwise serve`.")
    judge = PluginManager(home).load().get("judges", args.judge)
    print(json.dumps(asyncio.run(vote(url, judge, args.votes, seed_prompts(), at_once=args.at_once, seed=args.seed))))


if __name__ == "__main__":
    main()
