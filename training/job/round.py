"""What a training round consists of, stage by stage: snapshot, SFT, reward model, policy, gates, candidate, swap.

Each stage writes its result to the run's folder, whole or not at all. A stage whose file is there is not done again.
Everything random depends only on the seed and the iteration. So a run that was killed at any moment ends with the same
adapter as one that was not.

Left out: keeping what can be made again in a few minutes (replies of stable, evidence).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from thumbwise.contracts import Evidence, FitReport, GateReport, OffersValue, RunContext
from thumbwise.errors import ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.training.data.snapshot import Snapshot
from thumbwise.training.evaluation.evaluate import Interview, Replies, figures, gather_evidence
from thumbwise.training.evaluation.selection import select
from thumbwise.training.job.handover import hand_over, keep_candidate, kept_candidate, show_health
from thumbwise.training.job.initial_policy import AT_BASE, fetch_stable, run_sft, start_policy
from thumbwise.training.job.inputs import fetch_snapshot, open_model
from thumbwise.training.job.lineage import tell_lineage
from thumbwise.training.job.policy_training import earlier_policies, train_policy
from thumbwise.training.job.requirements import choose_algorithm, too_few_votes
from thumbwise.training.job.reward_fitting import ends_aimed_at, fit_reward
from thumbwise.training.reward.shaping import ShapedReward, naming
from thumbwise.training.run.candidate import Candidate
from thumbwise.training.run.folders import TrainResult, nothing_new
from thumbwise.training.run.work import Work, seed_all


class Round(Work):
    """One round. `run` does all of it."""

    def run(self) -> TrainResult:
        """From snapshot to swap, starting where the last attempt stopped. Raises on failure."""
        train = self.settings.train
        snapshot = fetch_snapshot(self)
        if reason := too_few_votes(snapshot, train, self.sampling) or self._nothing_new():
            return TrainResult("too_little_data", reason, self.given.run_id)
        self.algorithm, why = choose_algorithm(self.algorithm, snapshot.telling(train, self.sampling))
        self.progress.say(why)
        if self.given.begin_at_base and train.begin == "stable":
            self.progress.say(AT_BASE)
        if train.ptx and self.algorithm != "ppo":
            self.progress.say(f"The setting train.ptx (and --ptx) is PPO's: {self.algorithm} does without it.")
        kept = kept_candidate(self)
        return hand_over(self, *(kept or self._make_candidate(snapshot)))

    def _nothing_new(self) -> str:
        return nothing_new(self.home, self.folder) if self.new_votes else ""

    def _make_candidate(self, snapshot: Snapshot) -> tuple[Candidate, dict[str, Any], list[GateReport]]:
        """Reward model, policy, gates: a candidate with its metrics and reports, kept in the run's folder."""
        train = self.settings.train
        folder = fetch_stable(self)
        context, questions = open_model(self, snapshot)
        weights = context.backbone.base_sha256()
        adapter = start_policy(self, context.backbone, folder)
        run_sft(self, context, snapshot)
        model, fit, usual = fit_reward(self, context, snapshot)
        tell_lineage(self, context, snapshot, fit)
        fault_point("reward_model")
        if isinstance(model, OffersValue):
            context = replace(context, value=model.value_init())
        reward = ShapedReward(self.settings.reward, model, self.plugins, context)
        self.progress.stage("replies of stable")
        stable = questions.ask(adapter)
        context = replace(context, finish_rate=ends_aimed_at(self, context, usual, stable))
        seed_all(train.seed, 0)
        self.progress.stage(f"preparing {self.algorithm}")
        with naming(f"Policy algorithm {self.algorithm}", "--algorithm"):
            algorithm = self.plugins.get("policy_algorithms", self.algorithm)(context, reward)
        last, stopped = train_policy(self, algorithm)
        self.progress.stage("gates")
        fault_point("gates")
        selected = select(
            algorithm, lambda: self._evidence(context, reward, fit, questions, stable), self.plugins.gates,
            self.plugins.owners("gates"), budget=train.kl_budget, last=last,
            earlier_policies=lambda kl: earlier_policies(self, kl), stopped=stopped, say=self.progress.say,
        )  # fmt: skip
        evidence, reports = selected.evidence, selected.reports
        if context.backbone.base_sha256() != weights:
            raise ThumbwiseError("Training changed the frozen base weights: the plugin that did so must be mended.")
        metrics = figures(evidence) | {"stopped": f"stopped:{selected.stopped}" if selected.stopped else ""}
        show_health(self, metrics, fit.details.get("doubted", {}))
        candidate = keep_candidate(self, context, snapshot, metrics, reports)
        fault_point("candidate")
        return candidate, metrics, reports

    def _evidence(
        self, context: RunContext, reward: ShapedReward, fit: FitReport, questions: Interview, stable: Replies
    ) -> Evidence:
        self.lease.check()
        return gather_evidence(context, questions, reward.plain, fit, stable, self.settings.gates)
