"""Temporary chats: they answer as any other, and neither the database nor the log gets anything of them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import asker
from team import Team, team

from thumbwise.chat.turns import TEMPORARY
from thumbwise.errors import EngineFailed

SECRET = "xyzzy-plugh"


async def begun(client: httpx.AsyncClient) -> str:
    return str((await client.get("/pages/chat", params={"c": "temporary"})).json()["temporary"])


async def said(client: httpx.AsyncClient, whose: str, *texts: str, chat: str | None = None) -> dict[str, Any]:
    """Ask; the texts alternate between question and answer."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    answer = await client.post("/pages/chat/temporary", json={"whose": whose, "chat": chat, "messages": messages})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def ended(here: Team) -> None:
    """Wait until no reply is being written."""
    await asyncio.sleep(0.05)
    while here.assistant.admission.in_flight:
        await asyncio.sleep(0.01)


def files(here: Team) -> bytes:
    """All bytes of the home's database, with what waited in its log."""
    here.assistant.store.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    return b"".join(path.read_bytes() for path in here.assistant.home.root.rglob("*") if path.is_file())


async def test_nothing_of_a_temporary_chat_is_in_any_file_or_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with team(tmp_path, auth="local") as here, here.client() as client:
        engine: Any = here.assistant.engine
        engine.client.words = [f"{SECRET}-reply", " end"]
        whose = await begun(client)
        first = await said(client, whose, f"{SECRET}-one")
        await ended(here)
        await said(client, whose, f"{SECRET}-one", f"{SECRET}-reply end", f"{SECRET}-two", chat=first["chat"])
        await ended(here)
        asked = [[message["content"] for message in messages] for _, messages, _ in engine.client.asked]
        assert asked == [[f"{SECRET}-one"], [f"{SECRET}-one", f"{SECRET}-reply end", f"{SECRET}-two"]]
        for table in ("replies", "prompts", "conversations", "feedback"):
            assert here.assistant.store.rows(f"SELECT * FROM {table}") == []
        assert SECRET.encode() not in files(here)
        assert first["reply"].encode() not in files(here)
    assert SECRET not in caplog.text
    assert first["reply"] not in caplog.text


async def test_the_same_bytes_are_found_of_a_chat_that_is_kept(tmp_path: Path) -> None:
    async with team(tmp_path, auth="local") as here, here.client() as client:
        await client.post("/pages/chat/messages", json={"text": f"{SECRET}-one"})
        await ended(here)
        assert SECRET.encode() in files(here)


async def test_a_bug_in_a_temporary_turn_does_not_quote_it_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with team(tmp_path, auth="local") as here:
        conversations, engine = here.assistant.conversations, here.assistant.engine
        engine.client.fail_after, engine.client.failure = 1, ValueError(SECRET)  # type: ignore
        turn = await conversations.begin(
            asker(), [{"role": "user", "content": "Hi"}], conversations.sampling(), temporary=True
        )
        with pytest.raises(Exception, match="log says what"):
            await conversations.write(turn, asker())
    assert "ValueError" in caplog.text
    assert SECRET not in caplog.text


async def test_metrics_and_limits_count_a_temporary_turn(tmp_path: Path) -> None:
    async with team(tmp_path, auth="local", local_in_flight=1) as here, here.client() as client:
        engine: Any = here.assistant.engine
        engine.client.gate = asyncio.Event()
        whose = await begun(client)
        await said(client, whose, "One?")
        await asyncio.sleep(0.05)
        body = {"whose": whose, "messages": [{"role": "user", "content": "Two?"}]}
        assert (await client.post("/pages/chat/temporary", json=body)).status_code == 429
        engine.client.gate.set()
        await ended(here)
        count = here.assistant.metrics.replies.labels("policy-0000", "done")._value.get()
        assert count == 1


async def test_a_stopped_reply_keeps_its_text_and_has_no_thumbs(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client(here.account("ann")) as ann, here.client(here.account("bob")) as bob:
        engine: Any = here.assistant.engine
        engine.client.gate = asyncio.Event()
        reply = await said(ann, await begun(ann), "One?")
        await asyncio.sleep(0.05)
        stop = {"message": reply["reply"]}
        other = await bob.post("/pages/chat/temporary/stop", json=stop)
        unknown = await bob.post("/pages/chat/temporary/stop", json={"message": f"{TEMPORARY}_0"})
        assert (other.status_code, other.json()) == (404, unknown.json())
        now = (await ann.post("/pages/chat/temporary/stop", json=stop)).json()
        assert (now["state"], now["text"]) == ("stopped", "Hello")
        assert "data-thumb" not in now["html"]
        assert "data-copy" in now["html"]
        for path, body in (("thumbs", {"thumb": "up"}), ("comments", {"text": "Good"})):
            refused = await ann.post(f"/pages/chat/{path}", json=stop | body)
            assert refused.status_code == 404
        assert here.assistant.store.rows("SELECT * FROM feedback") == []


async def test_another_account_cannot_go_on_with_a_chat(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client(here.account("ann")) as ann, here.client(here.account("bob")) as bob:
        whose = await begun(ann)
        body = {"whose": whose, "messages": [{"role": "user", "content": "Hi"}]}
        refused = await bob.post("/pages/chat/temporary", json=body)
        assert refused.status_code == 409
        assert "Somebody else" in refused.json()["error"]["message"]


@pytest.mark.parametrize("roles", [["assistant"], ["user", "user"], ["user", "assistant"], []])
async def test_a_chat_alternates_and_ends_with_a_question(tmp_path: Path, roles: list[str]) -> None:
    async with team(tmp_path, auth="local") as here, here.client() as client:
        body = {"whose": await begun(client), "messages": [{"role": role, "content": "x"} for role in roles]}
        assert (await client.post("/pages/chat/temporary", json=body)).status_code == 400


async def test_a_chat_is_bounded_as_the_api_is(tmp_path: Path) -> None:
    async with team(tmp_path, auth="local") as here, here.client() as client:
        whose = await begun(client)
        many = [{"role": ("user", "assistant")[n % 2], "content": "x"} for n in range(201)]
        for messages in (many, [{"role": "user", "content": "x" * 200_001}]):
            answer = await client.post("/pages/chat/temporary", json={"whose": whose, "messages": messages})
            assert answer.status_code == 400


async def test_an_error_of_the_engine_is_shown(tmp_path: Path) -> None:
    async with team(tmp_path, auth="local") as here, here.client() as client:
        engine: Any = here.assistant.engine
        engine.client.fail_after, engine.client.failure = 1, EngineFailed("The engine stopped: ask again.")
        reply = await said(client, await begun(client), "Hi")
        await ended(here)
        now = (await client.post("/pages/chat/temporary/stop", json={"message": reply["reply"]})).json()
        assert now["state"] == "failed"
        assert "The engine stopped" in now["html"]
