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
    found = []
    for function in (lambda h: whole(h, ids, head), lambda h: logprobs.token_logprobs(h, ids, head, TEMPERATURE)):
        leaf = hidden.clone().requires_grad_(True)
        logp, entropy = function(leaf)
        ((logp * weights).sum() * 3).backward()
        assert leaf.grad is not None
        found.append((logp.detach(), entropy.detach(), leaf.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_they_are_taken_in_float32_whatever_the_models_format(head: torch.nn.Linear) -> None:
    head, hidden = head.bfloat16(), torch.randn(5, 16).bfloat16().requires_grad_(True)
    ids = torch.arange(5)
    logp, entropy = logprobs.token_logprobs(hidden, ids, head, TEMPERATURE)
    assert (logp.dtype, entropy.dtype) == (torch.float32, torch.float32)
    logp.sum().backward()
    mine, leaf = hidden.grad, hidden.detach().clone().requires_grad_(True)
    whole(leaf, ids, head)[0].sum().backward()
    assert mine is not None
    assert leaf.grad is not None
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, leaf.grad, atol=0.02, rtol=0.02)


def test_entropy_is_in_nats_and_has_no_gradient(head: torch.nn.Linear) -> None:
    hidden = torch.zeros(1, 16, requires_grad=True)
    _, entropy = logprobs.token_logprobs(hidden, torch.tensor([0]), head, TEMPERATURE)
    assert float(entropy) == pytest.approx(math.log(50))
    assert not entropy.requires_grad
