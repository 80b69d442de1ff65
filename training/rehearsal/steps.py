"""The whole loop on simulated people: votes through the API, the job, the swap under open streams, and a verdict.

Each step leaves a file in the rehearsal's folder, and a step whose file is there is not done again. So a rehearsal that
was cut off continues where it stopped, with the same plan. The judge stands in for people, and the job never sees it.

Left out: rounds with different people, and several rehearsals of one plan at once.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from thumbwise import faults
from thumbwise.contracts import Prompt, Sample
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import canonical, sha256
from thumbwise.home import Home
from thumbwise.names import BASE, MANIFEST
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.training.rehearsal import figures as rehearsal_figures
from thumbwise.training.rehearsal import home
from thumbwise.training.rehearsal.api_client import Api, finish
from thumbwise.training.rehearsal.figures import Judged
from thumbwise.training.rehearsal.measure import Measure, keep, kept
from thumbwise.training.rehearsal.raters import Bar, Crowd, Voting, bar, judge_scores
from thumbwise.training.rehearsal.swap_monitor import Seen, SwapMonitor, mixed
from thumbwise.training.rehearsal.win_rates import Wanted, by_prompt
from thumbwise.training.run.folders import FIT, read_json, unfinished, write_json
from thumbwise.training.run.progress import RunProgress

LEAST_STREAMS = 8
HELD = {faults.VARIABLE: "published=stop"}
"""Makes the job wait between publishing and the swap: the swap of a small model would be over before readers start."""
CHECKED = 64
"""The number of whole replies, nearest to a flip, that are searched for spans of another version."""
_LINE = re.compile(r"^\[ *\d+ s\] (.*)$")
_COUNTED = re.compile(r"^\S+: (\d+)/(\d+)")
_PART = re.compile(r"^(.+, .+): (\d+)/(\d+)")
_NUMBER = re.compile(r"(reward|KL|length) (-?[\d.]+)")


@dataclass(frozen=True)
class Plan:
    """What is rehearsed. Two rehearsals with equal plans, prompts, settings and plugin files are the same one."""

    judge: str
    voting: Voting
    voters: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    rounds: int = 1
    algorithm: str = "ppo"
    max_tokens: int = 48
    chat_tokens: int = 512
    wanted: Wanted = field(default_factory=lambda: Wanted(1))

    @property
    def tokens(self) -> int:
        """The token limit of the replies that people vote on and the judge scores. Thumbs are given in chat."""
        return self.chat_tokens if self.voting.kind == "thumb" else self.max_tokens

    def digest(self, config: str) -> str:
        """SHA-256 over all of it."""
        return sha256(canonical([asdict(self), config]))


@dataclass(frozen=True)
class Result:
    """How a rehearsal ended: the object that `--json` prints, whether it counts as failed, and its folder."""

    report: dict[str, Any]
    problem: str
    folder: Path


class Clock:
    """Seconds of work over all attempts, kept in `path`. A kill loses at most the time since the last tick."""

    def __init__(self, path: Path) -> None:
        self.path, self.before, self.start = path, float(read_json(path) or 0.0), time.monotonic()

    def tick(self) -> float:
        """Note the time, and return it."""
        seconds = round(self.before + time.monotonic() - self.start, 1)
        self.path.write_text(f"{seconds}\n")  # not durably: it is written often, and a lost tick does no harm
        return seconds


def _config(operator: Home) -> str:
    """What the rehearsal's processes work with: settings, the environment's too, and loose plugin files."""
    settings = Settings.load(operator).model_dump_json(exclude={"host", "port"})
    return settings + "".join(sha256(path.read_bytes()) for path in sorted(operator.plugins.glob("[!_.]*.py")))


class Rehearsal:
    """One rehearsal of `plan`, new or resumed. `run` does what is missing."""

    def __init__(self, operator: Home, plan: Plan, progress: RunProgress) -> None:
        self.plan, self.progress = plan, progress
        self.plugins = PluginManager(operator).load()
        given = Settings.load(operator)
        self.plugins.check_training(given.reward, plan.algorithm, given.train.rollouts)
        self.judge = functools.partial(judge_scores, plan.judge, self.plugins.get("judges", plan.judge))
        self.judge(
            plan.voters[0], ["Very well, thank you!", "Leave me alone."]
        )  # fail now rather than in the first vote
        facts = asdict(plan) | {"prompts": len(plan.voters), "held_out": len(plan.held_out)}
        facts.pop("voters")
        self.folder, self.resumed = home.open_folder(operator, plan.digest(_config(operator)), facts)
        self.home = home.make_home(operator, self.folder)
        self.env = home.environment(self.home, plan.max_tokens, plan.chat_tokens, plan.voting.seed)
        lengths = {"max_tokens": plan.max_tokens, "chat_max_tokens": plan.chat_tokens}
        self.settings = Settings.load(self.home, **lengths, train={"seed": plan.voting.seed})  # as the processes' are
        self.readers_tokens = max(plan.chat_tokens, given.chat_max_tokens)
        self.held_out = [replace(prompt, max_tokens=plan.tokens) for prompt in plan.held_out]
        self.clock = Clock(self.folder / "clock.json")
        self.steps, self.step = 2 + 3 * plan.rounds, 0

    def run(self) -> Result:
        """Every step that has not been done yet, then the report."""
        start = self._start_replies()
        rounds = [read_json(self.folder / f"round-{n}" / "figures.json") for n in range(1, self.plan.rounds + 1)]
        if None in rounds:
            self._stage("starting an assistant of its own")
            patience = self.settings.engine.start_timeout + 300
            with home.assistant(self.home, self.env, self.folder / "assistant.log", patience, self.progress.say) as url:
                for n, figures in enumerate(rounds, 1):
                    rounds[n - 1] = figures or self._round(n, url, start)
        swaps = [read_json(self.folder / f"round-{n}" / "swap.json") for n in range(1, self.plan.rounds + 1)]
        report = {"rounds": rounds, "seconds": self.clock.tick(), "swap": total(swaps)}
        write_json(self.folder / "result.json", report)
        return Result(report, problem(swaps), self.folder)

    # --- the steps --------------------------------------------------------------------------------------

    def _start_replies(self) -> list[Sample]:
        """Start's replies to the held-out prompts, several to each; sampled once."""
        path = self.folder / "start-replies.jsonl"
        if not path.exists():
            counts = self.plan.wanted.start()
            asked = [p for p, count in zip(self.held_out, counts, strict=True) for _ in range(count)]
            self._stage(f"{len(asked)} replies of start to {len(counts)} held-out prompts", len(asked))
            keep(path, self._measure().sample(asked, BASE, self.plan.voting.seed * 10 + 7, self._count(len(asked))))
        return kept(path)

    def _round(self, number: int, url: str, start: list[Sample]) -> dict[str, Any]:
        """Votes, training with streams open across its swap, and the verdict."""
        folder = self.folder / f"round-{number}"
        folder.mkdir(exist_ok=True)
        self.step = 2 + 3 * (number - 1)
        votes = self._vote(number, url, folder, start)
        trained = read_json(folder / "train.json") or self._train(number, url, folder)
        if not (folder / "swap.json").exists():
            write_json(folder / "swap.json", self._swap(Seen.load(folder / "streams.json"), trained))
        self._stage(f"round {number}: judging {trained['version']}")
        figures = {"round": number, "votes": votes, **self._figures(trained, start, folder)}
        write_json(folder / "figures.json", figures)
        return figures

    def _vote(self, number: int, url: str, folder: Path, start: list[Sample]) -> int:
        voting = self.plan.voting
        self._stage(f"round {number}: {voting.votes} votes by {voting.raters} raters", voting.votes)
        scores = [score for row in self._scores(start, self.plan.wanted.start()) for score in row]
        threshold: Bar = bar(scores)

        async def work() -> int:
            async with Api(url, self.plan.max_tokens, self.plan.chat_tokens) as api:
                notes = folder / "votes.jsonl"
                crowd = Crowd(api, voting, self.judge, self.plan.voters, number, notes, threshold)
                return await crowd.vote(self._count(voting.votes))

        return finish(work())

    def _train(self, number: int, url: str, folder: Path) -> dict[str, Any]:
        """Run the job as an operator would, with readers during its swap. A run that was cut off is resumed."""
        self._stage(f"round {number}: training")
        arguments = ["train", "--algorithm", self.plan.algorithm]
        with suppress(ThumbwiseError):  # there is none, or it has finished
            unfinished(self.home)
            arguments = ["train", "--resume"]
        watch = SwapMonitor(url, self.readers_tokens)
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        clock = Clock(folder / "train-clock.json")
        job = home.start([*arguments, "--json"], self.env | HELD, **pipes)
        assert job.stdout is not None
        try:
            self._follow(job, watch, folder / "train.log", clock)
            last = (job.stdout.read().strip().splitlines() or ["{}"])[-1]
            job.wait()
            result: dict[str, Any] = json.loads(last) | {"seconds": clock.tick()}
            if result.get("outcome") not in ("promoted", "rejected"):
                reason = result.get("reason") or f"it said nothing more; its log is {folder / 'train.log'}."
                raise ThumbwiseError(f"Round {number} has no candidate: {reason}")
            write_json(folder / "train.json", result)  # at once: a job that has ended must not be run again
        finally:
            home.stop(job)
            watch.stop()
        watch.save(folder / "streams.json")
        return result

    def _follow(self, job: subprocess.Popen[str], watch: SwapMonitor, log: Path, clock: Clock) -> None:
        """Show what the job says. When it has published, it is held until replies are being streamed.

        Earlier readers would only take the cores from its gates.
        """
        with log.open("a") as file:
            for line in job.stderr or ():
                file.write(line)
                clock.tick()
                self.clock.tick()
                said = _LINE.match(line.rstrip())
                if said is None:
                    continue
                if counted := _COUNTED.match(said[1]):
                    numbers = {name.lower(): float(value) for name, value in _NUMBER.findall(said[1])}
                    self.progress.update(int(counted[1]), int(counted[2]), numbers)
                elif part := _PART.match(said[1]):
                    self.progress.part(part[1], int(part[2]), int(part[3]))
                elif said[1] == "handing over" and not watch.watching:
                    self.progress.say(f"handing over, with {watch.readers} readers on")
                    home.wait_held(job)
                    watch.start()
                    watch.wait_open(LEAST_STREAMS, patience=60.0)
                    home.let_go_on(job)
                else:
                    self.progress.say(said[1])

    def _swap(self, watch: Seen, result: dict[str, Any]) -> dict[str, Any]:
        """What readers saw of a swap. The versions that were live are the base and all that were promoted."""
        self.progress.stage(f"reading {len(watch.replies)} streamed replies")
        versions = [BASE, *(path.parent.name for path in sorted(self.home.policies.glob(f"*/{MANIFEST}")))]
        found = mixed(watch.nearest(CHECKED), versions, self._measure().force)
        return {
            "promoted": result["outcome"] == "promoted",
            "seen": watch.flip is not None,
            "streams": len(watch.across()),
            "replies": len(watch.replies),
            "dropped": sum(reply.dropped for reply in watch.replies),
            "errors": sorted({reply.error for reply in watch.replies if reply.error})[:5],
            "mixed": len(found),
            "mixtures": [{"version": reply.version, "like": other, "by": by} for reply, other, by in found[:5]],
        }

    def _figures(self, trained: dict[str, Any], start: list[Sample], folder: Path) -> dict[str, Any]:
        """The candidate against start by the judge, on prompts that nobody voted on, as long as people's replies."""
        wanted, version = self.plan.wanted, trained["version"]
        measure, run = self._measure(), self.home.runs / trained["run_id"]
        path = folder / "replies.jsonl"
        if not path.exists():
            asked = [prompt for prompt in self.held_out for _ in range(wanted.samples)]
            done = self._count(len(asked))
            keep(path, measure.sample(asked, version, self.plan.voting.seed * 10 + 8, done))
        replies, counts = kept(path), wanted.start()
        candidate = Judged(replies, self._scores(replies, [wanted.samples] * wanted.prompts))
        before = Judged(start, self._scores(start, counts))
        rewards = by_prompt(counts, measure.rewards(start, run).tolist())
        fit, wrong = read_json(run / FIT)["fit"], self.plan.voting.wrong
        manifest = read_json(self.home.policies / version / MANIFEST)
        figures = {
            "tokens": self.plan.tokens, **rehearsal_figures.beside_start(candidate, before, wanted),
            **rehearsal_figures.best_by_reward(before.scores, rewards, wanted),
            **rehearsal_figures.reward_model(fit, wrong, before.scores, rewards),
            **measure.distances(replies, version, manifest["parent"]),
            "promoted": trained["outcome"] == "promoted", "reason": trained["reason"], "version": version,
            "train_seconds": trained["seconds"],
        }  # fmt: skip
        return rehearsal_figures.rounded(figures)

    # --- small parts ----------------------------------------------------------------------------------------

    def _measure(self) -> Measure:
        """Made for one step and dropped after it, so that the job has the memory to itself."""
        measure = Measure(self.home, self.settings, self.plugins)
        measure.backbone.told = self.progress.part
        return measure

    def _scores(self, samples: Sequence[Sample], counts: Sequence[int]) -> list[list[float]]:
        rows = by_prompt(counts, samples)
        return [
            self.judge(prompt, [sample.response for sample in row])
            for prompt, row in zip(self.held_out, rows, strict=True)
        ]

    def _stage(self, name: str, total: int | None = None) -> None:
        self.step += 1
        self.clock.tick()
        self.progress.stage(f"step {self.step} of {self.steps}: {name}", total)

    def _count(self, total: int) -> Callable[[int], None]:
        def show(done: int) -> None:
            self.clock.tick()
            if done:
                self.progress.update(done, total, {})

        return show


def total(swaps: Sequence[dict[str, Any] | None]) -> dict[str, int]:
    """One line about all swaps: the fewest streams that were open during one, and all that were dropped or mixed."""
    seen = [swap for swap in swaps if swap is not None]
    return {
        "streams": min((swap["streams"] for swap in seen if swap["promoted"]), default=0),
        "dropped": sum(swap["dropped"] for swap in seen),
        "mixed": sum(swap["mixed"] for swap in seen),
    }


def problem(swaps: Sequence[dict[str, Any] | None]) -> str:
    """Why a rehearsal counts as failed, or nothing."""
    sums = total(swaps)
    if sums["dropped"] or sums["mixed"]:
        return f"{sums['dropped']} replies were dropped and {sums['mixed']} were mixed across the swaps."
    if any(swap and swap["promoted"] and swap["streams"] < LEAST_STREAMS for swap in swaps):
        return f"Only {sums['streams']} replies were open across a swap, fewer than {LEAST_STREAMS}: it proves nothing."
    return ""
