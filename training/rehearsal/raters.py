"""The people of a rehearsal: raters with ids of their own who ask, read and vote through the API.

The judge scores the drafts; the vote follows the scores, and is flipped with the probability `noise`. An adversary
always votes against the judge. Every vote is noted in a file before it is sent, under an Idempotency-Key made from its
number. So a rehearsal that was cut off continues without losing or doubling a vote.

What raters do depends only on the seed. What the assistant samples does not depend on it, so two rehearsals with one
seed have the same people, not the same drafts.

Left out: raters who disagree about what is good (one judge stands for all of them).
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from thumbwise.contracts import Judge, Prompt
from thumbwise.errors import ThumbwiseError
from thumbwise.training.rehearsal.api_client import AT_ONCE, Api

DRAWS = 4
"""The number of pairs of drafts that a rater looks at before calling it a tie."""
Kind = Literal["pair", "thumb", "rank"]


@dataclass(frozen=True)
class Voting:
    """How people vote. `noise` and `adversarial` are shares in [0, 1]; `votes` are feedback items a round."""

    kind: Kind = "pair"
    votes: int = 300
    noise: float = 0.0
    rank_k: int = 4
    raters: int = 20
    adversarial: float = 0.0
    seed: int = 0

    @property
    def wrong(self) -> float:
        """The share of votes that go against the judge."""
        return self.adversarial + (1 - self.adversarial) * self.noise


@dataclass(frozen=True)
class Rater:
    """One of the people. `offset` is how far their threshold for a thumb lies above the bar, in deviations."""

    id: str
    adversary: bool
    offset: float


@dataclass(frozen=True)
class Bar:
    """Median and deviation of the judge's scores of start's replies. They set the thresholds of thumbs."""

    median: float
    deviation: float


@dataclass(frozen=True)
class Opinion:
    """A vote before it is sent: the body of `POST /v1/feedback`, and the scores that it is based on."""

    body: dict[str, Any]
    scores: tuple[float, ...]
    wrong: bool


def judge_scores(name: str, judge: Judge, prompt: Prompt, responses: Sequence[str]) -> list[float]:
    """The judge's score of each response. Raises ThumbwiseError if the plugin fails or gives no numbers."""
    question = prompt.messages[-1]["content"]
    try:
        scores = [float(score) for score in judge(question, list(responses))]
    except Exception as error:
        raise ThumbwiseError(
            f"The judge {name} failed ({type(error).__name__}: {error}): fix the plugin that brings it."
        ) from error
    if len(scores) != len(responses) or not all(math.isfinite(score) for score in scores):
        raise ThumbwiseError(
            f"The judge {name} must return one finite number for each of {len(responses)} responses, and returned "
            f"{str(scores)[:100]}: fix the plugin that brings it."
        )
    return scores


def bar(scores: Sequence[float]) -> Bar:
    """The bar between thumbs up and thumbs down, from the judge's scores of start's replies."""
    return Bar(statistics.median(scores), statistics.pstdev(scores))


def make_raters(voting: Voting) -> list[Rater]:
    """`voting.raters` people, the first ones adversaries. Thresholds are normal with half a deviation."""
    rng = random.Random(f"raters:{voting.seed}")
    against = round(voting.adversarial * voting.raters)
    return [Rater(f"rater-{n:02d}", n < against, rng.gauss(0.0, 0.5)) for n in range(voting.raters)]


def choose(scores: Sequence[float], wrong: bool) -> str:
    """A pair's vote: left, right, or tie if both score the same."""
    if scores[0] == scores[1]:
        return "tie"
    return "left" if (scores[0] > scores[1]) != wrong else "right"


def tiers(scores: Sequence[float], wrong: Callable[[], bool]) -> list[list[int]]:
    """A ranking, best tier first, by a sort whose comparisons may be `wrong`. Neighbours that tie share a tier."""

    def compare(a: int, b: int) -> int:
        if scores[a] == scores[b]:
            return 0
        return 1 if (scores[a] < scores[b]) != wrong() else -1

    order = sorted(range(len(scores)), key=functools.cmp_to_key(compare))
    found = [[order[0]]]
    for index in order[1:]:
        if scores[index] == scores[found[-1][-1]]:
            found[-1].append(index)
        else:
            found.append([index])
    return found


