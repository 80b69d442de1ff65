"""How often luck passes a worse policy through the gates, and refuses one that is as good, by simulation.

    python tests/bench/training/gates.py [--quick]

A home begins with 100 votes, gets 10 more each day, and asks the gate rm_accuracy every night for 90 nights. Its reward
model is a ridge regression on 24 features, chosen anew each night among four strengths; votes come in conversations of
one to three, which share some of the features. It knows nothing where the votes are a coin's. A "walk" is a home whose
votes are foretold by a coin, and where it is right on 60%, by one that falls so. A round asks both versions 48 prompts
four times, at a draft's and at chat's length, and the gates of finish rate, length and repetition about them. "Before"
are the rules of commit 7d0affc on the same draws. NumPy only; two minutes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

import kept

from thumbwise.contracts import Evidence, Sample
from thumbwise.plugins import gates
from thumbwise.settings.gates import GateSettings
from thumbwise.training.data.snapshot import folds
from thumbwise.training.evaluation.intervals import clustered_mean
from thumbwise.training.evaluation.replies import finish_rate, grams, mean_length, repetition
from thumbwise.training.reward.prequential import prequential_accuracy, prequential_splits

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
NIGHTS = range(100, 1000, 10)
ASKED = 300
FEATURES, STRENGTHS = 24, (3e-3, 3e-2, 3e-1, 3.0)
SIGNAL = 0.77
"""With it 60% of ASKED votes are foretold in cross-validation."""
Z = 1.28
"""Standard errors that the rules of before took off."""
PROMPTS, EACH = 48, 4


@dataclass(frozen=True)
class Home:
    """Votes in the order in which they were given: features of their replies' difference, outcome (-1, 1), talk."""

    features: Array
    outcome: Array
    talk: NDArray[np.int64]

    @classmethod
    def drawn(cls, rng: np.random.Generator, votes: int, signal: float) -> Home:
        """A home of so many votes, which follow a taste by so much (0: not at all)."""
        talk = np.repeat(np.arange(votes), rng.integers(1, 4, votes))[:votes]
        size = np.arange(1, FEATURES + 1) ** -0.5
        features = (rng.normal(size=(votes, FEATURES)) + 0.7 * rng.normal(size=(votes, FEATURES))[talk]) * size
        taste = features @ (rng.normal(size=FEATURES) * size**0.5)
        likely = 1 / (1 + np.exp(-signal * taste / taste.std()))
        return cls(features, np.where(rng.random(votes) < likely, 1.0, -1.0), talk)

    def until(self, votes: int) -> Home:
        """The home as it was then; features are scaled by what there was."""
        features = self.features[:votes]
        return Home(features / features.std(0) / FEATURES**0.5, self.outcome[:votes], self.talk[:votes])

    def head(self, which: Bools) -> Array:
        """A ridge regression on these votes, of the strength that foretells each best by the others."""
        x, y = self.features[which], self.outcome[which]
        values, vectors = np.linalg.eigh(x.T @ x)
        seen, shared = x @ vectors, vectors.T @ (x.T @ y)
        best, found = np.inf, np.zeros(FEATURES)
        for strength in STRENGTHS:
            shrunk = 1 / (values + strength * len(y))
            loss = float((((y - seen @ (shrunk * shared)) / (1 - seen**2 @ shrunk)) ** 2).mean())
            if loss < best:
                best, found = loss, vectors @ (shrunk * shared)
        return found

    def foretold(self, parts: Iterator[tuple[Bools, Bools]]) -> tuple[Array, Array, list[int]]:
        """What heads on each pair's first part say of the votes in its second: right or not, how surely; and talks."""
        said = np.zeros(len(self.outcome))
        for fitted, asked in parts:
            head = self.head(fitted)
            said[asked] = self.features[asked] @ head / (self.features @ head).std()
        told = said != 0
        return (said[told] * self.outcome[told] > 0).astype(float), said[told], self.talk[told].tolist()

    def in_order(self) -> tuple[float, int, float]:
        """Share, number and error of votes foretold in order."""
        times = [f"{n:06d}" for n in range(len(self.talk))]
        return prequential_accuracy(*self.foretold(prequential_splits(times, self.talk.tolist())))

    def crossed(self) -> tuple[float, int, float]:
        """The same in cross-validation, each vote as much, with folds as the job draws them."""
        fold = np.array(folds([str(talk) for talk in self.talk], 5, 0))
        right, _, talk = self.foretold((fold != number, fold == number) for number in range(5))
        share, error = clustered_mean(right.tolist(), talk)
        return share, len(right), error


