"""Log-probabilities from hidden states, a few rows at a time: the same numbers and gradients as from whole logits."""

from __future__ import annotations

import math

import pytest
import torch

from thumbwise.training import logprobs

TEMPERATURE = 0.7


@pytest.fixture
def head() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(16, 50, bias=False).requires_grad_(False)


def whole(hidden: torch.Tensor, ids: torch.Tensor, head: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """What PyTorch makes of it, with all logits at once."""
    rows = torch.log_softmax(head(hidden).float() / TEMPERATURE, -1)
    return rows.gather(-1, ids[:, None])[:, 0], -(rows.exp() * rows).sum(-1)


@pytest.mark.parametrize("count", [0, 1, logprobs.ROWS, logprobs.ROWS + 1, 3 * logprobs.ROWS - 5])
def test_values_and_gradients_are_those_of_whole_logits(head: torch.nn.Linear, count: int) -> None:
    hidden, ids, weights = torch.randn(count, 16), torch.randint(50, (count,)), torch.randn(count)
    mine, leaf = hidden.clone().requires_grad_(True), hidden.clone().requires_grad_(True)
    found, (wanted, entropy) = logprobs.token_logprobs(mine, ids, head, TEMPERATURE), whole(leaf, ids, head)
    ((found * weights).sum() * 3).backward()
    ((wanted * weights).sum() * 3).backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(mine.grad, leaf.grad)
    for one, other in zip(logprobs.logprobs_and_entropy(mine, ids, head, TEMPERATURE), (wanted, entropy), strict=True):
        torch.testing.assert_close(one, other.detach())
        assert not one.requires_grad


def test_they_are_taken_in_float32_whatever_the_models_format(head: torch.nn.Linear) -> None:
    head, hidden = head.bfloat16(), torch.randn(5, 16).bfloat16().requires_grad_(True)
    ids = torch.arange(5)
    logp = logprobs.token_logprobs(hidden, ids, head, TEMPERATURE)
    assert {x.dtype for x in (logp, *logprobs.logprobs_and_entropy(hidden, ids, head, TEMPERATURE))} == {torch.float32}
    logp.sum().backward()
    mine, leaf = hidden.grad, hidden.detach().clone().requires_grad_(True)
    whole(leaf, ids, head)[0].sum().backward()
    assert mine is not None
    assert leaf.grad is not None
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, leaf.grad, atol=0.02, rtol=0.02)


def test_entropy_is_in_nats(head: torch.nn.Linear) -> None:
    _, entropy = logprobs.logprobs_and_entropy(torch.zeros(1, 16), torch.tensor([0]), head, TEMPERATURE)
    assert float(entropy) == pytest.approx(math.log(50))
