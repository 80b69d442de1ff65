"""Sampling in process: plain sampling at one temperature, the same in a batch as alone."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_model import make_tiny_model
from toy_policy import PROMPTS
from transformers import LlamaForCausalLM

from thumbwise.contracts import RunContext
from thumbwise.errors import ThumbwiseError
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.attention import GROUPED, grouped_attention
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.backbone.batches import shared_prefix
from thumbwise.training.data.lengths import at_lengths
from thumbwise.training.policy.rollouts import InProcess, draw, generate, prefill

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone(make_tiny_model(tmp_path_factory.mktemp("model")), TrainSettings(dtype="float32"))


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_model(tmp_path / "odd")
    whole = LlamaForCausalLM.forward

    def squared(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = whole(self, *args, **kwargs)
        out.logits = out.logits**2
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", squared)
    with pytest.raises(ThumbwiseError, match="odd changes its logits after the head"):
        Backbone(folder, TrainSettings(dtype="float32"))


def test_drawing_follows_the_distribution_and_repeats_with_its_seed() -> None:
    logits = torch.tensor([[0.0, math.log(3.0), -math.inf]]).repeat(4000, 1)
    ids, logprobs = draw(logits, 1.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(logprobs, torch.tensor([0.25, 0.75]).log()[ids])
    assert (ids == 2).sum() == 0
    assert abs(float((ids == 1).float().mean()) - 0.75) < 0.03
    assert torch.equal(ids, draw(logits, 1.0, torch.Generator().manual_seed(0))[0])
    assert draw(logits, 0.0, torch.Generator())[0][0] == 1


def test_generation_in_a_batch_is_greedily_the_same_as_alone(backbone: Backbone) -> None:
    prompts = [backbone.chat.prompt_ids(p.messages) for p in PROMPTS]
    settings: dict[str, Any] = {
        "max_tokens": 8, "temperature": 0.0, "stop_ids": frozenset({2}), "pad_id": backbone.pad_id, "seed": 0,
    }  # fmt: skip
    together = generate(backbone.generator, prompts, **settings)
    for prompt, reply in zip(prompts, together, strict=True):
        assert generate(backbone.generator, [prompt], **settings)[0].ids == reply.ids


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_grouped_attention_is_what_every_query_head_finds_by_itself(steps: int, masked: bool) -> None:
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 6, steps, 8), torch.randn(2, 2, 2, 5, 8)
    mask = torch.rand(2, 1, steps, 5) > 0.3
    mask[..., 0] = True
    module = SimpleNamespace(num_key_value_groups=3, is_causal=False)
    found, _ = grouped_attention(module, query, key, value, mask if masked else None, scaling=0.5)
    scores = query @ key.repeat_interleave(3, 1).transpose(2, 3) * 0.5
    chances = (scores.masked_fill(~mask, -math.inf) if masked else scores).softmax(-1)
    torch.testing.assert_close(found, (chances @ value.repeat_interleave(3, 1)).transpose(1, 2))


def test_generation_has_attention_of_its_own_and_what_is_learned_from_has_not(backbone: Backbone) -> None:
    assert backbone.generator.config._attn_implementation == GROUPED
    assert backbone.base.config._attn_implementation == "sdpa"


def test_a_reply_ends_with_its_first_stop_id_and_leaves_the_batch(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [backbone.chat.prompt_ids(p.messages) for p in PROMPTS]
    settings: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "pad_id": backbone.pad_id, "seed": 0}
    whole = [reply.ids for reply in generate(backbone.generator, prompts, stop_ids=frozenset(), **settings)]
    stop = next(ids[3] for ids in whole if ids[3] not in ids[:3])
    expected = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in whole]
    assert len({len(ids) for ids in expected}) > 1  # some end early, some do not
    rows: list[int] = []
    body = backbone.generator.forward

    def spied(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(kwargs["input_ids"]))
        return body(*args, **kwargs)

    monkeypatch.setattr(backbone.generator, "forward", spied)
    replies = generate(backbone.generator, prompts, stop_ids=frozenset({stop, -1}), **settings)
    assert [reply.ids for reply in replies] == expected
    assert [reply.finish_reason for reply in replies] == ["stop" if ids[-1] == stop else "length" for ids in expected]
    assert all(len(reply.logprobs) == len(reply.ids) for reply in replies)
    assert rows[-7:] == [sum(len(ids) > n for ids in expected) for n in range(1, 8)]


def test_each_reply_has_a_limit_of_its_own(backbone: Backbone) -> None:
    prompts = [backbone.chat.prompt_ids(p.messages) for p in PROMPTS[:3]]
    settings: dict[str, Any] = {"temperature": 0.0, "stop_ids": frozenset({-1}), "pad_id": backbone.pad_id, "seed": 0}
    whole = generate(backbone.generator, prompts, max_tokens=8, **settings)
    cut = generate(backbone.generator, prompts, max_tokens=[2, 8, 5], **settings)
    assert [reply.ids for reply in cut] == [r.ids[:n] for r, n in zip(whole, (2, 8, 5), strict=True)]
    train = TrainSettings()
    context = RunContext(backbone, train, 1.0, 6, (), (), Path(), lengths=(3, 3, 4))
    asked = at_lengths(context, [*PROMPTS[:3], replace(PROMPTS[0])], random.Random(0))
    assert {prompt.max_tokens for prompt in asked} <= {3, 4}
    replies = InProcess(context).sample([*asked, PROMPTS[1]], None, seed=1)
    assert [len(reply.response_ids) for reply in replies] == [*(prompt.max_tokens for prompt in asked), 6]
    assert [reply.prompt for reply in replies] == [prompt.messages for prompt in [*asked, PROMPTS[1]]]


def test_what_prompts_share_is_read_once(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared_prefix([(1, 2, 3, 4), (1, 2, 5)]) == 2
    assert shared_prefix([(1, 2, 3), (1, 2, 3)]) == 2  # the last one is what the first logits come from
    assert shared_prefix([(1,), (1, 2)]) == shared_prefix([(3, 1), (4, 1)]) == 0
    read: list[tuple[int, ...]] = []
    model = backbone.generator
    body = model.base_model.forward

    def spied(*args: Any, **kwargs: Any) -> Any:
        read.append(tuple(kwargs["input_ids"].shape))
        return body(*args, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", spied)
    with torch.no_grad():
        logits, cache, mask, lengths = prefill(model, [[5, 6, 7, 8], [5, 6, 9], [5, 6, 9]], backbone.pad_id, 2)
        assert read == [(1, 2), (2, 2)]
        assert mask.tolist() == [[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]]
        assert lengths.tolist() == [4, 3, 3]
        assert cache.layers[0].keys.shape[0] == 3
        for row, prompt in enumerate(([5, 6, 7, 8], [5, 6, 9], [5, 6, 9])):
            alone = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(logits[row], alone, atol=1e-4, rtol=0)
