"""The questions about consent: asked before the first chat, all off, and again when their text changes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from team import Team, team

from thumbwise.feedback import consent

HTML = {"accept": "text/html"}


async def answered(client: httpx.AsyncClient, *switches: str, next_: str = "/") -> httpx.Response:
    return await client.post("/consent", data={"next": next_, **dict.fromkeys(switches, "yes")})


async def test_the_first_page_leads_to_the_questions_until_they_are_answered(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        async with here.client(here.account("ann", consent=False)) as ann:
            for path in ("/", "/?c=new", "/compare"):
                led = await ann.get(path, headers=HTML)
                assert led.status_code == 303
                assert led.headers["location"].startswith("/consent?next=%2F")
            form = await ann.get("/consent?next=%2F%3Fc%3Dnew")
            assert form.status_code == 200
            assert form.text.count('type="checkbox"') == 3
            assert "checked" not in form.text
            for label, text in consent.SWITCHES.values():
                assert label in form.text
                assert text in form.text
            done = await answered(ann, next_="/?c=new")  # all off is an answer
            assert (done.status_code, done.headers["location"]) == (303, "/?c=new")
            assert (await ann.get("/", headers=HTML)).status_code == 200


@pytest.mark.parametrize("path", ["/health/live", "/logout", "/pages/chat"])
async def test_what_stores_nothing_does_not_ask(tmp_path: Path, path: str) -> None:
    async with team(tmp_path) as here, here.client(here.account("ann", consent=False)) as ann:
        assert (await ann.get(path, headers=HTML)).status_code == 200


async def test_a_new_text_asks_again_and_shows_the_last_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with team(tmp_path) as here, here.client(here.account("ann")) as ann:
        assert (await ann.get("/", headers=HTML)).status_code == 200
        monkeypatch.setattr(consent, "TERMS", "2")
        assert (await ann.get("/", headers=HTML)).status_code == 303
        form = (await ann.get("/consent")).text
        assert form.count(" checked") == 3
        assert "This text has changed" in form
        assert (await ann.post("/pages/chat/messages", json={"text": "Hi"})).status_code == 403


async def test_local_is_never_asked(tmp_path: Path) -> None:
    async with team(tmp_path, auth="local") as here, here.client() as browser:
        assert (await browser.get("/", headers=HTML)).status_code == 200
        assert (await browser.get("/consent")).headers["location"] == "/"


async def test_without_keeping_chats_the_chat_page_is_a_temporary_chat(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client(here.account("ann", consent=False)) as ann:
        await answered(ann, "use_votes")
        for query in ({}, {"c": "new"}):
            assert (await ann.get("/pages/chat", params=query)).json()["temporary"]
        for path, body in (("chat/messages", {"text": "Hi"}), ("compare/comparisons", {"text": "Hi"})):
            refused = await ann.post(f"/pages/{path}", json=body)
            assert refused.status_code == 403
            assert "/me" in refused.json()["error"]["message"]
        assert nothing(here)


async def test_chats_from_before_stay_readable_when_keeping_is_turned_off(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client(here.account("ann")) as ann:
        asked = (await ann.post("/pages/chat/messages", json={"text": "Is the sea deep?"})).json()
        await asyncio.sleep(0.2)
        await answered(ann)
        page = (await ann.get("/pages/chat", params={"c": asked["conversation"]})).json()
        assert "temporary" not in page
        assert "Is the sea deep?" in page["log"]
        assert (await ann.post("/pages/chat/messages", json={"conversation": asked["conversation"], "text": "And?"})
                ).status_code == 403  # fmt: skip


def nothing(here: Team) -> bool:
    """Whether the database holds nothing that anybody said."""
    tables = ("replies", "prompts", "conversations", "comparisons", "feedback")
    return all(here.assistant.store.rows(f"SELECT * FROM {table}") == [] for table in tables)


async def test_an_answer_belongs_to_one_account_and_is_in_the_audit_log(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann, bob = here.account("ann", consent=False), here.account("bob", consent=False)
        async with here.client(ann) as hers:
            await answered(hers, "keep_chats")
        assert here.assistant.consents.of(ann.id).keep_chats
        assert not here.assistant.consents.of(bob.id).answered
        entry = here.assistant.audit.entries(action="consent")[0]
        assert (entry["actor"], entry["detail"]["use_text"]) == (ann.id, False)


@pytest.mark.parametrize("next_", ["https://evil.example/", "//evil.example", "/\\evil.example"])
async def test_the_form_leads_to_no_other_site(tmp_path: Path, next_: str) -> None:
    async with team(tmp_path) as here, here.client(here.account("ann", consent=False)) as ann:
        assert (await answered(ann, next_=next_)).headers["location"] == "/"
        assert "evil" not in (await ann.get("/consent", params={"next": next_})).text
