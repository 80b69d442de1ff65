"""Plugins whose numbers make no sense end the run at once, with one sentence that names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plugin_files import put
from tiny_model import make_tiny_model
from training_world import FakeAssistant, make_snapshot, train

from thumbwise.contracts import FitReport, Sample, Scores
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.plugin_host.scores import wrong_with
from thumbwise.training.reward.shaping import ShapedReward, check_fit
from thumbwise.training.run.folders import TrainResult

pytestmark = pytest.mark.usefixtures("one_thread")
TOP = "import numpy as np\nfrom thumbwise import hookimpl\nfrom thumbwise.contracts import FitReport, Scores\n"
REWARD = """
from thumbwise.plugins.bradley_terry import BradleyTerry

class Odd(BradleyTerry):
    def {method}(self, *args):
        found = super().{method}(*args)
        {does}

@hookimpl
def register_reward_models(register):
    register("odd", Odd)
"""
ALGORITHM = """
from thumbwise.plugins.best_of_n import BestOfN

class Odd(BestOfN):
    def step(self, iteration):
        found = super().step(iteration)
        {does}

@hookimpl
def register_policy_algorithms(register):
    register("odd", Odd)
"""
BACKEND = """
from thumbwise.training.policy.rollouts import InProcess

class Odd(InProcess):
    def sample(self, prompts, adapter, seed):
        if adapter != "policy":
            return super().sample(prompts, adapter, seed)
        {does}

@hookimpl
def register_rollout_backends(register):
    register("odd", Odd)
"""
SHAPE = """
@hookimpl
def shape_reward(samples, scores, context):
    {does}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def ended(tmp_path: Path, model: Path, source: str, **changes: Any) -> tuple[TrainResult, bool]:
    """How a round with this plugin ended, and whether an iteration was over by then."""
    put(Home.find(tmp_path / "home"), "odd", TOP + source)
    assistant = FakeAssistant(make_snapshot(40))
    result = train(tmp_path, model, assistant, **changes)
    assert result.outcome == "failed"
    assert assistant.policies == {}
    return result, (tmp_path / "home" / "runs" / "run-1" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("method", "does", "says"),
    [
        ("score", "return Scores(found.value * np.nan)", "returned no finite score for 64 samples"),
        ("score", "return Scores(found.value + np.inf)", "returned no finite score for 64 samples"),
        ("score", "return Scores(found.value, found.value[:1])", r"returned deviations of shape (1,)"),
        ("score", "return found.value", "returned ndarray and no Scores"),
        ("score", "found.value[:40] = np.nan; return found", "has a score for only 24 of 64 usual replies"),
        ("fit", "return FitReport(float('nan'), 40)", "an accuracy of nan"),
        ("normalise", "raise KeyError('scale')", "failed (KeyError: 'scale')"),
    ],
)
def test_a_reward_model_that_says_nothing_sensible_ends_the_run_before_the_policy_is_trained(
    tmp_path: Path, model: Path, method: str, does: str, says: str
) -> None:
    result, trained = ended(tmp_path, model, REWARD.format(method=method, does=does), reward="odd")
    assert result.reason.startswith("Reward model odd ")
    assert says in result.reason
    assert result.reason.endswith("fix the plugin that brings it, or train with another --reward.")
    assert not trained


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("del found['kl']; return found", "no finite number as kl from step"),
        ("return {**found, 'length': None, 'kl': float('nan')}", "no finite number as kl and length from step"),
        ("return None", "no finite number as kl and length from step"),
        ("raise RuntimeError('shapes differ')", "failed (RuntimeError: shapes differ)"),
    ],
)
def test_a_policy_algorithm_that_does_not_say_how_far_it_went_is_named(
    tmp_path: Path, model: Path, does: str, says: str
) -> None:
    result, _ = ended(tmp_path, model, ALGORITHM.format(does=does), algorithm="odd")
    assert result.reason.startswith("Policy algorithm odd ")
    assert says in result.reason
    assert result.reason.endswith("or train with another --algorithm.")


def test_a_rollout_backend_that_fails_in_an_algorithms_step_is_named_and_not_the_algorithm(
    tmp_path: Path, model: Path
) -> None:
    source = BACKEND.format(does="raise ConnectionError('gone')")
    result, trained = ended(tmp_path, model, source, rollouts="odd")
    assert result.reason.startswith("Rollout backend odd failed (ConnectionError: gone): ")
    assert result.reason.endswith("or train with another train.rollouts.")
    assert not trained


