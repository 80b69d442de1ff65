"""What the pages make of stored rows, without a browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from thumbwise.errors import EngineFailed, ThumbwiseError
from thumbwise.feedback.records import Reply, ReplyState
from thumbwise.pages.chat import clicked
from thumbwise.pages.live import Live
from thumbwise.pages.markup import escape, markdown
from thumbwise.pages.view import excerpt, messages_of, prompt_of, sentence, status_of, thumbs_of


def reply(question: str, text: str, state: ReplyState = "done", thumb: Any = None) -> Reply:
    prompt = ({"role": "user", "content": question},)
    return Reply("msg_1", "local", prompt, "conv_1", None, None, "policy-0000", state, text, None, None, thumb)  # type: ignore[arg-type]


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
    shown = messages_of(path, "so far")
    assert [m["role"] for m in shown] == ["user", "assistant"] * 3
    assert all(m["content"] for m in shown)
    assert shown[-1]["content"] == "so far"
    assert thumbs_of(path) == ["Like", None, None]
    assert status_of(path)[0] == "streaming"
    assert status_of([])[0] == "idle"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a < b & c, <b> &amp; &#60;", "a < b & c, &lt;b> &amp;amp; &amp;#60;"),
        ("`<b>` </b>", "`<b>` &lt;/b>"),
        ("Text\n\n    if a < b && c:\n        pass", "Text\n\n    if a < b && c:\n        pass\n\n\u200b"),
        ("```\n<b>\n```\n<b>", "```\n<b>\n```\n&lt;b>"),
        ("```\n<b> unfinished", "```\n<b> unfinished"),
        ("![p](https://example.com/p.png)", "&#33;[p](https://example.com/p.png)"),
    ],
)
def test_markup_outside_code_is_shown_as_text(text: str, shown: str) -> None:
    assert markdown(text) == shown


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


def test_a_click_means_the_reply_at_its_index() -> None:
    path = [reply("a", "A"), reply("b", "B")]
    assert clicked(path, {"index": 3, "value": "anything", "liked": False}) == (path[1], "down")
    assert clicked(path, {"index": 1, "liked": ""}) == (path[0], "clear")
    for forged in ({"index": True, "liked": True}, {"index": 5, "liked": True}, {"index": 1, "liked": 0}, [], None):
        with pytest.raises(ThumbwiseError):
            clicked(path, forged)


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

    live = Live(frames(), "", asyncio.create_task)
    seen = []
    async for frame in live.follow(lambda: True):
        seen.append(frame)
        if frame == "a":
            going.set()
        if frame == "ab":
            break
    assert seen[-2:] == ["a", "ab"]
    await live.stop()
    assert closed.is_set()
    assert not live.running
    assert [frame async for frame in live.follow(lambda: True)] == ["ab"]


async def test_a_follower_who_turns_away_is_free_before_the_next_frame() -> None:
    async def frames() -> AsyncGenerator[str, None]:
        yield "a"
        await asyncio.Event().wait()

    live, seen = Live(frames(), "", asyncio.create_task), []
    async with asyncio.timeout(10):
        async for frame in live.follow(lambda: "a" not in seen):
            seen.append(frame)
    assert (seen[-1], live.running) == ("a", True)
    await live.stop()


async def test_a_live_reply_that_fails_keeps_its_sentence() -> None:
    async def frames() -> AsyncGenerator[str, None]:
        yield "a"
        raise EngineFailed("vLLM is gone: try again.")

    live = Live(frames(), "", asyncio.create_task)
    assert [frame async for frame in live.follow(lambda: True)][-1] == "a"
    assert live.error == "vLLM is gone: try again."
