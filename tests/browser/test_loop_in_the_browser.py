"""The whole loop as a person at the page sees it: Chromium, `thumbwise serve` and `thumbwise train` as processes, vLLM.

What single clicks do is tested against a scripted engine in test_chat_page.py; here they happen on one real
assistant, which is trained, swapped and killed while its page is open. What a page shows is compared with what
the database holds: over the API while the assistant runs, from the file once it is dead.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import PHONE, Pages, forge, picture
from crash_tools import COMMAND, Server, rows
from playwright.sync_api import Browser, Page, expect
from simulated_people import PROMPTS, prefers_vowels, vote
from tiny_engine import TinyEngine
from tiny_model import ROUND

from thumbwise.home import Home
from thumbwise.names import BASE
from thumbwise.pages.chat import DOUBLE_CLICK_SECONDS
from thumbwise.pages.markup import short
from thumbwise.serving.listening import bind

pytestmark = [pytest.mark.browser, pytest.mark.engine]

VOTES = 120
CONFIG = """
model = "{model}"
engine_url = "unix:{engine}"
max_tokens = 24
chat_max_tokens = 32
"""
CONVERSATION = """
    SELECT json_extract(p.messages, '$[#-1].content'), r.text, r.state, r.policy_version,
        (SELECT json_extract(value, '$.thumb') FROM feedback
         WHERE kind = 'thumb' AND message_id = r.id ORDER BY seq DESC LIMIT 1)
    FROM replies r JOIN prompts p ON p.sha256 = r.prompt_sha256 WHERE r.conversation_id = ? ORDER BY r.created_at
"""
FORGED: list[Any] = [
    {"message": "msg_of_nobody", "thumb": "up"},
    {"message": "$", "thumb": True},
    {"message": "$"},
    {"thumb": "up"},
    None,
]
PATIENCE = 24_000  # milliseconds for what a page learns by being told


class OnOnePort(Server):
    """An assistant whose address stays the same when it is killed and started again, as a page needs it."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        with bind("127.0.0.1", 0) as free:
            self.port = free.getsockname()[1]

    def launch(self, fault: str = "") -> None:
        self.kill()
        with self.log.open("wb") as log:
            command = [COMMAND, "serve", "--port", str(self.port)]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def train(self) -> str:
        """Run a round as an operator does; returns the last line that it says."""
        said = subprocess.run(
            [COMMAND, "train"], env=self.environment, capture_output=True, text=True, timeout=500, check=False
        )
        assert said.returncode == 0, said.stderr
        return said.stdout.splitlines()[-1]

    def stable(self) -> str:
        return str(httpx.get(f"{self.url}/health/ready", timeout=30).json()["stable"])

    def thumbs(self) -> list[tuple[str, bool]]:
        """(question, whether the thumb is up) of each thumb that counts, as the training job would read it."""
        lines = [json.loads(line) for line in self.snapshot().splitlines()]
        return [(line["prompt"][-1]["content"], line["up"]) for line in lines if line["type"] == "thumb"]

    def thumbs_given(self) -> int:
        """How many thumbs were stored since the start, those taken back or replaced too."""
        metrics = httpx.get(f"{self.url}/metrics", timeout=30).text
        found = re.search(r'^thumbwise_feedback_total\{kind="thumb"\} (\d+)', metrics, re.MULTILINE)
        return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_engine: TinyEngine) -> Iterator[OnOnePort]:
    home = Home.find(tmp_path_factory.mktemp("journey") / "home")
    home.config.write_text(CONFIG.format(model=tiny_model, engine=tiny_engine.uds) + ROUND)
    server = OnOnePort(home)
    yield server
    server.kill()


@pytest.fixture
def site(server: OnOnePort, browser: Browser) -> Iterator[Pages]:
    if server.process is None:
        server.again()
    site = Pages(server.url, browser)
    yield site
    site.close()


def thumb(page: Page, name: str) -> Any:
    """The thumb buttons of that name, from the first reply to the last."""
    return page.get_by_role("button", name=name, exact=True)


def letters(text: str) -> str:
    """What Markdown leaves of a text wherever it draws its marks."""
    return "".join(re.findall(r"[A-Za-z]", text))


Turn = tuple[str, str, str, str]
"""Question, letters of the reply, its note (version, how it ended), its thumb or nothing."""


def shown(page: Page) -> list[Turn]:
    """The conversation as the page shows it."""
    asked = page.get_by_test_id("user").all_text_contents()
    said = page.get_by_test_id("bot").all_text_contents()
    beside = page.locator("#tw-chat .tw-acts").evaluate_all(
        """rows => rows.map(row => {
            const given = row.querySelector("[aria-label=Liked], [aria-label=Disliked]")?.ariaLabel;
            return [row.querySelector(".tw-note").textContent, {Liked: "up", Disliked: "down"}[given] ?? ""];
        })"""
    )
    turns = zip(asked, said, beside, strict=True)
    return [(question.strip(), letters(reply), note, given) for question, reply, (note, given) in turns]


