"""The health panel: which metric is looked at, from which side, with which sentence, and what it draws."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from thumbwise.settings import Settings
from thumbwise.training.evaluation.diagnostics import diagnose, draw_curves
from thumbwise.training.evaluation.metrics import AT_THE_END, GLOSSARY, MetricsLog, Watch

WATCHED = {name: metric.watch for name, metric in (GLOSSARY | AT_THE_END).items() if metric.watch}
GOOD = {
    "reward": (0.0, 0.9), "reward_std": (1.0, 0.9), "kl": (0.0, 5.0), "kl_token": (0.0, 0.12),
    "ratio": (1, 1), "ratio_max": (1.4, 1.5), "clip_fraction": (0.0, 0.05),
    "explained_variance": (0.3, 0.6), "entropy": (2.0, 1.7),
    "length": (40.0, 44.0), "finish_rate": (0.2, 0.18), "repetition": (0.01, 0.03), "rollout_kl": (0.001, 0.002),
    "abstained": (0, 0), "policy_grad_norm": (1.0, 1.2),
}  # fmt: skip


def rows(**changes: Any) -> list[dict[str, float]]:
    """Eight iterations, from each metric's first number to its second."""
    ends = GOOD | changes
    return [
        {"iteration": n} | {name: start + (end - start) * n / 7 for name, (start, end) in ends.items()}
        for n in range(8)
    ]


def test_every_watched_metric_of_a_good_run_is_in_the_panel_and_none_is_diagnosed() -> None:
    findings = diagnose(rows(), {"rm_accuracy": 0.66, "proxy_excess": 0.1, "doubted": 0})
    assert {finding.metric for finding in findings} == set(WATCHED)
    assert [finding for finding in findings if finding.diagnosis] == []
    assert "ok    kl_token 0.111 (rises to train.kl_target; 0.007 to 0.23)" in [finding.line() for finding in findings]


@pytest.mark.parametrize(
    ("changes", "metric", "says"),
    [
        ({"reward": (0.0, 0.05)}, "reward", "did not learn what the reward model likes"),
        ({"reward_std": (1.0, 0.1)}, "reward_std", "similar to each other"),
        ({"kl_token": (0.0, 0.002)}, "kl_token", "hardly changed"),
        ({"kl_token": (0.0, 0.3)}, "kl_token", "far from the reference"),
        ({"ratio": (1.0, 1.1)}, "ratio", "too large"),
        ({"explained_variance": (0.2, -0.5)}, "explained_variance", "worse than a constant"),
        ({"entropy": (2.0, 0.2)}, "entropy", "entropy collapses"),
        ({"length": (40.0, 90.0)}, "length", "getting long"),
        ({"length": (40.0, 9.0)}, "length", "getting short"),
        ({"finish_rate": (0.4, 0.1)}, "finish_rate", "Fewer replies end by themselves"),
        ({"repetition": (0.01, 0.2)}, "repetition", "exploited"),
        ({"rollout_kl": (0.001, 0.04)}, "rollout_kl", "do not hold the same policy"),
        ({"abstained": (0, 3)}, "abstained", "no score"),
    ],
)
def test_a_metric_out_of_its_range_comes_first_with_its_diagnosis(changes: Any, metric: str, says: str) -> None:
    first, *others = diagnose(rows(**changes), {})
    assert first.metric == metric
    assert says in first.line()
    assert first.line().startswith("LOOK")
    assert [finding for finding in others if finding.diagnosis] == []


def test_the_reward_model_is_held_against_votes_that_it_never_saw() -> None:
    findings = diagnose([], {"rm_accuracy": 0.52, "proxy_excess": 0.4})
    assert [(finding.metric, bool(finding.diagnosis)) for finding in findings] == [
        ("rm_accuracy", True),
        ("proxy_excess", True),
    ]


def test_people_whom_the_others_contradict_are_named() -> None:
    (finding,) = diagnose([], {"doubted": 2}, {"doubted": "31 of key:a, 12 of browser:b."})
    assert finding.line().endswith("look at what they vote for. 31 of key:a, 12 of browser:b.")
    assert not diagnose([], {"doubted": 0}, {"doubted": "None."})[0].diagnosis


def test_the_end_is_the_last_quarter_and_metrics_that_an_algorithm_lacks_are_left_out() -> None:
    noisy = [{"iteration": n, "kl_token": 20.0 if n == 0 else float(n)} for n in range(8)]
    (finding,) = diagnose(noisy, {})
    assert finding.value == 6.5
    assert math.isnan(diagnose([{"iteration": 0, "entropy": 0.0}], {})[0].value)  # a share of nothing


def test_a_metric_that_only_some_iterations_have_is_examined_and_drawn_over_those(tmp_path: Path) -> None:
    rows = [{"iteration": n, "kl": 1.0} | ({"clip_fraction": 0.9} if n % 2 else {}) for n in range(8)]
    first = diagnose(rows, {})[0]
    assert (first.metric, first.value) == ("clip_fraction", 0.9)
    draw_curves(rows, tmp_path / "curves.png")


def test_a_log_that_a_power_cut_tore_is_read_and_cut_by_iteration(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    assert log.rows() == []
    for iteration in (0, 2, 3):  # the line of 1 was lost
        log.write(iteration, {"kl": float(iteration)})
    with log.path.open("a") as file:
        file.write('{"iteration": 4, "k')
    log.cut(3)
    assert [row["iteration"] for row in log.rows()] == [0, 2]


def test_limits_are_said_in_words() -> None:
    assert Watch("value", 0.2, 1).range == "0.2 to 1"
    assert Watch("value", high=0.0).range == "at most 0"
    assert Watch("change", low=0.2).range == "change at least 0.2"
    assert Watch("share", 0.5, 1.5).range == "0.5 to 1.5 times the start"


@pytest.mark.parametrize("name", WATCHED)
def test_every_limit_has_a_sentence_and_the_settings_in_it_exist(name: str) -> None:
    watch = WATCHED[name]
    for limit, says in ((watch.low, watch.below), (watch.high, watch.above)):
        assert math.isinf(limit) == (says == "")
        assert says == "" or says.endswith(".")
        for section, setting in re.findall(r"\b(train|gates)\.(\w+)", says):
            assert setting in type(getattr(Settings(), section)).model_fields


def test_the_curves_are_a_picture(tmp_path: Path) -> None:
    draw_curves(rows(), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    draw_curves([], tmp_path / "none.png")
