"""Log-probabilities from hidden states, a few rows at a time: the same numbers and gradients as from whole logits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from thumbwise.training.backbone import logprobs
from thumbwise.training.backbone.logprobs import Head

TEMPERATURE = 0.7


@pytest.fixture(params=["plain", "bias", "scaled", "capped"])
def head(request: pytest.FixtureRequest) -> Head:
    """As most models have it, as Phi has, Granite and Cohere, Gemma 2."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 50, bias=request.param == "bias").requires_grad_(False)
    return Head(layer, 0.5 if request.param == "scaled" else 1.0, 0.7 if request.param == "capped" else None)


def logits_of(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    """As the models have them."""
    logits = head.layer(hidden).float() * head.scale
    return logits if head.cap is None else torch.tanh(logits / head.cap) * head.cap


def whole(hidden: torch.Tensor, ids: torch.Tensor, head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """What PyTorch makes of it, with all logits at once."""
    rows = torch.log_softmax(logits_of(hidden, head) / TEMPERATURE, -1)
    return rows.gather(-1, ids[:, None])[:, 0], -(rows.exp() * rows).sum(-1)


@pytest.mark.parametrize("count", [0, 1, logprobs.ROWS, logprobs.ROWS + 1, 3 * logprobs.ROWS - 5])
def test_values_and_gradients_are_those_of_whole_logits(head: Head, count: int) -> None:
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
        torch.distributions.Categorical(logits=logits_of(x.detach(), head) / TEMPERATURE, validate_args=False)
        for x in (mine, other)
    )
    torch.testing.assert_close(both.kl, torch.distributions.kl_divergence(p, q), atol=1e-5, rtol=1e-4)


def test_they_are_taken_in_float32_whatever_the_models_format(head: Head) -> None:
    head.layer.bfloat16()
    hidden = torch.randn(5, 16).bfloat16().requires_grad_(True)
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


def test_entropy_is_in_nats(head: Head) -> None:
    zeros = torch.zeros(1, 16)
    head = replace(head, layer=torch.nn.Linear(16, 50, bias=False))
    entropy = logprobs.compare(zeros, zeros, torch.tensor([0]), head, TEMPERATURE).entropy
    assert float(entropy) == pytest.approx(math.log(50))


def test_the_kl_of_a_policy_needs_few_samples_because_it_looks_at_all_tokens(head: Head) -> None:
    policy, reference = torch.randn(1, 16), torch.randn(1, 16)
    ids = torch.multinomial(torch.softmax(logits_of(policy, head) / TEMPERATURE, -1), 20_000, replacement=True)[0]
    many = logprobs.compare(policy.expand(20_000, 16), reference.expand(20_000, 16), ids, head, TEMPERATURE)
    sampled = many.logp - many.reference  # k1: the same mean, and a deviation where the other has none
    assert float(sampled.mean()) == pytest.approx(float(many.kl.mean()), abs=4 * float(sampled.std()) / 20_000**0.5)
    assert float(many.kl.std()) < 1e-4 < float(sampled.std())
