"""Attention layouts and heads as families of models have them, tiny and random: rollouts and the trainer's own forward
pass say what a plain forward pass of each sequence by itself says.

Prompts of unlike lengths begin alike, and some are longer than the sliding windows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from layouts import LAYOUTS, make_layout
from toy_policy import disturb

from thumbwise.contracts import Sample
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import POLICY, Backbone
from thumbwise.training.policy.rollouts import generate

pytestmark = pytest.mark.usefixtures("one_thread")

TEMPERATURE = 0.7
SHARED = [11, 12, 13, 14, 15]
PROMPTS = [[*SHARED, *range(20, 20 + n)] for n in (1, 4, 9, 15)] + [[*SHARED, 20]]


def alone(backbone: Backbone, sample: Sample) -> torch.Tensor:
    """Log-probabilities of a reply's tokens, by the model itself, without pads, a cache or company."""
    with backbone.using(POLICY), torch.no_grad():
        logits = backbone.base(input_ids=torch.tensor([[*sample.prompt_ids, *sample.response_ids]])).logits[0]
    rows = torch.log_softmax(logits[len(sample.prompt_ids) - 1 : -1].float() / TEMPERATURE, -1)
    return rows.gather(1, torch.tensor(sample.response_ids)[:, None])[:, 0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_rollouts_and_trainer_say_what_the_model_says_of_each_sequence_alone(tmp_path: Path, name: str) -> None:
    backbone = Backbone(make_layout(name, tmp_path), TrainSettings(dtype="float32", lora_rank=8))
    disturb(backbone)
    before = backbone.base_sha256()
    with backbone.sampling(POLICY) as model:
        replies = generate(
            model, PROMPTS, max_tokens=[12, 5, 12, 12, 9], temperature=TEMPERATURE, stop_ids=frozenset(),
            pad_id=backbone.pad_id, seed=0,
        )  # fmt: skip
    samples = [
        Sample((), "", tuple(prompt), reply.ids, "length", "policy", reply.logprobs)
        for prompt, reply in zip(PROMPTS, replies, strict=True)
    ]
    batch = backbone.batch(samples)
    assert batch.shared == len(SHARED)
    trainer = backbone.logprobs(batch, POLICY, TEMPERATURE).detach()
    for row, sample in enumerate(samples):
        expected = alone(backbone, sample)
        assert sample.rollout_logprobs is not None
        torch.testing.assert_close(torch.tensor(sample.rollout_logprobs), expected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(trainer[row, : len(expected)], expected, atol=1e-3, rtol=1e-3)
    assert backbone.base_sha256() == before  # GPT-2's linear layers are of a kind of their own
