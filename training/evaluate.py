"""What the gates get to see: candidate and stable on the same held-out prompts, sampled alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from thumbwise.contracts import (
    Evidence,
    FitReport,
    Gate,
    GateReport,
    Prompt,
    RolloutBackend,
    RunContext,
    Sample,
    Scores,
)
from thumbwise.errors import ThumbwiseError
from thumbwise.training.batches import chunks
from thumbwise.training.config import GateSettings


def kl_to_reference(context: RunContext, samples: Sequence[Sample], adapter: str) -> float:
    """Mean over replies of `adapter`'s KL from the reference, summed over tokens, at the run's temperature."""
    backbone, total = context.backbone, 0.0
    for part in chunks(len(samples), backbone.micro_batch):
        total += float(backbone.compared(backbone.batch(samples[part]), adapter, context.temperature).kl.sum())
    return total / max(1, len(samples))


def gather_evidence(
    context: RunContext,
    rollouts: RolloutBackend,
    score: Callable[[Sequence[Sample]], Scores],
    fit: FitReport,
    prompts: Sequence[Prompt],
    stable: tuple[Sample, ...],
    limits: GateSettings,
    seed: int,
) -> Evidence:
    """Sample the candidate (adapter "policy") on `prompts`, which `stable` answered with the same seed."""
    candidate = tuple(rollouts.sample(prompts, "policy", seed))
    return Evidence(
        rm_accuracy=fit.accuracy,
        rm_votes=fit.n,
        candidate=candidate,
        stable=stable,
        candidate_scores=score(candidate).value,
        stable_scores=score(stable).value,
        kl=kl_to_reference(context, candidate, "policy"),
        limits=limits,
        rm_error=fit.error,
    )


def run_gates(gates: dict[str, Gate], evidence: Evidence) -> list[GateReport]:
    """Every gate's report; one that raises has failed, and says so."""
    reports = []
    for name, gate in gates.items():
        try:
            reports.append(gate(evidence))
        except ThumbwiseError as error:
            reports.append(GateReport(name, False, 0.0, 0.0, str(error)))
        except Exception as error:
            detail = f"The gate itself failed ({type(error).__name__}: {error}): mend the plugin that brings it."
            reports.append(GateReport(name, False, 0.0, 0.0, detail))
    if not reports:
        raise ThumbwiseError(
            "No gate is loaded, and nothing is promoted without one: look at `thumbwise plugins list`."
        )
    return reports
