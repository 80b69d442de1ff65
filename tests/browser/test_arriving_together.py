"""Both pages behind a proxy: a reply's events reach the browser at once, connections break off and come back."""

from __future__ import annotations

import pytest
from chromium import Pages, Site
from playwright.sync_api import expect
from relay import holding

pytestmark = pytest.mark.browser
TRIES = 8


def test_a_reply_is_whole_and_can_be_voted_on(site: Site) -> None:
    with holding(site.url) as url:
        behind = Pages(url, site.browser)
        page = behind.open()
        for number in range(TRIES):
            page.click("#tw-new")
            behind.wait(page, "idle")
            behind.say(page, f"Question {number}")
            expect(page.get_by_test_id("bot")).to_have_text("Hello there, friend.")
            expect(page.locator("#tw-stop")).to_be_hidden()
            expect(page.locator("#tw-send")).to_be_enabled()
            page.get_by_role("button", name="Like", exact=True).click()
            expect(page.get_by_role("button", name="Liked", exact=True)).to_be_visible()
        behind.close()
    assert len(site.votes()) == TRIES


def test_drafts_are_whole_and_can_be_voted_on(site: Site) -> None:
    with holding(site.url) as url:
        behind = Pages(url, site.browser)
        page = behind.open("/compare")
        for number in range(TRIES):
            page.fill("#tw-box textarea", f"Question {number}")
            page.press("#tw-box textarea", "Enter")
            expect(page.locator("#tw-prompt")).to_have_text(f"Question {number}")
            behind.wait(page, "ready")
            expect(page.locator("#tw-draft-1").get_by_test_id("markdown")).to_have_text("Hello there, friend.")
            expect(page.locator("#tw-draft-2").get_by_test_id("markdown")).to_have_text("Hello there, friend.")
            page.click("#tw-better-2")
            behind.wait(page, "voted")
        behind.close()
    assert [kind for kind, _ in site.votes()] == ["pair"] * TRIES


def test_a_turned_page_stays_turned(site: Site) -> None:
    """An answer that comes late, in one piece with others, does not bring back what was left."""
    with holding(site.url, 0.2) as url:
        behind = Pages(url, site.browser)
        page = behind.open()
        behind.say(page, "One")
        page.fill("#tw-box textarea", "Two")
        page.press("#tw-box textarea", "Enter")
        page.click("#tw-new")
        behind.wait(page, "idle")
        expect(page.locator("#tw-list a")).to_have_text(["One"])
        page.wait_for_timeout(600)  # twice what anything takes
        expect(page.get_by_test_id("user")).to_have_count(0)
        assert page.url.endswith("?c=new")
        page.get_by_role("link", name="One").click()
        expect(page.get_by_test_id("user")).to_have_text(["One", "Two"])
        behind.wait(page, "done")
        behind.close()


def test_a_lost_connection_is_told_and_comes_back_by_itself(site: Site) -> None:
    site.writer.hold = 1
    with holding(site.url) as url:
        behind = Pages(url, site.browser)
        page = behind.open()
        behind.say(page, "One", state="streaming")
        expect(page.get_by_test_id("bot")).to_have_text("Hello")
        page.fill("#tw-box textarea", "half a tho")
    expect(page.locator("body[data-gone]")).to_be_visible(timeout=20_000)
    expect(page.locator("#tw-banner")).to_contain_text("is not running")
    expect(page.locator("#tw-send")).to_be_disabled()
    site.writer.hold = None
    with holding(site.url, port=int(url.rpartition(":")[2])):
        expect(page.locator("body:not([data-gone])")).to_be_visible(timeout=20_000)
        behind.wait(page, "done")
        expect(page.get_by_test_id("bot")).to_have_text("Hello there, friend.")
        expect(page.locator(".tw-banner")).to_have_count(0)
        expect(page.locator("#tw-send")).to_be_enabled()
        expect(page.locator("#tw-box textarea")).to_have_value("half a tho")
        behind.close()
