"""A snapshot's lines, folds, and which prompts are held out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from thumbwise.errors import ThumbwiseError
from thumbwise.training.data.prompts import seed_prompts
from thumbwise.training.data.snapshot import folds, parse, split_prompts
from thumbwise.training.data.votes import Sampling


def test_folds_and_held_out_prompts_never_split_a_prompt() -> None:
    groups = [f"g{n // 3}" for n in range(100)]
    chosen = folds(groups, 5, seed=0)
    assert all(len({f for g, f in zip(groups, chosen, strict=True) if g == group}) == 1 for group in set(groups))
    sizes = [chosen.count(n) for n in range(5)]
    assert max(sizes) - min(sizes) <= 3
    own = [replace(p, group=f"own{n // 2}") for n, p in enumerate(seed_prompts()[:40])]
    split = split_prompts(own, seed_prompts(), 0.3, 48, seed=0)
    inside, outside = {p.group for p in (*split.own, *split.seeds)}, {p.group for p in split.held_out}
    assert inside & outside == set()
    assert not {p.messages[0]["content"] for p in (*split.own, *split.seeds)} & {
        p.messages[0]["content"] for p in split.held_out
    }
    assert 30 < len(split.held_out) <= 48
    assert split == split_prompts(own, seed_prompts(), 0.3, 48, seed=0)


def test_corrected_prompts_are_never_held_out_for_sft_learns_from_them() -> None:
    own = [replace(p, group=f"own{n}") for n, p in enumerate(seed_prompts()[:40])]
    taught = frozenset(f"own{n}" for n in range(30))
    split = split_prompts(own, seed_prompts(), 0.3, 48, 0, taught)
    assert taught <= {p.group for p in split.own}
    assert len({p.group for p in split.held_out if p.group.startswith("own")}) == 3
    assert len(split_prompts(own, seed_prompts(), 0.3, 48, 0, frozenset(p.group for p in own)).held_out) >= 30


def test_seed_prompts_are_150_different_short_ones_in_topics() -> None:
    prompts = seed_prompts()
    texts = [p.messages[0]["content"] for p in prompts]
    assert len(set(texts)) == 150
    assert len({p.group for p in prompts}) == 15
    assert max(map(len, texts)) < 80


def test_a_line_that_is_no_record_is_named() -> None:
    with pytest.raises(ThumbwiseError, match="Line 2 of the snapshot cannot be read"):
        parse(b'{"type":"other","prompt":[]}\n{"type":"comparison"}\n')


def test_drafts_are_the_judged_replies_of_one_version_sampled_one_way_each_once() -> None:
    def reply(name: str, version: str = "policy-0000", **sampling: object) -> dict[str, object]:
        asked = {"temperature": 0.7, "max_tokens": 8, "seed": None, "top_p": 1.0, "stop": []} | sampling
        return {
            "id": name, "text": "x", "prompt_ids": [1], "response_ids": [2], "finish_reason": "stop",
            "policy_version": version, "sampling": asked,
        }  # fmt: skip

    def pair(left: dict[str, object], right: dict[str, object]) -> dict[str, object]:
        return {"type": "comparison", "choice": "left", "strength": 1, "left": left, "right": right}

    rows = [
        pair(reply("a"), reply("b", max_tokens=9)), pair(reply("a"), reply("c", "policy-0001")),
        pair(reply("d", temperature=1.0), reply("e", stop=["."])), pair(reply("f", top_p=0.5), reply("g", seed=3)),
        {"type": "thumb", "up": True, "reply": reply("h")},
        {"type": "ranking", "tiers": [0, 1], "drafts": [reply("i"), reply("b", max_tokens=9)]},
    ]  # fmt: skip
    shared = {"id": "1", "user": "u", "group": "g", "prompt": []}
    snapshot = parse("".join(json.dumps(row | shared) + "\n" for row in rows).encode())
    found = snapshot.drafts("policy-0000", Sampling(0.7, 8, longest=8))
    assert [draft.meta["id"] for draft in found] == ["a", "g", "i", "h"]
    longer = snapshot.drafts("policy-0000", Sampling(0.7, 8, longest=9))
    assert [draft.meta["id"] for draft in longer] == ["a", "b", "g", "i", "h"]