class Crowd:
    """Gives one round's votes. The file `notes` says which ones were given."""

    def __init__(
        self, api: Api, voting: Voting, judge: Callable[[Prompt, Sequence[str]], list[float]],
        prompts: Sequence[Prompt], number: int, notes: Path, threshold: Bar | None = None,
    ) -> None:  # fmt: skip
        self.api, self.voting, self.judge, self.number = api, voting, judge, number
        self.threshold = threshold
        self.raters = make_raters(voting)
        self.prompts = list(prompts)
        random.Random(f"prompts:{voting.seed}:{number}").shuffle(self.prompts)
        self.notes = notes

    async def vote(self, done: Callable[[int], None] = lambda n: None) -> int:
        """Give the votes of the round that are missing, AT_ONCE at a time. Returns how many there are."""
        given = _read(self.notes)
        finished = sum(note["done"] for note in given.values())
        numbers = iter([n for n in range(self.voting.votes) if n not in given or not given[n]["done"]])
        done(finished)
        with self.notes.open("a") as file:
            file.write("\n")  # ends a line that a kill cut short

            async def work(numbers: Iterator[int]) -> None:
                nonlocal finished
                for n in numbers:
                    note = given.get(n) or self._note(n, await self._opinion(n))
                    _write(file, note)
                    await self.api.vote(f"round-{self.number}-vote-{n}", note["body"])
                    _write(file, note | {"done": True})
                    finished += 1
                    done(finished)

            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(work(numbers))
        return int(finished)

    async def _opinion(self, n: int) -> Opinion:
        """Ask, read and judge vote number `n`."""
        rng = random.Random(f"vote:{self.voting.seed}:{self.number}:{n}")
        rater, prompt = rng.choice(self.raters), self.prompts[n % len(self.prompts)]
        votes = {"pair": self._pair, "thumb": self._thumb, "rank": self._rank}
        body, scores, wrong = await votes[self.voting.kind](rater, prompt, rng)
        return Opinion({"kind": self.voting.kind, "user": rater.id, **body}, tuple(scores), wrong)

    def _wrong(self, rater: Rater, rng: random.Random) -> bool:
        return rater.adversary or rng.random() < self.voting.noise

    async def _pair(self, rater: Rater, prompt: Prompt, rng: random.Random) -> tuple[dict[str, Any], list[float], bool]:
        for _ in range(DRAWS):
            comparison, drafts = await self.api.compare(prompt.messages, rater.id, 2)
            scores = self.judge(prompt, [text for _, text in drafts])
            if scores[0] != scores[1]:
                break
        wrong = self._wrong(rater, rng)
        return {"comparison_id": comparison, "value": {"choice": choose(scores, wrong)}}, scores, wrong

    async def _thumb(
        self, rater: Rater, prompt: Prompt, rng: random.Random
    ) -> tuple[dict[str, Any], list[float], bool]:
        assert self.threshold is not None
        message_id, text = await self.api.ask(prompt.messages, rater.id)
        scores = self.judge(prompt, [text])
        wrong = self._wrong(rater, rng)
        up = (scores[0] > self.threshold.median + rater.offset * self.threshold.deviation) != wrong
        return {"message_id": message_id, "value": "up" if up else "down"}, scores, wrong

    async def _rank(self, rater: Rater, prompt: Prompt, rng: random.Random) -> tuple[dict[str, Any], list[float], bool]:
        comparison, drafts = await self.api.compare(prompt.messages, rater.id, self.voting.rank_k)
        scores = self.judge(prompt, [text for _, text in drafts])
        ranked = tiers(scores, lambda: self._wrong(rater, rng))
        value = {"tiers": [[drafts[index][0] for index in tier] for tier in ranked]}
        right = [scores[tier[0]] for tier in ranked]
        return {"comparison_id": comparison, "value": value}, scores, right != sorted(right, reverse=True)

    @staticmethod
    def _note(n: int, opinion: Opinion) -> dict[str, Any]:
        return {"n": n, "body": opinion.body, "scores": opinion.scores, "wrong": opinion.wrong, "done": False}


def _write(file: Any, note: dict[str, Any]) -> None:
    file.write(json.dumps(note) + "\n")
    file.flush()


def _read(path: Path) -> dict[int, dict[str, Any]]:
    """The last note of every vote. A line that a kill cut short does not count."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text().split("\n") if path.exists() else ():
        try:
            note = json.loads(line)
        except ValueError:
            continue
        found[note["n"]] = note
    return found


def mean_scores(path: Path) -> list[float]:
    """The judge's mean score of the replies of each vote, in the order of the votes' numbers."""
    return [statistics.mean(note["scores"]) for _, note in sorted(_read(path).items())]
