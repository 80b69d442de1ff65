"""What the pages make of stored rows, without a browser."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from thumbwise.errors import EngineFailed
from thumbwise.feedback.records import Reply, ReplyState
from thumbwise.pages import live as live_module
from thumbwise.pages.live import Live
from thumbwise.pages.locks import Locks
from thumbwise.pages.markup import escape
from thumbwise.pages.view import excerpt, log_html, prompt_of, sentence, status_of


def reply(question: str, text: str, state: ReplyState = "done", thumb: Any = None, error: Any = None) -> Reply:
    prompt = ({"role": "user", "content": question},)
    return Reply("msg_1", "local", prompt, "conv_1", None, None, "policy-0000", state, text, None, error, thumb)  # type: ignore[arg-type]


def test_a_reply_that_came_to_nothing_is_left_out_of_the_prompt_with_its_question() -> None:
    path = [
        reply("a", "A"),
        reply("b", "", "failed"),
        reply("c", "C, cut", "stopped"),
        reply("d", " \n", "stopped"),
        reply("e", "E, broken", "failed"),
    ]
    messages = prompt_of(path, "f")
    assert [m["content"] for m in messages] == ["a", "A", "c", "C, cut", "e", "E, broken", "f"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 3 + ["user"]


def test_every_reply_is_shown_as_one_question_and_one_answer() -> None:
    path = [reply("a", "A", thumb="up"), reply("b", "", "failed", thumb=None), reply("c", "", "streaming")]
    shown = log_html(path)
    assert re.findall(r'data-testid="(\w+)"', shown) == ["user", "bot"] * 3
    assert re.findall(r'aria-label="(\w+)"', shown) == ["Copy", "Liked", "Dislike", "Copy", "Copy", "Like", "Dislike"]
    assert status_of(path)[0] == "streaming"
    assert status_of([])[0] == "idle"


def test_what_a_message_says_stays_inside_its_bubble() -> None:
    evil = '"><button data-thumb=up>x</button><label for=tw-skip id=y style="position:fixed">'
    shown = log_html([reply(evil, evil), reply("q", "", "failed", error=evil)])
    found: list[tuple[str, set[str]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.append((tag, {name for name, _ in attributes}))

    Tags().feed(shown)
    assert [tag for tag, _ in found].count("button") == 4
    assert not {tag for tag, _ in found} & {"label", "form", "input", "style", "script"}
    assert not {name for _, names in found for name in names} & {"id", "for", "style"}


@pytest.mark.parametrize("cut", ["length", "context"])
def test_a_reply_that_broke_off_says_why_to_eye_and_ear(cut: Any) -> None:
    path = [replace(reply("a", "A, cut"), cut=cut)]
    said = status_of(path)[1]
    assert said in log_html(path)
    assert said.startswith("The reply ends here:")
    assert ("new chat" in said) == (cut == "context")


def test_text_in_html_carries_no_tag_and_no_template() -> None:
    assert not set(escape("<b>\"'${x}{{y}}`\\")) & set("<>\"'${`\\")


def test_an_excerpt_is_one_plain_line() -> None:
    assert excerpt("# Title\n\n> **bold** _and_ *slanted* `text`") == "Title bold and slanted text"
    assert excerpt("Is 2 * 3 > 1 in C#, or in snake_case_too?") == "Is 2 * 3 > 1 in C#, or in snake_case_too?"
    assert len(excerpt("word " * 50, 20)) <= 20


def test_a_conversation_that_is_too_long_says_what_to_do() -> None:
    refused = "vLLM refused the request: This model's maximum context length is 2048 tokens. However, …"
    assert sentence(refused).endswith("start a new chat.")
    assert sentence("vLLM is gone: try again.") == "vLLM is gone: try again."


async def test_locks_of_different_names_do_not_wait_for_each_other() -> None:
    locks = Locks()
    async with locks.of("a"), asyncio.timeout(10):
        assert locks.of("a").locked()
        async with locks.of("b"):
            pass
    assert not locks.of("a").locked()
    assert len(locks._locks) == 0


async def test_a_live_reply_goes_on_without_a_follower_and_stops_on_request() -> None:
    going = asyncio.Event()
    closed = asyncio.Event()

    async def frames() -> AsyncGenerator[str, None]:
        try:
            yield "a"
            await going.wait()
            yield "ab"
            await asyncio.Event().wait()
        finally:
            closed.set()

    live = Live(frames(), "", asyncio.create_task, str.upper)
    seen = []
    async with aclosing(live.follow()) as followed:
        async for frame in followed:
            seen.append(frame)
            if frame == "A":
                going.set()
            if frame == "AB":
                break
    assert seen[-2:] == ["A", "AB"]
    await live.stop()
    assert closed.is_set()
    assert not live.running
    assert [frame async for frame in live.follow()] == []
    assert (live.frame, live.shown) == ("ab", "AB")


async def test_a_follower_of_a_reply_that_says_nothing_is_free_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "QUIET_SECONDS", 0.01)

    async def frames() -> AsyncGenerator[str, None]:
        yield "a"
        await asyncio.Event().wait()

    live, seen = Live(frames(), "", asyncio.create_task, str), []
    async with asyncio.timeout(10), aclosing(live.follow()) as followed:
        async for frame in followed:
            seen.append(frame)
            if frame is None:
                break
    assert seen[-2:] == ["a", None]
    assert live.running
    await live.stop()


async def test_followers_share_what_is_made_of_a_frame() -> None:
    made = []

    async def frames() -> AsyncGenerator[str, None]:
        yield "a"
        await asyncio.Event().wait()

    live = Live(frames(), "", asyncio.create_task, lambda frame: made.append(frame) or frame)
    async with aclosing(live.follow()) as one, aclosing(live.follow()) as two:
        async with asyncio.timeout(10):
            while "a" not in (await anext(one), await anext(two)):
                pass
    assert len(made) == len(set(made))
    await live.stop()


async def test_a_live_reply_that_fails_keeps_its_sentence() -> None:
    async def frames() -> AsyncGenerator[str, None]:
        yield "a"
        raise EngineFailed("vLLM is gone: try again.")

    live = Live(frames(), "", asyncio.create_task, str)
    assert all(frame in ("", "a") for frame in [frame async for frame in live.follow()])
    assert live.error == "vLLM is gone: try again."