def evidence(**changes: Any) -> Evidence:
    """Evidence with these fields alone."""
    nothing = np.zeros(0, np.float32)
    return replace(Evidence(0.5, 0, (), (), nothing, nothing, 0.0, GateSettings()), **changes)


def passes_in_order(share: float, votes: int, error: float) -> bool:
    """Whether rm_accuracy passes a model that foretells votes in order."""
    return gates.rm_accuracy(evidence(foretold=share, foretold_votes=votes, foretold_error=error)).passed


def passes_crossed(share: float, votes: int, error: float) -> bool:
    """Whether it passes one that has nothing but its cross-validation."""
    return gates.rm_accuracy(evidence(rm_accuracy=share, rm_votes=votes, rm_error=error)).passed


def passed_before(share: float, votes: int, error: float) -> bool:
    """Whether it passed at 7d0affc."""
    return share - Z * error > 0.5


def walks(homes: int, right: float) -> dict[str, Array]:
    """Of homes whose votes are foretold by a coin that falls right so often: who passed, [homes, nights]."""
    rng = np.random.default_rng(0)
    share = (rng.random((homes, max(NIGHTS))) < right).cumsum(1)[:, np.array(NIGHTS) - 1] / np.array(NIGHTS)
    found: dict[str, Array] = {}
    for name, rule in (("now", passes_in_order), ("before", passed_before)):
        passed = [
            [rule(float(s), votes, (s * (1 - s) / votes) ** 0.5) for s, votes in zip(row, NIGHTS, strict=True)]
            for row in share
        ]
        found[name] = np.array(passed, float)
    return found


def heads(homes: int, signal: float, nights: Sequence[int]) -> dict[str, Array]:
    """The same with a real head; and the shares of votes that it foretold in order and in cross-validation."""
    found: dict[str, list[list[float]]] = {name: [] for name in ("now", "crossed", "before", "share", "crossed share")}
    for number in range(homes):
        home = Home.drawn(np.random.default_rng(number), max(nights), signal)
        then = [home.until(votes) for votes in nights]
        ordered, crossed = [one.in_order() for one in then], [one.crossed() for one in then]
        found["now"].append([passes_in_order(*one) for one in ordered])
        found["crossed"].append([passes_crossed(*one) for one in crossed])
        found["before"].append([passed_before(*one) for one in crossed])
        found["share"].append([one[0] for one in ordered])
        found["crossed share"].append([one[0] for one in crossed])
    return {name: np.array(rows, float) for name, rows in found.items()}


