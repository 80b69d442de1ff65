"""Whether a run looks healthy: its metrics compared with the glossary's limits, in sentences and as curves.

The mean over the last quarter of the iterations counts, because one batch of rollouts is mostly luck. A finding changes
nothing by itself.

Left out: alarms during the run (the KL budget stops it anyway).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from thumbwise.training.evaluation.metrics import AT_THE_END, GLOSSARY, Metric, Watch

COLUMNS = 4


@dataclass(frozen=True)
class Finding:
    """One watched metric: its value at the end (the one that its limits are about), and what is wrong, or nothing."""

    metric: str
    value: float
    healthy: str
    diagnosis: str

    def line(self) -> str:
        """One line of the panel."""
        look = f" {self.diagnosis}" if self.diagnosis else ""
        return f"{'LOOK' if self.diagnosis else 'ok':4}  {self.metric} {self.value:.3g} ({self.healthy}){look}"


def diagnose(
    rows: Sequence[Mapping[str, float]], at_the_end: Mapping[str, float], details: Mapping[str, str] | None = None
) -> list[Finding]:
    """Every watched metric that the iterations' `rows`, or `at_the_end`, have. Those with a diagnosis come first.

    `details` are sentences that follow a metric's diagnosis if it has one.
    """
    findings = []
    for name, metric in GLOSSARY.items():
        series = [row[name] for row in rows if name in row]  # a plugin may have no figure for some iterations
        if metric.watch and series:
            quarter = max(1, len(series) // 4)
            start, end = (sum(part) / len(part) for part in (series[:quarter], series[-quarter:]))
            findings.append(_finding(name, metric, metric.watch, _limited(metric.watch, start, end)))
    for name, metric in AT_THE_END.items():
        if metric.watch and name in at_the_end:
            found = _finding(name, metric, metric.watch, at_the_end[name])
            if found.diagnosis and details and name in details:
                found = replace(found, diagnosis=f"{found.diagnosis} {details[name]}")
            findings.append(found)
    return sorted(findings, key=lambda finding: not finding.diagnosis)


def _limited(watch: Watch, start: float, end: float) -> float:
    if watch.of == "share":
        return end / start if start else math.nan
    return end - start if watch.of == "change" else end


def _finding(name: str, metric: Metric, watch: Watch, value: float) -> Finding:
    diagnosis = watch.below if value < watch.low else watch.above if value > watch.high else ""
    return Finding(name, round(value, 6), metric.healthy, diagnosis)


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """curves.png: every metric by iteration. A band shows the limits of metrics that are limited by value."""
    from matplotlib.figure import Figure

    names = [name for name in GLOSSARY if any(name in row for row in rows)]
    height = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 2.1 * max(1, height)), layout="constrained")
    for number, name in enumerate(names):
        axes, watch = figure.add_subplot(height, COLUMNS, number + 1), GLOSSARY[name].watch
        having = [row for row in rows if name in row]
        axes.plot([row["iteration"] for row in having], [row[name] for row in having])
        axes.set_title(name, fontsize=9)
        if watch and watch.of == "value":
            low, high = axes.get_ylim()
            axes.axhspan(max(watch.low, low), min(watch.high, high), alpha=0.12, color="green")
            axes.set_ylim(low, high)
    figure.savefig(path, dpi=100)
