"""The policy's stage: the algorithm's iterations within the KL budget, and the earlier policies to fall back on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from thumbwise.contracts import PolicyAlgorithm
from thumbwise.errors import ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.training.evaluation.metrics import MetricsLog
from thumbwise.training.evaluation.selection import earlier
from thumbwise.training.reward.shaping import is_number, mend, naming
from thumbwise.training.run.checkpoints import Checkpoints
from thumbwise.training.run.work import Work, seed_all


def train_policy(work: Work, algorithm: PolicyAlgorithm) -> tuple[dict[str, Any], str]:
    """Run the iterations within the KL budget. Returns the last state known to be within it, and why it stopped early.

    Checkpoint number n is the state after n iterations. The newest two are where a resumed run continues.
    """
    checkpoints, total = Checkpoints(work.folder / "checkpoints"), algorithm.iterations
    kept = checkpoints.numbers()
    if not kept:
        checkpoints.save(0, algorithm.state_dict())
        kept = [0]
    begin, last = kept[-1], checkpoints.load(kept[-2] if len(kept) > 1 else kept[-1])
    algorithm.load_state_dict(checkpoints.load(begin))
    log = MetricsLog(work.folder)
    log.cut(begin)
    work.progress.stage(work.algorithm, total, begin)
    for iteration in range(begin, total):
        work.lease.check()
        before = copy.deepcopy(algorithm.state_dict())  # torch's own are the live tensors
        seed_all(work.settings.train.seed, iteration)
        with naming(f"Policy algorithm {work.algorithm}", "--algorithm"):
            metrics = algorithm.step(iteration)
            _check(work.algorithm, metrics)
        log.write(iteration, metrics)
        work.progress.update(iteration + 1, total, metrics)
        if not metrics["kl"] <= work.settings.train.kl_budget * metrics["length"]:
            algorithm.load_state_dict(last)
            return last, "kl"
        last = before
        checkpoints.save(iteration + 1, algorithm.state_dict(), earlier(log.rows(), work.settings.train.kl_budget))
        fault_point("iteration")
    return last, ""


def _check(name: str, metrics: dict[str, float]) -> None:
    """Raise ThumbwiseError if a step does not return the policy's KL and the length of its replies."""
    missing = [key for key in ("kl", "length") if not isinstance(metrics, dict) or not is_number(metrics.get(key))]
    if missing:
        raise ThumbwiseError(
            f"Policy algorithm {name} returned no finite number as {' and '.join(missing)} from step, by which the job "
            f"knows when to stop: {mend('--algorithm')}"
        )


def earlier_policies(work: Work, kl: float) -> Iterator[dict[str, Any]]:
    """The policies to fall back on from one at `kl` nats a token, furthest first."""
    checkpoints = Checkpoints(work.folder / "checkpoints")
    kept = checkpoints.numbers()
    for number in earlier(MetricsLog(work.folder).rows(), work.settings.train.kl_budget, kl):
        if number in kept:
            yield checkpoints.load(number)
