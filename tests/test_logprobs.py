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
    other = torch.randn(count, 16)
    both = logprobs.compare(mine, other, ids, head, TEMPERATURE)
    for one, same in ((both.logp, wanted), (both.entropy, entropy), (both.reference, whole(other, ids, head)[0])):
        torch.testing.assert_close(one, same.detach())
        assert not one.requires_grad
    p, q = (
        torch.distributions.Categorical(logits=head(x.detach()) / TEMPERATURE, validate_args=False)
        for x in (mine, other)
    )
    torch.testing.assert_close(both.kl, torch.distributions.kl_divergence(p, q), atol=1e-5, rtol=1e-4)


def test_they_are_taken_in_float32_whatever_the_models_format(head: torch.nn.Linear) -> None:
    head, hidden = head.bfloat16(), torch.randn(5, 16).bfloat16().requires_grad_(True)
    ids = torch.arange(5)
    logp = logprobs.token_logprobs(hidden, ids, head, TEMPERATURE)
    both = logprobs.compare(hidden, hidden, ids, head, TEMPERATURE)
    assert {x.dtype for x in (logp, both.logp, both.reference, both.entropy, both.kl)} == {torch.float32}
    logp.sum().backward()
    mine, leaf = hidden.grad, hidden.detach().clone().requires_grad_(True)
    whole(leaf, ids, head)[0].sum().backward()
    assert mine is not None
    assert leaf.grad is not None
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, leaf.grad, atol=0.02, rtol=0.02)


def test_entropy_is_in_nats(head: torch.nn.Linear) -> None:
    zeros = torch.zeros(1, 16)
    entropy = logprobs.compare(zeros, zeros, torch.tensor([0]), head, TEMPERATURE).entropy
    assert float(entropy) == pytest.approx(math.log(50))


def test_the_kl_of_a_policy_needs_few_samples_because_it_looks_at_all_tokens(head: torch.nn.Linear) -> None:
    policy, reference = torch.randn(1, 16), torch.randn(1, 16)
    ids = torch.multinomial(torch.softmax(head(policy) / TEMPERATURE, -1), 20_000, replacement=True)[0]
    many = logprobs.compare(policy.expand(20_000, 16), reference.expand(20_000, 16), ids, head, TEMPERATURE)
    sampled = many.logp - many.reference  # k1: the same mean, and a deviation where the other has none
    assert float(sampled.mean()) == pytest.approx(float(many.kl.mean()), abs=4 * float(sampled.std()) / 20_000**0.5)
    assert float(many.kl.std()) < 1e-4 < float(sampled.std())
