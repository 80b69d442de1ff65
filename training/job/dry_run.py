"""What `thumbwise train` would do with the votes so far, without doing it: no run is registered, nothing is trained.

Torch is not imported, so the answer takes a second. Only the model can say whose votes the others contradict. So the
plan names the people that the last reward model doubted.

Left out: a guess at how long training takes on a machine where it never ran. If it ran before, the plan gives the last
run's time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import httpx

from thumbwise.home import Home
from thumbwise.names import RUN_RECORD
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.training.data.prompts import check_prompts
from thumbwise.training.data.snapshot import parse
from thumbwise.training.data.votes import Sampling, votes_by_person
from thumbwise.training.job.requirements import (
    check_rank,
    choose_algorithm,
    corrections_aside_sentence,
    doubted_sentence,
    other_votes_sentence,
    set_aside_sentence,
    too_few_votes,
)
from thumbwise.training.run.client import OpsClient
from thumbwise.training.run.folders import FIT, RESULT, kept


@dataclass(frozen=True)
class DryRun:
    """What a run would learn from, with which plugins, and why (or why not). `algorithm` None: none yet.

    - `aside` are the votes of each person beyond that person's part.
    - `doubted` are the people whose votes, by the last run's reward model, contradict the others', and how many they
      gave.
    - `corrections_aside` are corrected replies beyond one person's part.
    - `telling` are the telling votes on replies sampled as a run samples.
    - `other_settings` and `too_long` are further telling votes, on replies sampled with other settings or on longer
      replies. `told` says what to do about them.
    """

    comparisons: int
    rankings: int
    thumbs: int
    telling: int
    people: int
    prompts: int
    corrections: int
    algorithm: str | None
    reward: str
    why: str
    last_run_seconds: float | None
    sft: bool
    aside: dict[str, int]
    doubted: dict[str, int]
    corrections_aside: int
    other_settings: int = 0
    too_long: int = 0
    told: str = ""

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON."""
        return {"outcome": "dry_run", **asdict(self)}

    def text(self) -> str:
        """A few lines for people."""
        lines = [
            f"votes: {self.comparisons} comparisons, {self.rankings} rankings, {self.thumbs} thumbs by {self.people} "
            f"people on {self.prompts} prompts; {self.telling} of them say which reply is better, on replies sampled "
            "as training samples",
            *([self.told] if self.told else []),
            f"corrected replies: {self.corrections}{'' if self.sft else ', too few to begin with SFT on them'}",
            *([corrections_aside_sentence(self.corrections_aside)] if self.corrections_aside else []),
            *([set_aside_sentence(self.aside)] if self.aside else []),
            *([doubted_sentence(self.doubted)] if self.doubted else []),
            f"reward model: {self.reward}",
            f"policy algorithm: {self.algorithm or 'none yet'}",
        ]
        if self.last_run_seconds is not None:
            lines.append(f"the last run took {self.last_run_seconds / 60:.0f} minutes")
        return "\n".join(lines)


def dry_run(
    home: Home,
    settings: Settings,
    plugins: PluginManager,
    url: str,
    token: str,
    algorithm: str,
    transport: httpx.BaseTransport | None = None,
) -> DryRun:
    """Freeze the feedback of the assistant at `url`, and say what a round would do with it."""
    plugins.check_training(settings.reward, algorithm, settings.train.rollouts)
    check_rank(settings)
    check_prompts(settings.train)
    with OpsClient(url, token, transport) as client:
        snapshot = parse(client.snapshot(client.take_snapshot())).heard(settings.train)
    train, labels = settings.train, snapshot.labels
    sampling = Sampling(settings.temperature, settings.max_tokens, train.max_reply_tokens)
    telling, otherwise = snapshot.telling(train, sampling), snapshot.otherwise(train, sampling)
    why: str | None = too_few_votes(snapshot, train, sampling)
    name = None
    if not why:
        name, why = choose_algorithm(algorithm, telling)
    return DryRun(
        len(labels.comparisons), len(labels.rankings), len(labels.thumbs), telling, len(votes_by_person(labels)),
        len(snapshot.prompts), len(snapshot.demonstrations), name, settings.reward, why or "", _last_seconds(home),
        snapshot.sft(train), snapshot.aside, _doubted(home), snapshot.corrections_aside, *otherwise,
        other_votes_sentence(otherwise, sampling),
    )  # fmt: skip


def _doubted(home: Home) -> dict[str, int]:
    """The people that the last run's reward model doubted. An older build's, or a plugin's, may not say."""
    fits = sorted(home.runs.glob(f"*/{FIT}"), key=lambda path: (path.stat().st_mtime_ns, path))
    found: Any = kept(fits[-1]) if fits else {}
    for name in ("fit", "details", "doubted"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _last_seconds(home: Home) -> float | None:
    results = sorted(home.runs.glob(f"*/{RESULT}"), key=lambda path: path.stat().st_mtime)
    rows = [kept(path) for path in results if (path.parent / RUN_RECORD).exists()]
    ended = [row.get("seconds") for row in rows if row.get("outcome") in ("promoted", "rejected")]
    known = [float(seconds) for seconds in ended if isinstance(seconds, (int, float)) and seconds]
    return known[-1] if known else None
