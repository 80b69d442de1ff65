"""Attention layouts and heads as families of models have them, tiny and random: rollouts and the trainer's own forward
pass say what a plain forward pass of each sequence by itself says.

Prompts of unlike lengths begin alike, and some are longer than the sliding windows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import make_tiny_model
from toy_policy import disturb
from transformers import AutoConfig, AutoModelForCausalLM

from thumbwise.contracts import Sample
from thumbwise.training.config import TrainSettings
from thumbwise.training.models import POLICY, Backbone
from thumbwise.training.rollouts import generate

pytestmark = pytest.mark.usefixtures("one_thread")

TEMPERATURE = 0.7
SHARED = [11, 12, 13, 14, 15]
PROMPTS = [[*SHARED, *range(20, 20 + n)] for n in (1, 4, 9, 15)] + [[*SHARED, 20]]
WINDOW = {"sliding_window": 8}
SLIDING = ["sliding_attention", "full_attention"]
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen 2": ("qwen2", {}),
    "qwen 2, window": ("qwen2", WINDOW | {"use_sliding_window": True, "layer_types": SLIDING}),
    "qwen 3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", WINDOW),
    "phi": ("phi", {}),  # its head has a bias
    "phi 3, window": ("phi3", WINDOW | {"pad_token_id": 0}),
    "gemma 2, window, soft caps": (
        "gemma2",
        WINDOW | {"layer_types": SLIDING, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    ),
    "gemma 3, window": ("gemma3_text", WINDOW | {"layer_types": SLIDING}),
    "cohere, scaled": ("cohere", {"logit_scale": 0.25}),
    "cohere 2, window": ("cohere2", WINDOW | {"layer_types": SLIDING, "logit_scale": 0.25}),
    "granite, scaled": ("granite", {"logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "smollm 3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "smollm 3, window": ("smollm3", WINDOW | {"use_sliding_window": True, "layer_types": SLIDING}),
    "olmo 2": ("olmo2", {}),
    "gpt 2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128}),
}


def make(folder: Path, kind: str, changes: dict[str, Any]) -> Backbone:
    """A model of `kind` on disk, and on it a policy that differs from it."""
    make_tiny_model(folder)  # for its tokenizer
    config = AutoConfig.for_model(
        kind, **{
            "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
            "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, **changes,
        }
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
        head = model.get_output_embeddings()
        if head.bias is not None:
            torch.nn.init.normal_(head.bias)
    model.save_pretrained(folder)
    backbone = Backbone(folder, TrainSettings(dtype="float32", lora_rank=8))
    disturb(backbone)
    return backbone


def alone(backbone: Backbone, sample: Sample) -> torch.Tensor:
    """Log-probabilities of a reply's tokens, by the model itself, without pads, a cache or company."""
    with backbone.using(POLICY), torch.no_grad():
        logits = backbone.base(input_ids=torch.tensor([[*sample.prompt_ids, *sample.response_ids]])).logits[0]
    rows = torch.log_softmax(logits[len(sample.prompt_ids) - 1 : -1].float() / TEMPERATURE, -1)
    return rows.gather(1, torch.tensor(sample.response_ids)[:, None])[:, 0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_rollouts_and_trainer_say_what_the_model_says_of_each_sequence_alone(tmp_path: Path, name: str) -> None:
    backbone = make(tmp_path, *LAYOUTS[name])
    before = backbone.base_sha256()
    replies = generate(
        backbone.merged(POLICY), PROMPTS, max_tokens=[12, 5, 12, 12, 9], temperature=TEMPERATURE, stop_ids=frozenset(),
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
