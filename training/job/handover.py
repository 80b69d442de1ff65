"""The last stages of a round: health, the candidate with its manifest, and the handover to the assistant."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from thumbwise.contracts import GateReport, RunContext
from thumbwise.errors import ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.home import write_durably
from thumbwise.names import CONFIG, MANIFEST, WEIGHTS
from thumbwise.training.data.prompts import keep_prompts, seed_prompts
from thumbwise.training.data.snapshot import Snapshot
from thumbwise.training.evaluation.diagnostics import diagnose, draw_curves
from thumbwise.training.evaluation.metrics import MetricsLog
from thumbwise.training.job.initial_policy import AT_BASE
from thumbwise.training.job.lineage import kept_lineage
from thumbwise.training.job.requirements import doubted_sentence
from thumbwise.training.policy.ptx import keep_file
from thumbwise.training.run.candidate import Candidate, adapter_files, make_candidate, make_probes
from thumbwise.training.run.folders import TrainResult, read_json, write_json
from thumbwise.training.run.work import Work

PROBES = 8
CANDIDATE = "candidate.json"


def show_health(work: Work, metrics: dict[str, Any], doubted: dict[str, int]) -> None:
    """Print the health panel. Write it and the curves into the run's folder."""
    rows = MetricsLog(work.folder).rows()
    excess = metrics["win_rate_proxy"] - metrics["rm_accuracy"]
    at_the_end = {"rm_accuracy": metrics["rm_accuracy"], "proxy_excess": excess, "doubted": len(doubted)}
    findings = diagnose(rows, at_the_end, {"doubted": doubted_sentence(doubted)})
    for finding in findings:
        work.progress.say(finding.line())
    write_json(work.folder / "health.json", [asdict(finding) for finding in findings])
    draw_curves(rows, work.folder / "curves.png")


def kept_candidate(work: Work) -> tuple[Candidate, dict[str, Any], list[GateReport]] | None:
    """The candidate that an earlier attempt finished: the same bytes, so that it can be published again."""
    note = read_json(work.folder / CANDIDATE)
    if note is None:
        return None
    folder = work.folder / note["version"]
    files = {name: (folder / name).read_bytes() for name in (WEIGHTS, CONFIG, MANIFEST)}
    return Candidate(note["version"], files), note["metrics"], [GateReport(**row) for row in note["gates"]]


def keep_candidate(
    work: Work, context: RunContext, snapshot: Snapshot, metrics: dict[str, Any], reports: list[GateReport]
) -> Candidate:
    """The adapter's files and its manifest. They are kept in the run's folder too."""
    seeds = seed_prompts()
    facts = {
        "parent": work.begun_from,
        "stable": work.given.stable,
        "base_digest": work.given.base_digest,
        "snapshot_id": work.given.snapshot_id,
        "algorithm": work.algorithm,
        "reward": work.settings.reward,
        "plugins": {info.name: info.version for info in work.plugins.list() if info.status == "on"},
        "config": {
            **work.settings.train.model_dump(),
            # Digests of files: a path says nothing later.
            "ptx_file": keep_file(work.settings.train, work.folder),
            "prompts_file": keep_prompts(work.settings.train, work.folder),
            "temperature": work.given.temperature,
            "max_tokens": work.given.max_tokens,
            "chat_template_kwargs": work.settings.chat_template_kwargs,
            "day": snapshot.day.isoformat(),  # the day that a chat template printed
        },
        "seed": work.settings.train.seed,
        "metrics": metrics,
        "n_labels": snapshot.n_labels,
        "probes": make_probes(context.backbone, seeds[:: len(seeds) // PROBES][:PROBES]),
    }
    adapter = adapter_files(context.backbone, work.model_name)
    candidate = make_candidate(work.given.number, adapter, facts, reports)
    folder = work.folder / candidate.version
    folder.mkdir(exist_ok=True)
    for name, data in candidate.files.items():
        write_durably(folder / name, data)
    note = {"version": candidate.version, "metrics": metrics, "gates": [asdict(r) for r in reports]}
    write_json(work.folder / CANDIDATE, note)
    return candidate


def hand_over(work: Work, candidate: Candidate, metrics: dict[str, Any], reports: list[GateReport]) -> TrainResult:
    """Publish, then promote or reject. If the promotion is refused, that is a rejection with the reason given."""
    work.progress.stage("handing over")
    work.lease.check()
    version = candidate.version
    work.client.publish(work.given, version, candidate.files, kept_lineage(work))
    fault_point("published")
    failed = [report for report in reports if not report.passed]
    outcome: Literal["promoted", "rejected"] = "rejected"
    if failed:
        reason = " ".join(report.detail for report in failed)
        work.client.reject(work.given, version, reason)
    else:
        try:
            state = work.client.promote(work.given, version, work.given.stable)
            outcome, reason = "promoted", f"{version} passed its gates and is {state} now."
        except ThumbwiseError as error:
            if error.status not in (409, 422):
                raise
            reason = str(error)
    if work.given.begin_at_base and work.settings.train.begin == "stable":
        reason += f" {AT_BASE}"
    return TrainResult(outcome, reason, work.given.run_id, version, metrics, reports)