def stored(server: OnOnePort, page: Page) -> list[Turn]:
    """The page's conversation as a page should show it, from the file that a dead assistant left."""
    assert server.process is None
    found = rows(server.home, CONVERSATION, page.url.partition("?c=")[2])
    assert [state for _, _, state, _, _ in found] == ["done"] * len(found)
    return [
        (
            question,
            letters(text if text.strip() else "There is no reply."),
            short(version),
            "" if given == "clear" else given or "",
        )
        for question, text, _, version, given in found
    ]


@contextmanager
def paused(tiny_engine: TinyEngine) -> Iterator[None]:
    """Hold vLLM where it is: a reply that is asked for in here is being written until the block ends."""
    assert tiny_engine.engine.pid is not None
    os.killpg(tiny_engine.engine.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(tiny_engine.engine.pid, signal.SIGCONT)


def test_thumbs_count_as_they_are_shown_whatever_is_clicked_or_forged(
    server: OnOnePort, site: Pages, tiny_engine: TinyEngine
) -> None:
    page = site.open("/?c=new")
    site.say(page, "Tell me a story.")
    panel = page.locator("#tw-comment")  # comes from the server, once a thumb is stored; the button turns at once
    thumb(page, "Like").click()
    expect(panel).to_contain_text("What was good")
    assert (server.thumbs(), server.thumbs_given()) == ([("Tell me a story.", True)], 1)
    page.wait_for_timeout(DOUBLE_CLICK_SECONDS * 1200)  # a click before that would be half of a double click
    thumb(page, "Liked").click()
    expect(panel).to_be_hidden()
    assert (server.thumbs(), server.thumbs_given()) == ([], 2)
    thumb(page, "Dislike").dblclick()
    expect(panel).to_contain_text("What was wrong")

    with paused(tiny_engine):
        site.say(page, "Is that all?", state="streaming")
        page.locator("[aria-label=Like]").last.evaluate("button => button.click()")
        # Clicks are judged in order, so that the second half of the double click has been judged too.
        expect(page.get_by_test_id("toast-text").filter(has_text="still being written")).to_be_visible()
    site.wait(page, "done")
    assert (server.thumbs(), server.thumbs_given()) == ([("Tell me a story.", False)], 3)
    own = page.locator("#tw-chat .tw-reply").first.get_attribute("data-reply")
    for forged in FORGED:
        body = json.loads(json.dumps(forged).replace("$", str(own)))
        assert forge(page, "/chat/thumbs", body).status_code in (400, 404)
    assert (server.thumbs(), server.thumbs_given()) == ([("Tell me a story.", False)], 3)

    before = shown(page)
    assert [(note, given) for _, _, note, given in before] == [(BASE, "down"), (BASE, "")]
    page.reload()
    site.wait(page, "done")
    assert shown(page) == before
    server.kill()
    assert stored(server, page) == before


def give_votes(server: OnOnePort) -> None:
    """People vote through the API, in a thread, because Playwright's own event loop runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        given = pool.submit(asyncio.run, vote(server.url, prefers_vowels, VOTES, PROMPTS)).result()
    assert given["choices"]["left"] + given["choices"]["right"] >= VOTES


def take_pictures(site: Pages, page: Page, name: str) -> None:
    """The same conversation on both screens, where SHOTS asks for it."""
    if "SHOTS" in os.environ:
        picture(page, f"{name}-1280")
        phone = site.open(page.url.removeprefix(site.url), "done", viewport=PHONE, has_touch=True, is_mobile=True)
        picture(phone, f"{name}-390")


def test_votes_become_a_version_that_an_open_page_shows_and_that_a_kill_does_not_lose(
    server: OnOnePort, site: Pages
) -> None:
    page = site.open("/?c=new")
    old = server.stable()
    chip = page.locator(".tw-chip")
    expect(chip).to_have_attribute("data-version", old)
    site.say(page, "What is the capital of France?")
    thumb(page, "Like").click()
    expect(page.locator("#tw-comment")).to_contain_text("What was good")

    give_votes(server)
    last = server.train()
    new = server.stable()
    assert new != old
    assert last.startswith(f"promoted: {new}")
    expect(chip).to_have_attribute("data-version", new, timeout=PATIENCE)
    expect(chip).to_contain_text(short(new))
    site.say(page, "How do I boil an egg?")
    before = shown(page)
    assert [(note, given) for _, _, note, given in before] == [(short(old), "up"), (short(new), "")]
    take_pictures(site, page, "after-the-swap")

    page.fill("#tw-box textarea", "Thank you!")
    server.kill()
    assert stored(server, page) == before
    expect(page.locator("body[data-gone]")).to_be_visible(timeout=PATIENCE)
    picture(page, "while-it-is-gone")
    server.again()
    expect(page.locator("body:not([data-gone])")).to_be_visible(timeout=30_000)  # the page came back by itself
    site.wait(page, "done")
    assert shown(page) == before
    expect(chip).to_have_attribute("data-version", new)
    expect(page.locator("#tw-box textarea")).to_have_value("Thank you!")
    expect(page.locator("#tw-send")).to_be_enabled()
    site.say(page, "Thank you!")
    after = shown(page)
    assert [note for _, _, note, _ in after] == [short(old), short(new), short(new)]
    take_pictures(site, page, "after-the-restart")
    server.kill()
    assert stored(server, page) == after