class Replies:
    """Replies as SmolLM2's are: of 240 tokens on average where they end, and going round in circles where not.

    Drawn once, several hundred of each kind; `grams` are counted once too.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.drafts = [self._reply(ended, 48) for ended in (False, True) for _ in range(400)]
        self.chats = [self._reply(ended, 512) for ended in (False, True) for _ in range(400)]
        self.counted = {id(reply): grams(reply) for reply in (*self.drafts, *self.chats)}

    def _reply(self, ended: bool, most: int) -> Sample:
        length = int(np.clip(self.rng.lognormal(5.2, 0.6), 8, most - 1)) if ended else most
        circles = self.rng.beta(0.6, 1.2) if not ended else self.rng.beta(0.3, 6)
        fresh = max(1, round(length * (1 - circles * min(1, most / 256))))
        ids = tuple(n if n < fresh else fresh - 1 - (n - fresh) % min(fresh, 7) for n in range(length))
        return Sample((), "", (1,), ids, "stop" if ended else "length", "policy-0000")

    def of(self, pool: Sequence[Sample], rates: Array) -> tuple[Sample, ...]:
        """A reply of `pool` for each rate, the chance that it ends."""
        ends = self.rng.random(len(rates)) < rates
        kinds = np.where(ends, 400, 0) + self.rng.integers(0, 400, len(rates))
        return tuple(pool[kind] for kind in kinds)

    def round(self, rate: float, less: float, alike: float) -> Evidence:
        """What two versions say, of whose chat replies so many end, `less` fewer of the candidate's.

        Prompts differ in that as far as a beta distribution of weight `alike` does.
        """
        prompts = np.repeat(self.rng.beta(rate * alike, (1 - rate) * alike, PROMPTS), EACH)
        groups = tuple(str(n // EACH) for n in range(PROMPTS * EACH))
        worse = prompts * (rate - less) / rate
        return evidence(
            candidate=self.of(self.drafts, worse * 0.18), stable=self.of(self.drafts, prompts * 0.18),
            chat=self.of(self.chats, worse), stable_chat=self.of(self.chats, prompts),
            groups=groups, chat_groups=groups,
        )  # fmt: skip


def allowed(asked: Evidence) -> dict[str, bool]:
    """Which of the six gates pass."""
    every = (
        gates.finish, gates.length, gates.recurrence, gates.chat_finish, gates.chat_length, gates.chat_recurrence,
    )  # fmt: skip
    return {report.name: report.passed for report in (gate(asked) for gate in every)}


def allowed_before(asked: Evidence) -> bool:
    """Whether the four of 7d0affc did, which asked for a quarter of the chat replies."""
    few, few_stable = asked.chat[::EACH], asked.stable_chat[::EACH]
    share = mean_length(asked.candidate) / mean_length(asked.stable)
    return (
        finish_rate(asked.candidate) >= finish_rate(asked.stable) - 0.05
        and finish_rate(few) >= finish_rate(few_stable) - 0.1
        and repetition(asked.candidate) <= repetition(asked.stable) + 0.05
        and 0.3 <= share <= 2
    )


def rounds(count: int, rate: float, less: float, alike: float) -> dict[str, float]:
    """Shares of rounds that pass, by gate, all together, and before."""
    replies = Replies(np.random.default_rng(1))
    gates.grams = lambda reply: replies.counted[id(reply)]  # type: ignore[assignment]
    found: dict[str, list[bool]] = {"before": []}
    for _ in range(count):
        asked = replies.round(rate, less, alike)
        passed = allowed(asked)
        for name, passes in (passed | {"together": all(passed.values())}).items():
            found.setdefault(name, []).append(passes)
        found["before"].append(allowed_before(asked))
    gates.grams = grams
    return {name: float(np.mean(passes)) for name, passes in found.items()}


def main() -> None:
    """Simulate, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few homes and rounds, bars as they fall")
    args = parser.parse_args()
    kept.report("gates", args, lambda: run(args))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Figures and bars."""
    few = 20 if args.quick else 1
    until = [votes for votes in NIGHTS if votes <= ASKED]
    figures: dict[str, float] = {}
    bars = []

    def ever(name: str, passed: Array, op: str, limit: float, nights: int = len(NIGHTS)) -> None:
        figures[name] = round(float(passed[:, :nights].any(1).mean()), 4)
        bars.append(kept.bar(name, figures[name], op, limit))

    nothing, some = walks(4000 // few, 0.5), walks(4000 // few, 0.6)
    at, upto = until.index(ASKED), len(until)
    ever("knows nothing, walk: passes in 90 nights", nothing["now"], "<=", 0.1)
    ever("right on 60%, walk: passes at 300 votes", some["now"][:, at : at + 1], ">=", 0.8)
    ever("right on 60%, walk: passes by 300 votes", some["now"], ">=", 0.8, upto)
    figures["before: knows nothing, walk: passes in 90 nights"] = round(float(nothing["before"].any(1).mean()), 4)
    blank, taught = heads(200 // few, 0.0, NIGHTS), heads(300 // few, SIGNAL, until)
    ever("knows nothing, real head: passes in 90 nights", blank["now"], "<=", 0.1)
    ever("knows nothing, real head cross-validated only: passes in 90 nights", blank["crossed"], "<=", 0.1)
    ever("right on 60%, real head: passes at 300 votes", taught["now"][:, at : at + 1], ">=", 0.8)
    ever("right on 60%, real head: passes by 300 votes", taught["now"], ">=", 0.8, upto)
    figures["before: knows nothing, real head: passes in 90 nights"] = round(float(blank["before"].any(1).mean()), 4)
    figures["real head at 300 votes: foretold in order"] = round(float(taught["share"][:, at].mean()), 4)
    figures["real head at 300 votes: in cross-validation"] = round(float(taught["crossed share"][:, at].mean()), 4)
    figures["real head at 300 votes, cross-validated only: passes"] = round(float(taught["crossed"][:, at].mean()), 4)
    for rate, alike in ((0.83, 1e6), (0.67, 1e6), (0.67, 4.0)):
        name = f"{rate:.0%} of chat replies end" + (", prompts alike" if alike > 100 else ", prompts differ")
        for less, what in ((0.0, "equal"), (0.15, "15 points worse")):
            found = rounds(2000 // few, rate, less, alike)
            figures |= {f"{name}: {what}: passes {gate}": round(share, 4) for gate, share in found.items()}
            if less:
                bars.append(kept.bar(f"{name}: {what}: passes", round(found["together"], 4), "<=", 0.1))
            else:
                bars.append(kept.bar(f"{name}: {what}: refused", round(1 - found["together"], 4), "<=", 0.05))
    about: dict[str, Any] = {"model": "simulated", "versions": {"numpy": importlib.metadata.version("numpy")}}
    return {**about, "figures": figures, "bars": [] if args.quick else bars}


if __name__ == "__main__":
    main()
