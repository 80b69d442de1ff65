"""Comparisons: sides, the rate at which drafts are revealed, and what happens when nobody looks any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngineClient, asker
from team import team

from thumbwise.engine.client import Chunk
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import Asker
from thumbwise.serving.assistant import Assistant

ASK = [{"role": "user", "content": "Hello?"}]


@pytest.fixture
def engine(assistant: Assistant) -> FakeEngineClient:
    return assistant.engine.client  # type: ignore[union-attr, return-value]


async def test_sides_are_drawn_evenly(assistant) -> None:
    assistant.policies.live = lambda: ["policy-0000", "policy-0001-aaaaaaaaaaaa"]  # type: ignore[method-assign]
    assistant.plugins.candidates = lambda conversation, live, *_: list(live)  # type: ignore[method-assign]
    opened = [await assistant.comparisons.open(asker(), ASK, 2, None, "api") for _ in range(300)]
    left = sum(o.turns[0].version == "policy-0000" for o in opened)
    assert 105 < left < 195  # 5.2 standard deviations of a fair coin


async def test_drafts_are_revealed_at_an_equal_rate_and_whole_at_the_end(assistant, engine) -> None:
    opened = await assistant.comparisons.open(asker(), ASK, 2, None, "page")
    whole, gate, held, views = engine.chat, asyncio.Event(), iter([True, False]), []

    async def chat(*asked: Any) -> AsyncGenerator[Chunk, None]:
        waits = next(held)
        async for chunk in whole(*asked):
            yield chunk
            if waits:
                await gate.wait()

    engine.chat = chat
    async for view in assistant.comparisons.stream(opened, asker()):
        views.append(view)
        if len(views) == 4:
            gate.set()
    assert views[1:4] == [["Hello"] * 2] * 3  # though the second draft is long finished
    assert views[-1] == ["Hello there friend"] * 2
    assert assistant.store.comparison(opened.comparison_id, "local").drafts[0].state == "done"


async def test_closing_a_comparison_stops_every_draft(assistant, engine) -> None:
    engine.gate = asyncio.Event()
    opened = await assistant.comparisons.open(asker(), ASK, 2, None, "page")
    stream = assistant.comparisons.stream(opened, asker())
    await anext(stream)
    await stream.aclose()
    assert engine.open_streams == 0
    assert {row["state"] for row in assistant.store.rows("SELECT state FROM replies")} == {"stopped"}


async def test_the_metrics_tell_nobody_who_writes_a_draft(http, assistant) -> None:
    assistant.policies.live = lambda: ["policy-0000", "policy-0001-aaaaaaaaaaaa"]  # type: ignore[method-assign]
    metrics = (await http.get("/metrics")).text
    assert (await http.post("/v1/comparisons", json={"messages": ASK, "k": 4})).status_code == 200
    found = [line for line in (await http.get("/metrics")).text.splitlines() if line not in metrics.splitlines()]
    assert any("thumbwise_tokens_total" in line for line in found)
    assert not [line for line in found if "policy-" in line]


async def test_who_does_not_let_chats_be_kept_gets_no_comparison_and_nothing_is_stored(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann", consent=False)
        asker, comparisons = Asker(ann.id, ann.id), here.assistant.comparisons
        with pytest.raises(ThumbwiseError, match="Keep my chats"):
            await comparisons.open(asker, [{"role": "user", "content": "Hello"}], 2, None, "api")
        assert await here.assistant.store.run(here.assistant.store.rows, "SELECT * FROM comparisons") == []
