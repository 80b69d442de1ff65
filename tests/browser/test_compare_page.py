"""The comparison page in Chromium: blind until the vote, one vote a comparison, keys and buttons."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from chromium import PHONE, Site, forge
from playwright.sync_api import Page, expect
from starlette.types import Receive, Scope, Send

from thumbwise.errors import EngineFailed
from thumbwise.pages.security import PageHeaders

pytestmark = pytest.mark.browser
VERSIONS = ["policy-0007-aaaaaaaaaaaa", "policy-0008-bbbbbbbbbbbb"]
KEYS = {
    "1": ("left", 2),
    "2": ("left", 1),
    "3": ("tie", 1),
    "4": ("right", 1),
    "5": ("right", 2),
    "b": ("both_bad", 1),
    "s": ("skip", 1),
}


@pytest.fixture(autouse=True)
def two_versions(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.assistant.policies, "live", lambda: VERSIONS)
    monkeypatch.setattr(site.assistant.comparisons.rng, "random", lambda: 0.9)  # one draft of each
    monkeypatch.setattr(site.assistant.versions, "stable", lambda: VERSIONS[0])


def compare(site: Site, page: Page, text: str, state: str = "ready") -> None:
    page.fill("#tw-box textarea", text)
    page.press("#tw-box textarea", "Enter")
    expect(page.locator("#tw-prompt")).to_have_text(text)
    site.wait(page, state)
    expect(page.locator(".tw-vote:enabled")).to_have_count(len(KEYS) if state == "ready" else 0)  # a frame later


def values(site: Site) -> list[tuple[str, int]]:
    found = [json.loads(value) for kind, value in site.votes() if kind == "pair"]
    return [(value["choice"], value["strength"]) for value in found]


def shown(site: Site) -> list[str]:
    """The versions of the newest comparison's drafts, in shown order."""
    ids = json.loads(site.rows("SELECT shown FROM comparisons ORDER BY created_at DESC LIMIT 1")[0]["shown"])
    by_id = {row["id"]: row["policy_version"] for row in site.rows("SELECT id, policy_version FROM replies")}
    return [by_id[draft] for draft in ids]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    """Every byte of every answer of the pages."""
    everything = bytearray()
    original = PageHeaders.__call__

    async def recorded(self: PageHeaders, scope: Scope, receive: Receive, send: Send) -> None:
        async def keep(message: MutableMapping[str, Any]) -> None:
            everything.extend(message.get("body", b""))
            await send(message)

        await original(self, scope, receive, keep)

    monkeypatch.setattr(PageHeaders, "__call__", recorded)
    return everything


def test_nothing_that_reaches_the_browser_names_a_version_before_the_vote(site: Site, sent: bytearray) -> None:
    page = site.open("/compare")
    compare(site, page, "Which one?")
    expect(page.locator("#tw-draft-1")).to_contain_text("Hello there, friend.")
    page.reload()
    site.wait(page, "ready")
    assert b"Which one?" in sent
    assert "policy-" not in page.content()
    for version in VERSIONS:
        assert version[:11].encode() not in sent
    page.click("#tw-better-2")
    site.wait(page, "voted")
    expect(page.locator(".tw-by")).to_have_text([version[:11] for version in shown(site)])
    expect(page.locator("#tw-draft-2 .tw-won")).to_be_visible()
    expect(page.locator("#tw-result")).to_contain_text("Saved. 1 vote so far; training needs 100.")
    assert values(site) == [("right", 1)]
    for version in VERSIONS:
        assert version.encode() in sent


def test_keys_vote(site: Site) -> None:
    page = site.open("/compare")
    for key in KEYS:
        compare(site, page, f"Prompt {key}")
        page.keyboard.press(key)
        site.wait(page, "voted")
    assert values(site) == list(KEYS.values())
    expect(page.locator("#tw-result")).to_contain_text("nothing is learned")


