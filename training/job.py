"""One training round, stage by stage: register, snapshot, reward model, policy, gates, candidate, swap.

The job talks to the assistant over HTTP only and never opens its database. Everything that it works on is
in `runs/<run_id>/` of the home. Whatever goes wrong ends the run as failed with one sentence (the
traceback goes to `error.log` there) and leaves the stable version alone. Left out: resuming a killed run
(start it again; its lease runs out by itself), and a supervised stage before PPO.
"""

from __future__ import annotations

import json
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import torch

from thumbwise.contracts import (
    FitReport,
    GateReport,
    OffersValue,
    PolicyAlgorithm,
    Prompt,
    RewardModel,
    RunContext,
    Sample,
)
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home, write_durably
from thumbwise.models import PreparedModel, prepare
from thumbwise.plugin_manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.training.candidate import CONFIG, WEIGHTS, Candidate, adapter_files, make_candidate, make_probes
from thumbwise.training.client import Lease, OpsClient, Run
from thumbwise.training.data import Snapshot, parse, prompt_ids, seed_prompts, split_prompts
from thumbwise.training.evaluate import gather_evidence, run_gates
from thumbwise.training.metrics import MetricsLog
from thumbwise.training.models import Backbone
from thumbwise.training.progress import RunProgress
from thumbwise.training.replies import finish_rate, mean_length, repetition
from thumbwise.training.reward import ShapedReward

BASE = "policy-0000"
STABLE = "stable"
PROBES = 8
CALIBRATION = 64
"""Replies of the reference on which the reward gets mean 0 and deviation 1."""

Outcome = Literal["promoted", "rejected", "too_little_data", "failed"]
Preparer = Callable[[Home, str], PreparedModel]