@pytest.mark.parametrize(
    "raised", ["MemoryError()", "RuntimeError('[enforce fail] DefaultCPUAllocator: can\\'t allocate memory')"]
)
def test_too_little_memory_is_no_plugins_fault(tmp_path: Path, model: Path, raised: str) -> None:
    result, _ = ended(tmp_path, model, ALGORITHM.format(does=f"raise {raised}"), algorithm="odd")
    assert result.reason.startswith("There is not enough memory. ")
    assert "`thumbwise train --resume`" in result.reason


def test_a_plugin_that_shapes_every_score_to_nan_is_named(tmp_path: Path, model: Path) -> None:
    result, _ = ended(tmp_path, model, SHAPE.format(does="return Scores(scores.value * np.nan)"))
    assert "Plugin odd returned no finite score from shape_reward for 8 samples" in result.reason


# --- what is wrong with scores, and with reports -----------------------------------------------------------


def scores(*values: float, std: Sequence[float] | None = None) -> Scores:
    return Scores(np.array(values, np.float32), None if std is None else np.array(std, np.float32))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (scores(1, np.nan), ""),
        (scores(1, -np.inf), ""),
        (scores(1, np.nan, std=[0.1, np.nan]), ""),
        (scores(np.nan, np.inf), "no finite score"),
        (scores(1, 2, 3), r"values of shape (3,)"),
        (scores(1, 2, std=[0.1, np.nan]), "deviations that are not finite or below 0"),
        (scores(1, 2, std=[0.1, -1]), "deviations that are not finite or below 0"),
        (Scores(np.array(["a", "b"])), "values that are no numbers"),
        ([1.0, 2.0], "list and no Scores"),
    ],
)
def test_a_few_without_an_opinion_are_let_be(given: Any, says: str) -> None:
    assert wrong_with(given, 2) == says


def test_one_reply_may_be_without_an_opinion_and_none_is_asked_about_nothing() -> None:
    assert wrong_with(scores(np.nan), 1) == ""
    assert wrong_with(scores(), 0) == ""


def test_scores_of_another_number_format_are_taken_as_float32() -> None:
    class Long:
        def score(self, samples: Sequence[Sample]) -> Scores:
            return Scores(np.array([1, 2]), np.array([0.5, 0.5]))  # type: ignore[arg-type]

    sample = Sample((), "", (1,), (2,), "length", "policy-0000")
    found = ShapedReward("long", Long(), None, None).plain([sample] * 2)  # type: ignore[arg-type]
    assert found.std is not None
    assert (found.value.dtype, found.std.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize(
    "fit",
    [
        FitReport(np.float32(0.7), np.int64(40), {}, np.float64(0.05)),  # type: ignore[arg-type]
        FitReport(0.5, 0),
        FitReport(1.0, 3, {}, 0.0),
        FitReport(0.7, 40, foretold=np.float32(0.6), foretold_votes=20, foretold_error=0.1),  # type: ignore[arg-type]
    ],
)
def test_reports_that_make_sense_pass(fit: FitReport) -> None:
    assert check_fit("mine", fit) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    "fit",
    [
        None,
        0.7,
        FitReport(float("nan"), 40),
        FitReport(1.2, 40),
        FitReport(-0.1, 40),
        FitReport(True, 40),
        FitReport("0.7", 40),  # type: ignore[arg-type]
        FitReport(0.7, -1),
        FitReport(0.7, 40.5),  # type: ignore[arg-type]
        FitReport(0.7, 40, {}, float("inf")),
        FitReport(0.7, 40, []),  # type: ignore[arg-type]
        FitReport(0.7, 40, foretold=7.0, foretold_votes=20),
        FitReport(0.7, 40, foretold=float("nan"), foretold_votes=20),
        FitReport(0.7, 40, foretold=0.7, foretold_votes=-1),
        FitReport(0.7, 40, foretold=0.7, foretold_votes=20, foretold_error=float("nan")),
    ],
)
def test_reports_that_make_none_are_refused_with_the_plugins_name(fit: Any) -> None:
    with pytest.raises(ThumbwiseError, match="Reward model mine returned"):
        check_fit("mine", fit)
