"""Every policy algorithm's learning rate follows its KL, so that they can be compared at the same KL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_policy import low_ids

from thumbwise.home import Home
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings.training import TrainSettings
from thumbwise.training.policy import losses
from thumbwise.training.policy.state import PolicyState

SMALL = TrainSettings(
    dtype="float32", episodes=16, replies=4, best_of=4, minibatches=2, micro_batch=16, iterations=10, lora_rank=8,
    learning_rate=5e-3, value_learning_rate=5e-3, warmup=0, kl_coefficient=0.2,
)  # fmt: skip
ALGORITHMS = ("ppo", "best_of_n", "dpo", "kto", "rloo")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_algorithm_is_steered(make: Callable[..., Any], tmp_path: Path) -> None:
    plugins = PluginManager(Home.find(tmp_path / "home")).load()
    assert set(plugins.registry("policy_algorithms")) == set(ALGORITHMS)
    assert all(isinstance(make(name, low_ids), PolicyState) for name in ALGORITHMS)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_rate_is_lowered_where_kl_would_pass_its_target_and_resumes_so(make: Callable[..., Any], name: str) -> None:
    algorithm = make(name, low_ids, kl_target=0.01)
    rows = [algorithm.step(i) for i in range(3)]
    before = algorithm.state_dict()
    rows += [algorithm.step(i) for i in range(3, 5)]
    factors = [row["learning_rate"] / (5e-3 * (1 - 0.1 * i)) for i, row in enumerate(rows)]
    assert rows[1]["kl_token"] > 0.01  # the first step went too far, so the rate is halved as long as that is so
    assert factors[:3] == pytest.approx([1, 0.5, 0.25])
    algorithm.load_state_dict(before)
    assert [algorithm.step(i)["learning_rate"] for i in range(3, 5)] == [row["learning_rate"] for row in rows[3:]]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_rate_is_raised_where_kl_would_not_come_to_its_target(make: Callable[..., Any], name: str) -> None:
    algorithm = make(name, low_ids, kl_target=100.0)
    rates = [algorithm.step(i)["learning_rate"] / (5e-3 * (1 - 0.1 * i)) for i in range(3)]
    assert rates == pytest.approx([1, 1.2, 1.44])


@pytest.mark.parametrize("tokens", [5, 40])
def test_a_long_reply_pays_no_more_for_its_kl_a_token_than_a_short_one(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    prices = []

    def spied(score: Any, kl: Any, mask: Any, beta: float) -> Any:
        prices.append(beta)
        return token_rewards(score, kl, mask, beta)

    token_rewards = losses.token_rewards
    monkeypatch.setattr(losses, "token_rewards", spied)
    for name in ("ppo", "rloo"):
        algorithm = make(name, low_ids, kl_coefficient=2.0)
        algorithm.context = replace(algorithm.context, lengths=(tokens,))
        length = algorithm.step(0)["length"]
        prices += [algorithm.trainer.beta] if name == "rloo" else []
        assert prices[-1] * length == pytest.approx(2.0)
        assert length > tokens / 2
    assert len(prices) == 2


@pytest.mark.parametrize("kl_target", [1e-3, 100.0])
def test_what_kl_costs_stays_the_same_however_far_the_policy_goes(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kl_target: float
) -> None:
    """The learning rate alone is steered: a coefficient that moves by 1% a batch never holds a policy back."""
    prices: list[float] = []

    def spied(score: Any, kl: Any, mask: Any, beta: float) -> Any:
        prices.append(beta)
        return token_rewards(score, kl, mask, beta)

    token_rewards = losses.token_rewards
    monkeypatch.setattr(losses, "token_rewards", spied)
    algorithm = make("ppo", low_ids, kl_coefficient=2.0, kl_target=kl_target)
    rows = [algorithm.step(i) for i in range(3)]
    assert [price * row["length"] for price, row in zip(prices, rows, strict=True)] == pytest.approx([2.0] * 3)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_long_replies_may_go_as_far_by_token_as_short_ones(make: Callable[..., Any], name: str) -> None:
    """What is steered does not shrink with a reply's length, as nats a reply would."""
    algorithm = make(name, low_ids, kl_target=0.1)
    row = {}
    for i in range(2):
        row = algorithm.step(i)
    assert row["kl_token"] == pytest.approx(row["kl"] / row["length"], rel=1e-4)
    assert algorithm.pace.marks[-1][1] == pytest.approx(row["kl_token"] ** 0.5, rel=1e-4)