@dataclass
class TrainResult:
    """How a round ended: `reason` is a sentence, `version` the candidate's name where there is one."""

    outcome: Outcome
    reason: str
    run_id: str
    version: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    gates: list[GateReport] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The result as plain JSON."""
        return asdict(self)


def run_training(
    home: Home,
    settings: Settings,
    url: str,
    token: str,
    algorithm: str = "ppo",
    *,
    plugins: PluginManager | None = None,
    progress: RunProgress | None = None,
    transport: httpx.BaseTransport | None = None,
    prepare_model: Preparer = prepare,
) -> TrainResult:
    """Run one round against the assistant at `url` and return how it ended.

    Raises ThumbwiseError only where the run could not begin (another one holds the lease, no such algorithm
    or reward model, no answer); later failures are results with outcome "failed".
    """
    start = time.monotonic()
    plugins = plugins or PluginManager(home).load()
    for kind, name in (
        ("policy_algorithms", algorithm),
        ("reward_models", settings.reward),
        ("rollout_backends", settings.train.rollouts),
    ):
        plugins.get(kind, name)
    with OpsClient(url, token, transport) as client, progress or RunProgress(quiet=True) as shown:
        run = client.begin()
        folder = home.runs / run.run_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with Lease(client, run) as lease:
            job = _Round(home, settings, algorithm, plugins, client, run, lease, folder, shown, prepare_model)
            try:
                result = job.run()
            except KeyboardInterrupt:
                result = TrainResult("failed", "The run was stopped by hand.", run.run_id)
            except ThumbwiseError as error:
                _note_traceback(folder)
                result = TrainResult("failed", str(error), run.run_id)
            except Exception as error:
                _note_traceback(folder)
                what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                result = TrainResult(
                    "failed", f"Training failed ({what}); the details are in {folder / 'error.log'}.", run.run_id
                )
            result.seconds = round(time.monotonic() - start, 1)
            _finish(client, run, lease, result)
    text = json.dumps(result.as_json(), indent=1, sort_keys=True, default=str)
    write_durably(folder / "result.json", f"{text}\n".encode())
    return result


def _finish(client: OpsClient, run: Run, lease: Lease, result: TrainResult) -> None:
    """Tell the assistant; where it does not want to hear it any more, the result still stands."""
    if not lease.lost:
        try:
            client.finish(run, result.outcome, result.reason)
        except ThumbwiseError as error:
            result.reason += f" (The assistant was not told: {error})"


def _note_traceback(folder: Path) -> None:
    (folder / "error.log").write_text(traceback.format_exc())


@dataclass
class _Round:
    """One round's state; `run` is the whole story."""

    home: Home
    settings: Settings
    algorithm: str
    plugins: PluginManager
    client: OpsClient
    given: Run
    lease: Lease
    folder: Path
    progress: RunProgress
    prepare_model: Preparer
    model_name: str = ""

    def run(self) -> TrainResult:
        """Snapshot to swap; raises on failure."""
        train = self.settings.train
        random.seed(train.seed)
        np.random.seed(train.seed)
        torch.manual_seed(train.seed)
        self.progress.stage("snapshot")
        data = self.client.snapshot(self.given.snapshot_id)
        write_durably(self.folder / "snapshot.jsonl", data)
        snapshot = parse(data)
        if snapshot.untied < train.min_votes:
            reason = (
                f"There are {snapshot.untied} comparisons with a winner, and training begins at {train.min_votes} "
                "(setting train.min_votes): collect more votes."
            )
            return TrainResult("too_little_data", reason, self.given.run_id)
        context, held_out = self._open(snapshot)
        weights = context.backbone.base_sha256()
        model, fit = self._fit_reward(context, snapshot)
        if isinstance(model, OffersValue):
            context = replace(context, value=model.value_init())
        reward = ShapedReward(self.settings.reward, model, self.plugins, context)
        stable = self._stable_replies(context, held_out)
        algorithm = self.plugins.get("policy_algorithms", self.algorithm)(context, reward)
        last, stopped = self._improve(algorithm)
        self.progress.stage("gates")
        evidence = self._evidence(context, reward, fit, held_out, stable)
        if evidence.kl > train.kl_budget and not stopped:
            stopped = "kl"  # the last update went over it: the policy before that one was within
            algorithm.load_state_dict(last)
            evidence = self._evidence(context, reward, fit, held_out, stable)
        reports = run_gates(self.plugins.gates, evidence)
        if context.backbone.base_sha256() != weights:
            raise ThumbwiseError("Training changed the frozen base weights: the plugin that did so must be mended.")
        metrics = {
            "rm_accuracy": evidence.rm_accuracy,
            "rm_votes": evidence.rm_votes,
            "win_rate_proxy": next((r.value for r in reports if r.name == "win_rate_proxy"), None),
            "reward": float(np.nanmean(evidence.candidate_scores)),
            "stable_reward": float(np.nanmean(evidence.stable_scores)),
            "kl": evidence.kl,
            "length": mean_length(evidence.candidate),
            "finish_rate": finish_rate(evidence.candidate),
            "stable_finish_rate": finish_rate(evidence.stable),
            "repetition": repetition(evidence.candidate),
            "stable_repetition": repetition(evidence.stable),
            "stopped": f"stopped:{stopped}" if stopped else "",
        }
        candidate = self._candidate(context, snapshot, metrics, reports)
        return self._hand_over(candidate, metrics, reports)

    def _open(self, snapshot: Snapshot) -> tuple[RunContext, tuple[Prompt, ...]]:
        """The model, the prompts of rollouts and the held-out ones."""
        train, gates = self.settings.train, self.settings.gates
        self.progress.stage("base model")
        prepared = self.prepare_model(self.home, self.given.model)
        if prepared.digest != self.given.base_digest:
            raise ThumbwiseError(
                f"The base model in {prepared.folder} is not the one that is served: restart the assistant, or "
                "remove the folder so that it is made again."
            )
        self.model_name = prepared.name
        backbone = Backbone(prepared.folder, train)
        own = [
            p for p in snapshot.prompts if len(prompt_ids(backbone.tokenizer, p.messages)) <= train.max_prompt_tokens
        ]
        split = split_prompts(own, seed_prompts(), gates.held_out, gates.prompts, train.seed)
        context = RunContext(
            backbone=backbone,
            train=train,
            temperature=self.given.temperature,
            max_tokens=self.given.max_tokens,
            prompts=split.own,
            seed_prompts=split.seeds,
            folder=self.folder,
        )
        rollouts = self.plugins.get("rollout_backends", train.rollouts)(context)
        return replace(context, rollouts=rollouts), split.held_out * gates.samples

    def _fit_reward(self, context: RunContext, snapshot: Snapshot) -> tuple[RewardModel, FitReport]:
        """Fit on all votes, then set mean and deviation on replies of the reference."""
        self.progress.stage("reward model")
        model: RewardModel = self.plugins.get("reward_models", self.settings.reward)(context)
        fit = model.fit(snapshot.labels, self.settings.train.seed)
        prompts = [*context.prompts, *context.seed_prompts]
        random.Random(self.settings.train.seed).shuffle(prompts)
        model.normalise(self._sample(context, prompts[:CALIBRATION], None, 1))
        model.save(self.folder)
        self.progress.say(f"Reward model: {fit.accuracy:.1%} of {fit.n} votes in cross-validation")
        self.lease.check()
        return model, fit

    def _stable_replies(self, context: RunContext, held_out: tuple[Prompt, ...]) -> tuple[Sample, ...]:
        """What the stable version says to the held-out prompts; its adapter is fetched where it has one."""
        adapter = None
        if self.given.stable != BASE:
            folder = self.folder / STABLE
            folder.mkdir(exist_ok=True)
            for name in (WEIGHTS, CONFIG):
                write_durably(folder / name, self.client.policy_file(self.given.stable, name))
            context.backbone.load_adapter(STABLE, folder)
            adapter = STABLE
        return tuple(self._sample(context, held_out, adapter, 2))

    def _improve(self, algorithm: PolicyAlgorithm) -> tuple[dict[str, Any], str]:
        """The iterations, within the KL budget: (the last state known to be within it, why it stopped early)."""
        self.progress.stage(self.algorithm, algorithm.iterations)
        log = MetricsLog(self.folder / "metrics.jsonl")
        last = algorithm.state_dict()
        for iteration in range(algorithm.iterations):
            self.lease.check()
            before = algorithm.state_dict()
            metrics = algorithm.step(iteration)
            log.write(iteration, metrics)
            self.progress.update(iteration + 1, algorithm.iterations, metrics)
            if not metrics["kl"] <= self.settings.train.kl_budget:
                algorithm.load_state_dict(last)
                return last, "kl"
            last = before
        return last, ""

    def _evidence(
        self, context: RunContext, reward: ShapedReward, fit: FitReport, held_out: tuple[Prompt, ...],
        stable: tuple[Sample, ...],
    ) -> Any:  # fmt: skip
        self.lease.check()
        assert context.rollouts is not None
        seed = self.settings.train.seed * 10 + 2
        limits = self.settings.gates
        return gather_evidence(context, context.rollouts, reward.plain, fit, held_out, stable, limits, seed)

    def _sample(self, context: RunContext, prompts: Any, adapter: str | None, purpose: int) -> list[Sample]:
        assert context.rollouts is not None
        return context.rollouts.sample(prompts, adapter, self.settings.train.seed * 10 + purpose)

    def _candidate(
        self, context: RunContext, snapshot: Snapshot, metrics: dict[str, Any], reports: list[GateReport]
    ) -> Candidate:
        """The adapter's files and manifest, kept in the run folder too."""
        seeds = seed_prompts()
        facts = {
            "parent": self.given.stable,
            "base_digest": self.given.base_digest,
            "snapshot_id": self.given.snapshot_id,
            "algorithm": self.algorithm,
            "reward": self.settings.reward,
            "plugins": {info.name: info.version for info in self.plugins.list() if info.status == "on"},
            "config": {
                **self.settings.train.model_dump(),
                "temperature": self.given.temperature,
                "max_tokens": self.given.max_tokens,
            },
            "seed": self.settings.train.seed,
            "metrics": metrics,
            "n_labels": snapshot.n_labels,
            "probes": make_probes(context.backbone, seeds[:: len(seeds) // PROBES][:PROBES]),
        }
        adapter = adapter_files(context.backbone, self.model_name)
        candidate = make_candidate(self.given.number, adapter, facts, reports)
        folder = self.folder / candidate.version
        folder.mkdir(exist_ok=True)
        for name, data in candidate.files.items():
            write_durably(folder / name, data)
        return candidate

    def _hand_over(self, candidate: Candidate, metrics: dict[str, Any], reports: list[GateReport]) -> TrainResult:
        """Publish, then promote or reject; a promotion that is refused is a rejection with its reason."""
        self.progress.stage("handing over")
        self.lease.check()
        version = candidate.version
        self.client.publish(self.given, version, candidate.files)
        failed = [report for report in reports if not report.passed]
        outcome: Outcome = "rejected"
        if failed:
            reason = " ".join(report.detail for report in failed)
            self.client.reject(self.given, version, reason)
        else:
            try:
                self.client.promote(self.given, version, self.given.stable)
                outcome, reason = "promoted", f"{version} passed its gates and is stable now."
            except ThumbwiseError as error:
                if error.status not in (409, 422):
                    raise
                reason = str(error)
        return TrainResult(outcome, reason, self.given.run_id, version, metrics, reports)
