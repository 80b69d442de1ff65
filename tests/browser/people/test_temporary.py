"""A temporary chat in Chromium: it goes on for several turns, and after a reload nothing of it is left."""

from __future__ import annotations

import pytest
from chromium import PHONE, Site, picture
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser
BUTTON = "#tw-temporary"


def temporary(site: Site, **context: object) -> Page:
    page = site.open(**context)
    if context.get("viewport") == PHONE:
        page.click("#tw-side .toggle-button")
    page.click(BUTTON)
    expect(page.get_by_role("heading", name="Temporary chat")).to_be_visible()
    return page


def test_it_goes_on_for_turns_and_stores_nothing(site: Site) -> None:
    page = temporary(site)
    expect(page.locator("#tw-stored")).to_contain_text("nothing of it is stored, so its replies have no thumbs")
    picture(page, "temporary-empty")
    site.say(page, "First <b>question</b>")
    expect(page.get_by_test_id("user")).to_have_text("First <b>question</b>")
    expect(page.get_by_test_id("bot")).to_have_text("Hello there, friend.")
    site.say(page, "Second")
    assert [m["content"] for m in site.writer.asked[1][1]] == [
        "First <b>question</b>",
        "Hello there, *friend*.",
        "Second",
    ]
    expect(page.get_by_role("button", name="Copy")).to_have_count(2)
    expect(page.get_by_role("button", name="Like", exact=True)).to_have_count(0)
    picture(page, "temporary-chat")
    assert site.rows("SELECT * FROM replies") == site.rows("SELECT * FROM conversations") == []
    page.fill("#tw-box textarea", "typed and not sent")
    page.reload()
    site.wait(page, "idle")
    expect(page.get_by_test_id("user")).to_have_count(0)
    expect(page.locator("#tw-box textarea")).to_have_value("")
    expect(page.get_by_role("heading", name="Temporary chat")).to_be_visible()
    assert page.evaluate("Object.values({...sessionStorage, ...localStorage}).join()").find("typed") == -1


def test_a_reply_can_be_stopped_and_the_chat_goes_on_with_its_part(site: Site) -> None:
    site.writer.hold = 2
    page = temporary(site)
    site.say(page, "Long?", state="streaming")
    expect(page.get_by_test_id("bot")).to_have_text("Hello there")
    page.click("#tw-stop")
    site.wait(page, "stopped")
    site.writer.hold = None
    site.say(page, "And?")
    assert [m["content"] for m in site.writer.asked[1][1]] == ["Long?", "Hello there", "And?"]


def test_leaving_it_for_another_chat_ends_it_and_its_reply(site: Site) -> None:
    site.writer.hold = 1
    page = temporary(site)
    site.say(page, "Secret?", state="streaming")
    page.click("#tw-new")
    site.wait(page, "idle")
    expect(page.get_by_text("Secret?")).to_have_count(0)
    expect(page.locator("body[data-temporary]")).to_have_count(0)
    page.wait_for_function("true")
    for _ in range(100):
        if not site.assistant.admission.in_flight:
            break
        page.wait_for_timeout(50)
    assert not site.assistant.admission.in_flight
    site.writer.hold = None
    site.say(page, "Kept")
    assert len(site.rows("SELECT * FROM replies")) == 1


def test_a_page_that_comes_back_after_the_end_keeps_what_it_shows(site: Site) -> None:
    page = temporary(site)
    site.say(page, "Hi")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    site.say(page, "Again")
    expect(page.get_by_test_id("bot").first).to_have_text("Hello there, friend.")
    assert [m["content"] for m in site.writer.asked[1][1]] == ["Hi", "Hello there, *friend*.", "Again"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(site: Site, scheme: str) -> None:
    page = temporary(site, viewport=PHONE, color_scheme=scheme)
    site.say(page, "Hi")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page, f"temporary-phone-{scheme}")
