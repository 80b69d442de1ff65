"""What a training round consists of, stage by stage: snapshot, SFT, reward model, policy, gates, candidate, swap.

Each stage leaves what it made in the run's folder, whole or not at all, and a stage whose file is there is not
done again; everything random hangs on the seed and the iteration. So a run that was killed at any moment ends
with the same adapter as one that was not. Left out: keeping what follows from its inputs in a few minutes
(replies of stable, evidence), which is done again.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save

from thumbwise.contracts import (
    Evidence,
    FitReport,
    GateReport,
    OffersValue,
    PolicyAlgorithm,
    RewardModel,
    RunContext,
)
from thumbwise.errors import ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.feedback.records import sha256
from thumbwise.home import Home, write_durably
from thumbwise.models import PreparedModel
from thumbwise.plugin_manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.training.candidate import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    Candidate,
    adapter_files,
    make_candidate,
    make_probes,
)
from thumbwise.training.checkpoints import Checkpoints
from thumbwise.training.client import Lease, OpsClient, Run
from thumbwise.training.data import Snapshot, parse, prompt_ids, seed_prompts, split_prompts
from thumbwise.training.evaluate import Interview, Replies, figures, gather_evidence, interview
from thumbwise.training.health import draw, examine
from thumbwise.training.losses import ends_wanted
from thumbwise.training.metrics import MetricsLog
from thumbwise.training.models import POLICY, Backbone
from thumbwise.training.progress import RunProgress
from thumbwise.training.ptx import keep_file
from thumbwise.training.replies import finish_rate
from thumbwise.training.reward import ShapedReward
from thumbwise.training.runs import FIT, SNAPSHOT, TrainResult, nothing_new, read_json, write_json
from thumbwise.training.selection import earlier, select
from thumbwise.training.sft import SFTReport, learn
from thumbwise.training.tiers import choose, told_aside, told_doubted, told_untaught, too_little

BASE = "policy-0000"
STABLE = "stable"
PROBES = 8
CALIBRATION = 64
"""Replies of the reference on which the reward gets mean 0 and deviation 1."""
CANDIDATE, SFT, SFT_WEIGHTS = "candidate.json", "sft.json", "sft.safetensors"


@dataclass
class Round:
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
    prepare_model: Callable[[Home, str], PreparedModel]
    model_name: str = ""
    new_votes: bool = False

    def run(self) -> TrainResult:
        """Snapshot to swap, from wherever the last attempt stopped; raises on failure."""
        train = self.settings.train
        snapshot = self._snapshot()
        if reason := too_little(snapshot, train) or (nothing_new(self.home, self.folder) if self.new_votes else ""):
            return TrainResult("too_little_data", reason, self.given.run_id)
        self.algorithm, why = choose(self.algorithm, snapshot, train)
        self.progress.say(why)
        if train.ptx and self.algorithm != "ppo":
            self.progress.say(f"The setting train.ptx (and --ptx) is PPO's: {self.algorithm} does without it.")
        kept = self._kept_candidate()
        return self._hand_over(*(kept or self._make_candidate(snapshot)))

    def _snapshot(self) -> Snapshot:
        self.progress.stage("snapshot")
        path = self.folder / SNAPSHOT
        if not path.exists() or sha256(path.read_bytes()) != self.given.snapshot_id:
            write_durably(path, self.client.snapshot(self.given.snapshot_id), mode=0o600)
        fault_point("snapshot")
        snapshot = parse(path.read_bytes()).heard(self.settings.train)
        if snapshot.aside:
            self.progress.say(told_aside(snapshot.aside))
        if snapshot.corrections_aside:
            self.progress.say(told_untaught(snapshot.corrections_aside))
        return snapshot

    def _make_candidate(self, snapshot: Snapshot) -> tuple[Candidate, dict[str, Any], list[GateReport]]:
        """Reward model, policy, gates: a candidate with its metrics and reports, kept in the run's folder."""
        train = self.settings.train
        context, questions = self._open(snapshot)
        weights = context.backbone.base_sha256()
        self._demonstrate(context, snapshot)
        model, fit, usual = self._fit_reward(context, snapshot)
        fault_point("reward_model")
        if isinstance(model, OffersValue):
            context = replace(context, value=model.value_init())
        reward = ShapedReward(self.settings.reward, model, self.plugins, context)
        self.progress.stage("replies of stable")
        stable = questions.ask(self._stable(context.backbone))
        wanted = ends_wanted(usual)
        if self.given.stable != BASE or context.backbone.reference is not None:
            # Stable may end more often than the reference, and the gates hold the candidate to it.
            # Half of their margin below: with its whole rate, each round's luck would be the least of the next.
            wanted = max(wanted, finish_rate(stable.drafts) - self.settings.gates.max_finish_loss / 2)
        context = replace(context, finish_rate=wanted)
        _seed(train.seed, 0)
        self.progress.stage(f"preparing {self.algorithm}")
        algorithm = self.plugins.get("policy_algorithms", self.algorithm)(context, reward)
        last, stopped = self._improve(algorithm)
        self.progress.stage("gates")
        fault_point("gates")
        selected = select(
            algorithm, lambda: self._evidence(context, reward, fit, questions, stable), self.plugins.gates,
            budget=train.kl_budget, last=last, milder=self._milder, stopped=stopped, say=self.progress.say,
        )  # fmt: skip
        evidence, reports = selected.evidence, selected.reports
        if context.backbone.base_sha256() != weights:
            raise ThumbwiseError("Training changed the frozen base weights: the plugin that did so must be mended.")
        metrics = figures(evidence) | {"stopped": f"stopped:{selected.stopped}" if selected.stopped else ""}
        self._show_health(metrics, fit.details.get("doubted", {}))
        candidate = self._candidate(context, snapshot, metrics, reports)
        fault_point("candidate")
        return candidate, metrics, reports

    def _show_health(self, metrics: dict[str, Any], doubted: dict[str, int]) -> None:
        """Print the health panel, and leave it and the curves in the run's folder."""
        rows = MetricsLog(self.folder).rows()
        excess = metrics["win_rate_proxy"] - metrics["rm_accuracy"]
        at_the_end = {"rm_accuracy": metrics["rm_accuracy"], "proxy_excess": excess, "doubted": len(doubted)}
        findings = examine(rows, at_the_end, {"doubted": told_doubted(doubted)})
        for finding in findings:
            self.progress.say(finding.line())
        write_json(self.folder / "health.json", [asdict(finding) for finding in findings])
        draw(rows, self.folder / "curves.png")

    def _kept_candidate(self) -> tuple[Candidate, dict[str, Any], list[GateReport]] | None:
        """The candidate that an earlier attempt finished; the same bytes, so that it can be published again."""
        note = read_json(self.folder / CANDIDATE)
        if note is None:
            return None
        folder = self.folder / note["version"]
        files = {name: (folder / name).read_bytes() for name in (WEIGHTS, CONFIG, MANIFEST)}
        return Candidate(note["version"], files), note["metrics"], [GateReport(**row) for row in note["gates"]]

    def _open(self, snapshot: Snapshot) -> tuple[RunContext, Interview]:
        """The model, the prompts of rollouts and what the held-out ones are asked for."""
        train, gates = self.settings.train, self.settings.gates
        keep_file(train, self.folder)
        self.progress.stage("base model")
        prepared = self.prepare_model(self.home, self.given.model)
        if prepared.digest != self.given.base_digest:
            raise ThumbwiseError(
                f"The base model in {prepared.folder} is not the one that is served: restart the assistant, or "
                "remove the folder so that it is made again."
            )
        self.model_name = prepared.name
        backbone = Backbone(prepared.folder, train)
        backbone.told = self.progress.part
        own = [
            p for p in snapshot.prompts if len(prompt_ids(backbone.tokenizer, p.messages)) <= train.max_prompt_tokens
        ]
        taught = frozenset(d.group for d in snapshot.demonstrations if snapshot.sft(train))
        split = split_prompts(own, seed_prompts(), gates.held_out, gates.prompts, train.seed, taught)
        context = RunContext(
            backbone=backbone,
            train=train,
            temperature=self.given.temperature,
            max_tokens=self.given.max_tokens,
            prompts=split.own,
            seed_prompts=split.seeds,
            folder=self.folder,
        )
        backend = self.plugins.get("rollout_backends", train.rollouts)
        questions = interview(context, backend, split.held_out, gates, self.settings.chat_max_tokens)
        return replace(context, rollouts=questions.rollouts), questions

    def _demonstrate(self, context: RunContext, snapshot: Snapshot) -> None:
        """SFT, where corrected replies are enough; it leaves the reference, of which the policy starts as a copy."""
        backbone = context.backbone
        if not snapshot.sft(self.settings.train):
            return
        self.progress.stage("sft")
        if (note := read_json(self.folder / SFT)) is None:
            _seed(self.settings.train.seed, 0)
            report = learn(context, snapshot.demonstrations, self.lease.check)
            write_durably(self.folder / SFT_WEIGHTS, save(backbone.state(POLICY)))
            write_json(self.folder / SFT, asdict(report))
        else:
            report = SFTReport(**note)
            backbone.restore(POLICY, load_file(self.folder / SFT_WEIGHTS))
        self.progress.say(report.line())
        if report.epoch:
            backbone.freeze_reference()
        fault_point("sft")

    def _fit_reward(self, context: RunContext, snapshot: Snapshot) -> tuple[RewardModel, FitReport, float]:
        """Fit on all votes, then set mean and deviation on replies of the reference; fit.json says it is done.

        The third is the share of the reference's replies that come to an end: of those, and of its drafts that people
        judged. Of the few alone it is mostly luck, and PPO is steered to it.
        """
        self.progress.stage("reward model")
        model: RewardModel = self.plugins.get("reward_models", self.settings.reward)(context)
        if (note := read_json(self.folder / FIT)) is not None:
            model.load(self.folder)
            return model, FitReport(**note["fit"]), note["finish_rate"]
        _seed(self.settings.train.seed, 0)
        fit = model.fit(snapshot.labels, self.settings.train.seed)
        prompts = [*context.prompts, *context.seed_prompts]
        random.Random(self.settings.train.seed).shuffle(prompts)
        assert context.rollouts is not None
        seed = self.settings.train.seed * 10 + 1
        usual = context.rollouts.sample(prompts[:CALIBRATION], context.backbone.reference, seed)
        model.normalise(usual)
        model.save(self.folder)
        judged = [] if context.backbone.reference else snapshot.drafts(BASE, context.max_tokens, context.temperature)
        ends = finish_rate([*usual, *judged])
        write_json(self.folder / FIT, {"fit": asdict(fit), "finish_rate": ends})
        self.progress.say(f"Reward model: {fit.accuracy:.1%} of {fit.n} votes in cross-validation")
        self.lease.check()
        return model, fit, ends

    def _stable(self, backbone: Backbone) -> str | None:
        """The adapter that the stable version is here (None: the base); it is fetched."""
        self.lease.check()
        if self.given.stable == BASE:
            return None
        folder = self.folder / STABLE
        folder.mkdir(exist_ok=True)
        for name in (WEIGHTS, CONFIG):
            write_durably(folder / name, self.client.policy_file(self.given.stable, name))
        backbone.load_adapter(STABLE, folder)
        return STABLE

    def _improve(self, algorithm: PolicyAlgorithm) -> tuple[dict[str, Any], str]:
        """The iterations, within the KL budget: (the last state known to be within it, why it stopped early).

        The checkpoint of number n is the state after n iterations; the newest two say where to go on.
        """
        checkpoints, total = Checkpoints(self.folder / "checkpoints"), algorithm.iterations
        kept = checkpoints.numbers()
        if not kept:
            checkpoints.save(0, algorithm.state_dict())
            kept = [0]
        begin, last = kept[-1], checkpoints.load(kept[-2] if len(kept) > 1 else kept[-1])
        algorithm.load_state_dict(checkpoints.load(begin))
        log = MetricsLog(self.folder)
        log.cut(begin)
        self.progress.stage(self.algorithm, total, begin)
        for iteration in range(begin, total):
            self.lease.check()
            before = copy.deepcopy(algorithm.state_dict())  # torch's own are the live tensors
            _seed(self.settings.train.seed, iteration)
            metrics = algorithm.step(iteration)
            log.write(iteration, metrics)
            self.progress.update(iteration + 1, total, metrics)
            if not metrics["kl"] <= self.settings.train.kl_budget:
                algorithm.load_state_dict(last)
                return last, "kl"
            last = before
            checkpoints.save(iteration + 1, algorithm.state_dict(), earlier(log.rows(), self.settings.train.kl_budget))
            fault_point("iteration")
        return last, ""

    def _milder(self, kl: float) -> Iterator[dict[str, Any]]:
        """The policies to fall back on from one at `kl` nats a reply, furthest first."""
        checkpoints = Checkpoints(self.folder / "checkpoints")
        kept = checkpoints.numbers()
        for number in earlier(MetricsLog(self.folder).rows(), self.settings.train.kl_budget, kl):
            if number in kept:
                yield checkpoints.load(number)

    def _evidence(
        self, context: RunContext, reward: ShapedReward, fit: FitReport, questions: Interview, stable: Replies
    ) -> Evidence:
        self.lease.check()
        return gather_evidence(context, questions, reward.plain, fit, stable, self.settings.gates)

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
                "ptx_file": keep_file(self.settings.train, self.folder),  # its digest: a path says nothing later
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
        note = {"version": candidate.version, "metrics": metrics, "gates": [asdict(r) for r in reports]}
        write_json(self.folder / CANDIDATE, note)
        return candidate

    def _hand_over(self, candidate: Candidate, metrics: dict[str, Any], reports: list[GateReport]) -> TrainResult:
        """Publish, then promote or reject; a promotion that is refused is a rejection with its reason."""
        self.progress.stage("handing over")
        self.lease.check()
        version = candidate.version
        self.client.publish(self.given, version, candidate.files)
        fault_point("published")
        failed = [report for report in reports if not report.passed]
        outcome: Literal["promoted", "rejected"] = "rejected"
        if failed:
            reason = " ".join(report.detail for report in failed)
            self.client.reject(self.given, version, reason)
        else:
            try:
                state = self.client.promote(self.given, version, self.given.stable)
                outcome, reason = "promoted", f"{version} passed its gates and is {state} now."
            except ThumbwiseError as error:
                if error.status not in (409, 422):
                    raise
                reason = str(error)
        return TrainResult(outcome, reason, self.given.run_id, version, metrics, reports)


def _seed(seed: int, iteration: int) -> None:
    """Set the global generators, so that a step hangs on its number and not on what came before it."""
    number = seed * 100_003 + iteration
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
