"""Both pages on a real vLLM: a chat with thumb and comment, a side-by-side vote, and what the store then holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Site, Writer, nothing
from fakes import FakeEngine
from live_server import serving
from playwright.sync_api import Browser, expect
from tiny_engine import TinyEngine

from thumbwise.feedback.records import LOCAL_USER
from thumbwise.home import Home
from thumbwise.serving.assistant import Assistant

pytestmark = [pytest.mark.browser, pytest.mark.engine]


@pytest.fixture
def real_site(browser: Browser, tiny_engine: TinyEngine, tmp_path: Path) -> Iterator[Site]:
    """An assistant whose engine is the session's vLLM; only its supervisor is a stand-in."""
    engine = FakeEngine(tiny_engine.client())  # type: ignore[arg-type]

    def prepare(assistant: Assistant) -> None:
        assistant.engine = engine  # type: ignore[assignment]
        assistant.start = nothing  # type: ignore[method-assign]

    with serving(Home.find(tmp_path), prepare=prepare) as live:
        site = Site(live.url, browser, assistant=live.assistant, engine=engine, writer=Writer(), app=live.app)
        yield site
        site.close()


def test_chat_thumb_comment_and_pair_vote_reach_the_store(real_site: Site) -> None:
    site, store = real_site, real_site.assistant.store
    page = site.open()
    site.say(page, "Tell me a story")
    site.say(page, "Go on")
    page.get_by_role("button", name="Like", exact=True).first.click()
    page.fill("#tw-comment-box textarea", "It was kind.")
    page.click("#tw-comment-save")
    expect(page.locator("#tw-comment")).to_be_hidden()

    path = store.conversation(site.rows("SELECT id FROM conversations")[0]["id"], LOCAL_USER)
    assert [reply.thumb for reply in path] == ["up", None]
    assert [reply.state for reply in path] == ["done", "done"]
    assert path[1].prompt[1]["content"] == path[0].text  # of a two-layer model: it may be empty
    assert path[1].parent_id == path[0].id
    stored = site.rows("SELECT response_ids, prompt_ids FROM replies")
    assert all(json.loads(ids) for row in stored for ids in row.values())

    page.goto(site.url + "/compare")
    site.wait(page, "idle")
    page.fill("#tw-box textarea", "What is the capital of France?")
    page.click("#tw-go")
    site.wait(page, "ready")
    page.keyboard.press("5")
    site.wait(page, "voted")
    comparison = store.comparison(site.rows("SELECT id FROM comparisons")[0]["id"], LOCAL_USER)
    assert comparison.choice == "right"
    assert [draft.policy_version for draft in comparison.drafts] == ["policy-0000", "policy-0000"]
    for number, draft in enumerate(comparison.drafts, start=1):
        first = draft.text.split()[0]
        expect(page.locator(f"#tw-draft-{number}")).to_contain_text(first)
    assert store.counts() == {"thumb": 1, "comment": 1, "pair": 1, "untied_pairs": 1}
    assert site.votes()[-1] == ("pair", '{"choice":"right","strength":2}')