def test_votes_wait_for_both_drafts(site: Site) -> None:
    site.writer.hold = 2
    page = site.open("/compare")
    compare(site, page, "Slowly", state="streaming")
    expect(page.locator("#tw-draft-2").get_by_test_id("markdown")).to_have_text("Hello there")
    expect(page.locator("#tw-draft-1").get_by_test_id("markdown")).to_have_text("Hello there")
    buttons = page.locator(".tw-vote")
    assert [buttons.nth(i).is_disabled() for i in range(7)] == [True] * 7
    page.keyboard.press("1")
    site.writer.hold = None
    site.wait(page, "ready")
    assert values(site) == []
    assert [buttons.nth(i).is_enabled() for i in range(7)] == [True] * 7


def test_a_reload_brings_an_unvoted_comparison_back(site: Site) -> None:
    site.writer.hold = 1
    page = site.open("/compare")
    compare(site, page, "Come back", state="streaming")
    page.reload()
    site.wait(page, "streaming")
    site.writer.hold = None
    site.wait(page, "ready")
    page.reload()
    site.wait(page, "ready")
    expect(page.locator("#tw-prompt")).to_have_text("Come back")
    page.keyboard.press("2")
    site.wait(page, "voted")
    page.reload()
    site.wait(page, "voted")
    expect(page.locator(".tw-by")).to_have_count(2)
    assert values(site) == [("left", 1)]


def test_a_second_vote_and_a_forged_one_change_nothing(site: Site) -> None:
    page = site.open("/compare")
    compare(site, page, "Once")
    comparison = site.rows("SELECT id FROM comparisons")[0]["id"]
    second = {"comparison": comparison, "choice": "right", "strength": 2}
    for forged in ({"choice": "both"}, {"strength": 3}, {"comparison": "cmp_of_nobody"}, {"more": 1}):
        assert forge(page, "/compare/votes", second | forged).status_code in (400, 404)
    page.click("#tw-much-1")
    site.wait(page, "voted")
    assert forge(page, "/compare/votes", second).status_code == 409
    assert values(site) == [("left", 2)]


def test_a_failed_draft_is_one_sentence_and_cannot_be_voted_on(site: Site) -> None:
    site.writer.fail_after, site.writer.failure = 2, EngineFailed("vLLM cut the reply off: try again.")
    page = site.open("/compare")
    compare(site, page, "Break", state="failed")
    expect(page.locator("#tw-result")).to_contain_text("vLLM cut the reply off: try again.")
    expect(page.locator("#tw-votes")).to_be_hidden()
    assert "policy-" not in page.content()
    site.writer.fail_after = None
    page.get_by_role("button", name="Next:").click()
    site.wait(page, "ready")
    assert values(site) == []


def test_examples_and_next_compare_without_typing(site: Site) -> None:
    page = site.open("/compare")
    example = page.locator(".tw-example").first
    prompt = example.inner_text().strip()
    example.click()
    site.wait(page, "ready")
    expect(page.locator("#tw-prompt")).to_have_text(prompt)
    page.keyboard.press("3")
    site.wait(page, "voted")
    page.keyboard.press("n")
    site.wait(page, "ready")
    expect(page.locator("#tw-prompt")).not_to_have_text(prompt)


def test_a_phone_shows_drafts_and_votes_without_sideways_scrolling(site: Site) -> None:
    site.writer.words = ["z" * 200, "\n\n" + "word " * 200]
    page = site.open("/compare", viewport=PHONE, has_touch=True, is_mobile=True)
    compare(site, page, "q" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    for name in ("tw-much-1", "tw-same", "tw-much-2", "tw-both-bad", "tw-skip"):
        expect(page.locator(f"#{name}")).to_be_in_viewport(ratio=1)
        box = page.locator(f"#{name}").bounding_box()
        assert box is not None
        assert min(box["height"], box["width"]) >= 44
    page.tap("#tw-same")
    site.wait(page, "voted")
    expect(page.locator("#tw-next")).to_be_in_viewport()
