"""The chat page in Chromium: what it shows is what the database holds, whatever the browser does."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from chromium import PHONE, Site, forge
from fakes import asker
from playwright.sync_api import Page, expect

from thumbwise.errors import EngineFailed
from thumbwise.pages import chat, feed
from thumbwise.versions.record import Pointer

pytestmark = pytest.mark.browser
UP, DOWN, CLEAR = (("thumb", json.dumps({"thumb": value}, separators=(",", ":"))) for value in ("up", "down", "clear"))
EVIL = '{{constructor}} ${alert(4)} <img src=x onerror="alert(1)"><script>alert(2)</script>[x](javascript:alert(3))'


def like(page: Page) -> Any:
    return page.get_by_role("button", name="Like", exact=True)


def liked(page: Page) -> Any:
    return page.get_by_role("button", name="Liked", exact=True)


def test_a_reply_streams_and_is_stored_with_the_version_that_wrote_it(site: Site) -> None:
    site.writer.hold = 2
    page = site.open()
    site.say(page, "Hi?", state="streaming")
    expect(page.get_by_test_id("bot")).to_have_text("Hello there")
    expect(page.locator("#tw-stop")).to_be_visible()
    expect(page.locator("#tw-box textarea")).to_have_value("")
    site.writer.hold = None
    site.wait(page, "done")
    expect(page.get_by_test_id("bot")).to_have_text("Hello there, friend.")
    expect(page.locator("#tw-chat .tw-note")).to_have_text("policy-0000")
    expect(page.locator(".tw-sr[aria-live=polite]")).to_contain_text("Reply finished")
    row = site.rows("SELECT * FROM replies")[0]
    assert (row["state"], row["text"], row["policy_version"]) == ("done", "Hello there, *friend*.", "policy-0000")


def test_enter_sends_and_shift_enter_makes_a_new_line(site: Site) -> None:
    page = site.open()
    page.fill("#tw-box textarea", "one")
    page.press("#tw-box textarea", "Shift+Enter")
    page.type("#tw-box textarea", "two")
    page.press("#tw-box textarea", "Enter")
    site.wait(page, "done")
    assert site.writer.asked[0][1] == [{"role": "user", "content": "one\ntwo"}]


def test_the_next_prompt_is_the_conversation_in_the_database(site: Site) -> None:
    page = site.open()
    site.say(page, "First")
    site.say(page, "Second")
    assert [m["content"] for m in site.writer.asked[1][1]] == ["First", "Hello there, *friend*.", "Second"]


def test_a_reload_restores_the_conversation_and_its_thumb(site: Site) -> None:
    page = site.open()
    site.say(page, "Remember this")
    like(page).click()
    expect(liked(page)).to_be_visible()
    expect(page.get_by_test_id("toast-text")).to_contain_text("Saved")
    assert "?c=conv_" in page.url
    page.reload()
    site.wait(page, "done")
    expect(page.get_by_test_id("user")).to_have_text("Remember this")
    expect(liked(page)).to_be_visible()
    newest = site.open("/", state="done")
    expect(liked(newest)).to_be_visible()
    assert site.votes() == [UP]


def test_a_reload_keeps_what_was_being_typed_in_its_own_conversation(site: Site) -> None:
    page = site.open()
    site.say(page, "First")
    box = page.locator("#tw-box textarea")
    box.fill("A long question,\nhalf written")
    page.reload()
    site.wait(page, "done")
    expect(box).to_have_value("A long question,\nhalf written")
    page.goto(site.url + "/?c=new")
    site.wait(page, "idle")
    expect(box).to_have_value("")
    page.go_back()
    site.wait(page, "done")
    expect(box).to_have_value("A long question,\nhalf written")
    page.press("#tw-box textarea", "Enter")
    expect(page.get_by_test_id("user")).to_have_count(2)
    site.wait(page, "done")
    assert site.writer.asked[1][1][-1]["content"] == "A long question,\nhalf written"
    page.reload()
    site.wait(page, "done")
    expect(box).to_have_value("")


def test_a_reload_in_mid_reply_follows_it_to_its_end(site: Site) -> None:
    site.writer.hold = 1
    page = site.open()
    site.say(page, "Go on", state="streaming")
    page.reload()
    site.wait(page, "streaming")
    expect(page.get_by_test_id("bot")).to_have_text("Hello")
    site.writer.hold = None
    site.wait(page, "done")
    expect(page.get_by_test_id("bot")).to_have_text("Hello there, friend.")
    assert len(site.writer.asked) == 1


def test_clicking_a_thumb_again_takes_it_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "DOUBLE_CLICK_SECONDS", 0)
    page = site.open()
    site.say(page, "Hi")
    like(page).click()
    expect(page.locator("#tw-comment")).to_be_visible()
    liked(page).click()
    expect(page.get_by_test_id("toast-text").last).to_contain_text("taken back")
    expect(like(page)).to_be_visible()
    expect(page.locator("#tw-comment")).to_be_hidden()
    assert site.votes() == [UP, CLEAR]


def test_a_thumb_can_be_turned_round(site: Site) -> None:
    page = site.open()
    site.say(page, "Hi")
    like(page).click()
    expect(page.locator("#tw-comment")).to_contain_text("What was good")
    page.get_by_role("button", name="Dislike", exact=True).click()
    expect(page.locator("#tw-comment")).to_contain_text("What was wrong")
    expect(page.get_by_role("button", name="Disliked", exact=True)).to_be_visible()
    assert site.votes() == [UP, DOWN]


def test_a_thumb_on_a_reply_that_is_being_written_changes_nothing(site: Site) -> None:
    site.writer.hold = 2
    page = site.open()
    site.say(page, "Hi", state="streaming")
    like(page).or_(page.locator("[aria-label=Like]")).first.evaluate("button => button.click()")
    expect(page.get_by_test_id("toast-text")).to_contain_text("still being written")
    site.writer.hold = None
    site.wait(page, "done")
    expect(like(page)).to_be_visible()
    assert site.votes() == []


def test_a_thumb_stays_while_the_next_reply_streams(site: Site) -> None:
    page = site.open()
    site.say(page, "One")
    site.writer.hold = 1
    site.say(page, "Two", state="streaming")
    like(page).first.click()
    expect(liked(page)).to_have_count(1)
    site.writer.hold = None
    site.wait(page, "done")
    expect(liked(page)).to_have_count(1)
    first = site.rows("SELECT id FROM replies ORDER BY created_at")[0]["id"]
    assert [row["message_id"] for row in site.rows("SELECT * FROM feedback")] == [first]


def test_a_comment_is_stored_with_the_reply_it_is_about(site: Site) -> None:
    page = site.open()
    site.say(page, "Hi")
    like(page).click()
    page.fill("#tw-comment-box textarea", "short and kind")
    page.click("#tw-comment-save")
    expect(page.locator("#tw-comment")).to_be_hidden()
    assert site.votes() == [UP, ("comment", '{"text":"short and kind"}')]


def test_what_is_being_typed_is_not_lost_by_a_thumb_a_message_or_an_example(site: Site) -> None:
    page = site.open()
    page.fill("#tw-box textarea", "my own question")
    page.get_by_role("button", name="Plan a weekend").click()
    site.wait(page, "done")
    assert page.input_value("#tw-box textarea") == "my own question"
    like(page).click()
    page.fill("#tw-comment-box textarea", "half a tho")
    page.get_by_role("button", name="Dislike", exact=True).click()
    expect(page.locator("#tw-comment")).to_contain_text("wrong")
    page.press("#tw-box textarea", "Enter")
    expect(page.get_by_test_id("bot")).to_have_count(2)
    site.wait(page, "done")
    assert page.input_value("#tw-comment-box textarea") == "half a tho"
    page.click("#tw-comment-save")
    expect(page.locator("#tw-comment")).to_be_hidden()
    assert site.votes()[-1] == ("comment", '{"text":"half a tho"}')


FORGED: list[Any] = [
    {"message": "$", "value": "another text"},
    {"message": "msg_of_nobody", "thumb": "up"},
    {"message": "$", "thumb": "Like"},
    {"message": "$", "thumb": True},
    {"message": "$", "thumb": None},
    {"message": "$", "thumb": "up", "text": "a text that nobody wrote"},
    {"message": ["$"], "thumb": "up"},
    {"thumb": "up"},
    "no object",
    None,
]


def test_a_forged_thumb_changes_nothing_and_its_text_is_never_stored(site: Site) -> None:
    store = site.assistant.store
    theirs = store.start_reply(asker("somebody"), [{"role": "user", "content": "A secret"}], "policy-0000", {})
    store.finish_reply(theirs, "done", text="Kept.", finish_reason="stop")
    page = site.open()
    site.say(page, "Hi")
    own = site.rows("SELECT id FROM replies WHERE user_id = 'local'")[0]["id"]
    for forged in [*FORGED, {"message": theirs, "thumb": "up"}]:
        body = json.loads(json.dumps(forged).replace("$", own))
        assert forge(page, "/chat/thumbs", body).status_code in (400, 404), forged
    assert forge(page, "/chat/comments", {"message": theirs, "text": "x"}).status_code == 404
    assert forge(page, "/chat/stop", {"message": theirs}).status_code == 404
    assert site.votes() == []
    assert forge(page, "/chat/thumbs", {"message": own, "thumb": "down"}).status_code == 200
    assert site.votes() == [DOWN]
    assert site.rows("SELECT text FROM replies WHERE user_id = 'local'") == [{"text": "Hello there, *friend*."}]


def test_another_site_can_ask_for_nothing(site: Site) -> None:
    page = site.open()
    site.say(page, "Hi")
    message = {"message": site.rows("SELECT id FROM replies")[0]["id"], "thumb": "up"}
    for headers in ({"Origin": "https://example.com"}, {"Sec-Fetch-Site": "cross-site"}):
        assert httpx.post(f"{site.url}/pages/chat/thumbs", json=message, headers=headers).status_code == 403
    assert site.votes() == []


def test_gradio_keeps_nothing_of_a_page(site: Site) -> None:
    asked: list[str] = []
    page = site.open("/", state=None)
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    site.wait(page, "idle")
    site.say(page, "Hi")
    like(page).click()
    page.fill("#tw-comment-box textarea", "kind")
    page.click("#tw-comment-save")
    page.goto(site.url + "/compare")
    site.wait(page, "idle")
    assert [url for url in asked if "/queue/" in url or "/heartbeat/" in url] == []
    (mounted,) = (route.app for route in site.app.routes if hasattr(getattr(route, "app", None), "state_holder"))
    assert len(mounted.state_holder.session_data) == 0


def test_stop_keeps_what_was_written_and_ends_the_stream(site: Site) -> None:
    site.writer.hold = 2
    page = site.open()
    site.say(page, "Tell me", state="streaming")
    expect(page.get_by_test_id("bot")).to_have_text("Hello there")
    page.click("#tw-stop")
    site.wait(page, "stopped")
    expect(page.locator("#tw-send")).to_be_visible()
    expect(page.locator("#tw-chat .tw-note")).to_have_text("policy-0000 · stopped")
    row = site.rows("SELECT * FROM replies")[0]
    assert (row["state"], row["text"], site.writer.open_streams) == ("stopped", "Hello there", 0)
    site.writer.hold = None
    site.say(page, "Go on")
    assert [m["content"] for m in site.writer.asked[1][1]] == ["Tell me", "Hello there", "Go on"]


def test_a_failure_is_one_sentence_and_asking_again_works(site: Site) -> None:
    site.writer.fail_after, site.writer.failure = 2, EngineFailed("vLLM cut the reply off: try again.")
    page = site.open()
    site.say(page, "Hi", state="failed")
    expect(page.get_by_test_id("bot")).to_have_text("Hello there")
    expect(page.locator("#tw-chat .tw-reply .tw-why")).to_have_text("vLLM cut the reply off: try again.")
    assert "Traceback" not in page.content()
    site.writer.fail_after = 0
    site.say(page, "Again", state="failed")
    site.writer.fail_after = None
    site.say(page, "Once more")
    expect(page.get_by_test_id("bot").last).to_have_text("Hello there, friend.")
    assert [m["role"] for m in site.writer.asked[2][1]] == ["user", "assistant", "user"]
    assert "Again" not in str(site.writer.asked[2][1])


def test_the_page_opens_before_the_engine_and_says_how_it_is(site: Site) -> None:
    site.engine.state, site.engine.detail = "starting", "vLLM is loading the model."
    page = site.open()
    expect(page.locator(".tw-banner")).to_contain_text("vLLM is loading the model.")
    expect(page.locator("#tw-send")).to_be_disabled()
    page.fill("#tw-box textarea", "Too early")
    page.press("#tw-box textarea", "Enter")
    expect(page.get_by_test_id("toast-text")).to_contain_text("Try again")
    expect(page.locator("#tw-box textarea")).to_have_value("Too early")
    assert site.rows("SELECT * FROM conversations") == []
    site.engine.state, site.engine.detail = "ready", "The engine is ready."
    expect(page.locator(".tw-banner")).to_have_count(0)
    expect(page.locator("#tw-send")).to_be_enabled()
    site.say(page, "Now")


def test_a_new_policy_and_a_warning_show_without_a_reload(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.1)
    page = site.open()
    expect(page.locator(".tw-chip")).to_have_text("Answering: policy-0000")
    moved = Pointer("policy-0003-1f2e3d4c5b6a", None, 0.0, "", 0)
    monkeypatch.setattr(site.assistant.versions, "pointer", lambda: moved)
    site.assistant.policies.warning = "policy-0004 could not be restored."
    expect(page.locator(".tw-chip")).to_have_attribute("data-version", "policy-0003-1f2e3d4c5b6a")
    expect(page.get_by_role("alert")).to_contain_text("policy-0004 could not be restored.")


def test_an_example_asks_its_own_prompt(site: Site) -> None:
    page = site.open()
    page.get_by_role("button", name="Plan a weekend").click()
    site.wait(page, "done")
    assert site.writer.asked[0][1][0]["content"].startswith("Plan a cheap, quiet weekend")


def test_markup_from_people_and_models_is_shown_and_never_run(site: Site) -> None:
    site.writer.words = [EVIL, " ![p](https://example.com/pixel.png)", " <iframe src=https://example.com></iframe>"]
    page = site.open()
    site.say(page, EVIL)
    expect(page.get_by_test_id("user")).to_contain_text('<img src=x onerror="alert(1)">')
    expect(page.get_by_test_id("bot")).to_contain_text("<script>alert(2)</script>")
    expect(page.locator("#tw-list a")).to_contain_text("{{constructor}}")
    like(page).click()
    expect(page.locator("#tw-comment p")).to_contain_text("<img")
    assert page.locator("#tw-chat :is(img, iframe, script), #tw-list img, #tw-comment img").count() == 0
    assert page.locator("a[href^=javascript]").count() == 0


@pytest.mark.parametrize(
    "said",
    [
        "Where a < b && c, `x < y & z` and &lt; stay, ![p](u) too:\n\n```\n1 < 2 && 3 &amp; 4\n```",
        "Fix this:\n\n    if a < b:\n        pass",
    ],
)
def test_a_copied_message_is_what_was_said(site: Site, said: str) -> None:
    site.writer.words = [said]
    page = site.open(permissions=["clipboard-read", "clipboard-write"])
    site.say(page, "Hi?")
    page.locator(".tw-reply .tw-acts").get_by_role("button", name="Copy").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.length > 0)")
    assert page.evaluate("navigator.clipboard.readText()") == said


def test_code_is_copied_by_itself(site: Site) -> None:
    site.writer.words = ["So:\n\n```python\nif 1 < 2:\n    pass\n```\n\nand `x`\n\n```\nsecond\n```"]
    page = site.open(permissions=["clipboard-read", "clipboard-write"])
    site.say(page, "Hi?")
    for number, code in enumerate(["if 1 < 2:\n    pass\n", "second\n"]):
        page.get_by_role("button", name="Copy code").nth(number).click()
        page.wait_for_function("said => navigator.clipboard.readText().then(text => text === said)", arg=code)
        assert page.evaluate("() => navigator.clipboard.readText()") == code


def test_a_copy_that_the_browser_does_not_allow_is_told(site: Site) -> None:
    page = site.open()
    site.say(page, "Hi?")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    page.locator(".tw-reply .tw-acts").get_by_role("button", name="Copy").click()
    expect(page.get_by_test_id("toast-text")).to_contain_text("Not copied")


def test_a_page_that_nobody_looks_at_holds_no_connection(site: Site) -> None:
    page = site.open()
    hide = "hidden => (Object.defineProperty(document, 'hidden', {value: hidden, configurable: true}),"
    hide += " document.dispatchEvent(new Event('visibilitychange')))"
    with page.expect_event("requestfailed", lambda request: "/events" in request.url):
        page.evaluate(hide, True)
    site.assistant.policies.warning = "Something changed meanwhile."
    page.wait_for_timeout(300)
    assert page.get_by_role("alert").count() == 0
    with page.expect_request("**/events*"):
        page.evaluate(hide, False)
    expect(page.get_by_role("alert")).to_contain_text("Something changed meanwhile.")


def test_a_phone_shows_the_chat_without_sideways_scrolling(site: Site) -> None:
    site.writer.words = ["x" * 300, "\n\n```\n" + "code " * 60 + "\n```"]
    page = site.open(viewport=PHONE, has_touch=True, is_mobile=True)
    expect(page.get_by_role("button", name="New chat")).not_to_be_in_viewport()
    site.say(page, "y" * 300)
    like(page).click()
    expect(page.locator("#tw-comment-save")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    expect(page.locator("#tw-send")).to_be_in_viewport()
    small = page.evaluate(
        "[...document.querySelectorAll('button, #tw-top a')].filter(b => b.checkVisibility({visibilityProperty: true}))"
        ".map(b => [b.id || b.ariaLabel || b.textContent, b.getBoundingClientRect()])"
        ".filter(([name, box]) => box.height < 44 || box.width < 44).map(([name]) => name)"
    )
    assert small == []
