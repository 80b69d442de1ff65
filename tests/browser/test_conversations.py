"""Conversations in Chromium: the list, turning the page while a reply streams, and what a click then means."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest
from chromium import Site, forge, picture
from fakes import asker
from playwright.sync_api import expect

from thumbwise.pages import chat
from thumbwise.pages.security import HEADERS

pytestmark = pytest.mark.browser


def slow_votes(site: Site, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """As on a disk that is busy with something else."""
    add = site.assistant.store.add_feedback

    def slowly(*given: Any) -> Any:
        time.sleep(seconds)
        return add(*given)

    monkeypatch.setattr(site.assistant.store, "add_feedback", slowly)


def test_conversations_are_listed_and_one_opened_in_mid_reply_keeps_its_own_text(site: Site) -> None:
    page = site.open()
    site.say(page, "The older one")
    page.click("#tw-new")
    site.wait(page, "idle")
    assert page.url.endswith("?c=new")
    site.writer.hold = 1
    site.say(page, "The newer one", state="streaming")
    page.get_by_role("link", name="The older one").click()
    site.wait(page, "done")
    page.wait_for_timeout(300)  # what the reply's follower says at its end would come now
    expect(page.get_by_test_id("user")).to_have_text("The older one")
    expect(page.locator("#tw-send")).to_be_visible()
    site.writer.hold = None
    page.get_by_role("link", name="The newer one").click()
    expect(page.get_by_test_id("user")).to_have_text("The newer one")
    site.wait(page, "done")
    expect(page.get_by_test_id("bot")).to_have_text("Hello there, friend.")
    expect(page.locator("#tw-list a")).to_have_text(["The newer one", "The older one"])


def test_a_conversation_opened_in_mid_reply_can_be_left_for_another(site: Site) -> None:
    page = site.open()
    site.say(page, "The older one")
    page.click("#tw-new")
    site.wait(page, "idle")
    site.writer.hold = 1
    site.say(page, "The newer one", state="streaming")
    page.click("#tw-new")
    site.wait(page, "idle")
    page.get_by_role("link", name="The newer one").click()
    site.wait(page, "streaming")
    page.get_by_role("link", name="The older one").click()
    site.wait(page, "done")
    expect(page.get_by_test_id("user")).to_have_text("The older one")
    site.writer.hold = None


def test_every_conversation_can_be_reached_and_the_one_last_asked_in_is_first(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "LISTED", 2)
    page = site.open()
    for said in ("First", "Second", "Third"):
        site.say(page, said)
        page.click("#tw-new")
        site.wait(page, "idle")
    links = page.locator("#tw-list a")
    expect(links).to_have_text(["Third", "Second"])
    picture(page, "older")
    page.click("#tw-older")
    expect(links).to_have_text(["Third", "Second", "First"])
    expect(page.locator("#tw-older")).to_be_hidden()
    page.get_by_role("link", name="First").click()
    site.wait(page, "done")
    site.say(page, "Once more")
    expect(links).to_have_text(["First", "Third", "Second"])


def test_another_conversation_than_ones_own_cannot_be_opened(site: Site) -> None:
    store = site.assistant.store
    theirs = store.start_conversation("somebody", "Theirs")
    asked: list[Any] = [{"role": "user", "content": "A secret"}]
    reply = store.start_reply(asker("somebody"), asked, "policy-0000", {}, conversation_id=theirs)
    store.finish_reply(reply, "done", text="Kept.", finish_reason="stop")
    page = site.open(f"/?c={theirs}")
    expect(page.locator("#tw-list")).not_to_contain_text("Theirs")
    page.locator("#tw-list a, #tw-new").first.evaluate(
        "(at, id) => at.insertAdjacentHTML('afterend', "
        "`<div id=tw-list><a href=# data-open=${id} class=forged>x</a></div>`)",
        theirs,
    )
    page.locator(".forged").first.click()
    expect(page.get_by_test_id("toast-text")).to_contain_text("no such conversation")
    assert forge(page, "/chat/messages", {"conversation": theirs, "text": "Mine now"}).status_code == 404
    assert httpx.get(f"{site.url}/pages/chat?c={theirs}").status_code == 404
    site.say(page, "Where am I?")
    expect(page.get_by_test_id("user")).to_have_text("Where am I?")
    mine = site.rows("SELECT conversation_id FROM replies WHERE user_id = 'local'")
    assert len(mine) == 1
    assert mine[0]["conversation_id"] != theirs


def test_a_reply_belongs_to_the_conversation_that_it_was_asked_for_in(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = site.open()
    site.say(page, "One")
    begin, begun = site.assistant.conversations.begin, threading.Event()

    async def slowly(*given: Any, **more: Any) -> Any:
        found = await begin(*given, **more)
        await asyncio.to_thread(begun.wait, 10)  # as for a busy disk
        return found

    monkeypatch.setattr(site.assistant.conversations, "begin", slowly)
    site.writer.hold = 1
    page.fill("#tw-box textarea", "Two")
    page.press("#tw-box textarea", "Enter")
    page.click("#tw-new")
    site.wait(page, "idle")
    begun.set()
    page.wait_for_timeout(300)
    expect(page.get_by_test_id("user")).to_have_count(0)
    page.get_by_role("link", name="One").click()
    site.wait(page, "streaming")
    expect(page.get_by_test_id("bot").last).to_have_text("Hello")
    site.writer.hold = None
    site.wait(page, "done")
    expect(page.get_by_test_id("user")).to_have_text(["One", "Two"])


def test_a_thumb_means_the_reply_that_it_stands_below(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    page = site.open()
    site.say(page, "One")
    page.click("#tw-new")
    site.wait(page, "idle")
    site.say(page, "Two")
    slow_votes(site, monkeypatch, 0.5)
    page.get_by_role("button", name="Like", exact=True).click()
    page.get_by_role("link", name="One").click()  # the page turns before the vote is stored
    expect(page.get_by_test_id("user")).to_have_text("One")
    expect(page.get_by_test_id("toast-text")).to_contain_text("Saved")
    expect(page.get_by_role("button", name="Like", exact=True)).to_be_visible()
    expect(page.locator("#tw-comment")).to_be_hidden()
    voted = site.rows("SELECT r.prompt_sha256 AS at FROM feedback f JOIN replies r ON r.id = f.message_id")
    two = site.rows("SELECT r.prompt_sha256 AS at FROM replies r ORDER BY r.created_at DESC LIMIT 1")
    assert voted == two


def test_a_double_click_is_one_vote_however_long_it_takes_to_store(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_votes(site, monkeypatch, 1.0)
    judged, vote = [], chat.ChatPage._vote

    async def noted(*given: Any) -> Any:
        found = await vote(*given)
        judged.append(given[3])
        return found

    monkeypatch.setattr(chat.ChatPage, "_vote", noted)
    page = site.open()
    site.say(page, "Hi")
    page.get_by_role("button", name="Like", exact=True).dblclick()
    give_up = time.monotonic() + 10
    while len(judged) < 2 and time.monotonic() < give_up:
        page.wait_for_timeout(50)
    assert judged[0] == "up"
    expect(page.get_by_role("button", name="Liked", exact=True)).to_be_visible()
    assert [kind for kind, _ in site.votes()] == ["thumb"]


def test_the_keyboard_goes_on_to_the_next_message_when_its_button_goes_away(site: Site) -> None:
    page = site.open()
    page.fill("#tw-box textarea", "Hi")
    page.press("#tw-box textarea", "Tab")
    expect(page.locator("#tw-send")).to_be_focused()
    site.writer.hold = 1
    page.keyboard.press("Enter")
    site.wait(page, "streaming")
    expect(page.locator("#tw-box textarea")).to_be_focused()
    site.writer.hold = None
    site.wait(page, "done")


def test_the_keyboard_never_goes_on_to_a_vote(site: Site) -> None:
    page = site.open("/compare")
    page.fill("#tw-box textarea", "Which?")
    page.press("#tw-box textarea", "Enter")
    site.wait(page, "ready")
    expect(page.locator("#tw-better-2")).to_be_enabled()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.keyboard.press("4")
    site.wait(page, "voted")
    expect(page.locator("#tw-next")).to_be_focused()
    assert [value for _, value in site.votes()] == ['{"choice":"right","strength":1}']


def test_the_policy_of_the_page_lets_no_request_out(site: Site) -> None:
    answer = httpx.get(site.url)
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert "frame-ancestors 'none'" in HEADERS["Content-Security-Policy"]
    page = site.open()
    refused = page.evaluate(
        """() => new Promise(done => {
            document.addEventListener('securitypolicyviolation', event => done(event.blockedURI));
            fetch('https://example.com/').catch(() => null);
            setTimeout(() => done('nothing was refused'), 3000);
        })"""
    )
    assert refused.startswith("https://example.com")
    assert site.faults in ([], ["request to https://example.com/"])
    site.faults.clear()
