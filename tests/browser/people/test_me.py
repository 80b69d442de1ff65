"""A person and their data in Chromium: consent at the first login, chats that are not kept, and My data."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import PHONE, Site, Writer, nothing, picture
from fakes import FakeEngine
from live_server import serving
from playwright.sync_api import Browser, Page, expect

from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.accounts.users import Account
from thumbwise.home import Home
from thumbwise.serving.assistant import Assistant

pytestmark = pytest.mark.browser
CONSENT = ("Keep my chats", "Learn from my votes", "Learn from my text")


@pytest.fixture
def site(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An assistant with accounts."""
    monkeypatch.setenv("THUMBWISE_AUTH", "accounts")
    writer = Writer(["Hello", " there", ", *friend*", "."])
    engine = FakeEngine(writer)

    def prepare(assistant: Assistant) -> None:
        assistant.engine = engine  # type: ignore[assignment]
        assistant.start = nothing  # type: ignore[method-assign]

    with serving(Home.find(tmp_path), prepare=prepare) as live:
        site = Site(live.url, browser, assistant=live.assistant, engine=engine, writer=writer, app=live.app)
        yield site
        site.close()


def account(site: Site, name: str) -> Account:
    return site.assistant.users.create(name, "user", COMMAND_LINE)


def logged_in(site: Site, who: Account, path: str = "/", state: str | None = None, **context: object) -> Page:
    """A page of a browser in which this account is logged in."""
    cookie = {"name": site.assistant.who.cookie, "value": site.assistant.sessions.start(who.id, COMMAND_LINE)}
    stored = {"cookies": [{**cookie, "domain": "127.0.0.1", "path": "/", "expires": -1, "httpOnly": True,
                           "secure": False, "sameSite": "Lax"}], "origins": []}  # fmt: skip
    return site.open(path, state=state, storage_state=stored, **context)


def answer(page: Page, *switches: str) -> None:
    expect(page.get_by_role("heading", name="What may be kept")).to_be_visible()
    for switch in switches:
        page.get_by_label(switch).check()
    page.get_by_role("button", name="Save and go on").click()


def test_consent_is_asked_at_the_first_login_and_all_is_off(site: Site) -> None:
    page = logged_in(site, account(site, "ann"))
    for switch in CONSENT:
        expect(page.get_by_label(switch)).not_to_be_checked()
    picture(page, "consent")
    page.get_by_label(CONSENT[0]).focus()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    site.wait(page, "idle")
    site.say(page, "Keep this")
    assert len(site.rows("SELECT * FROM conversations")) == 1
    page.reload()
    site.wait(page, "done")
    expect(page.get_by_test_id("user")).to_have_text("Keep this")


def test_without_keeping_chats_every_chat_is_temporary(site: Site) -> None:
    page = logged_in(site, account(site, "ann"))
    answer(page)
    site.wait(page, "idle")
    expect(page.get_by_role("heading", name="Temporary chat")).to_be_visible()
    site.say(page, "Do not keep this")
    page.click("#tw-new")
    expect(page.get_by_role("heading", name="Temporary chat")).to_be_visible()
    site.say(page, "Nor this")
    assert [m["content"] for m in site.writer.asked[1][1]] == ["Nor this"]
    assert site.rows("SELECT * FROM replies") == []


def test_my_data_shows_changes_and_deletes(site: Site) -> None:
    ann = account(site, "ann")
    page = logged_in(site, ann)
    answer(page, *CONSENT)
    site.wait(page, "idle")
    site.say(page, "Is the sea deep?")
    page.get_by_role("button", name="Like", exact=True).click()
    expect(page.get_by_test_id("toast-text")).to_contain_text("Saved")
    page.goto(site.url + "/me")
    expect(page.get_by_text("You liked a reply")).to_be_visible()
    expect(page.get_by_role("link", name="Is the sea deep?", exact=True)).to_be_visible()
    picture(page, "me")
    page.get_by_role("button", name="Change to a dislike").click()
    expect(page.get_by_role("status")).to_have_text("Saved.")
    expect(page.get_by_text("You disliked a reply")).to_be_visible()
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download everything").click()
    with zipfile.ZipFile(io.BytesIO(Path(downloading.value.path()).read_bytes())) as archive:
        assert "Is the sea deep?" in archive.read("chats.jsonl").decode()
    page.get_by_role("button", name="Delete: You disliked a reply").click()
    expect(page.get_by_text("You disliked a reply")).to_have_count(0)
    page.get_by_role("link", name="Delete the chat Is the sea deep?").click()
    picture(page, "me-delete")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("link", name="Is the sea deep?", exact=True)).to_have_count(0)
    page.get_by_role("link", name="Delete my account").click()
    page.get_by_label("Type your name").fill("bob")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("This is not your name")
    expect(page.get_by_label("Type your name")).to_be_focused()
    page.get_by_label("Type your name").fill("ann")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{site.url}/login")
    assert site.assistant.users.find(ann.id) is None
    assert "Is the sea deep?" not in str(site.rows("SELECT * FROM prompts"))


def test_a_key_and_sign_out_everywhere(site: Site) -> None:
    ann = account(site, "ann")
    page, other = logged_in(site, ann, "/me"), logged_in(site, ann, "/me")
    page.get_by_text("Make an API key").click()
    page.get_by_label("Name").fill("laptop")
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("code.once")).to_contain_text("tw-")
    picture(page, "me-key")
    page.get_by_role("button", name="Sign out everywhere").click()
    expect(page).to_have_url(f"{site.url}/login")
    other.reload()
    expect(other).to_have_url(f"{site.url}/login?next=%2Fme")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(site: Site, scheme: str) -> None:
    ann = account(site, "ann")
    page = logged_in(site, ann, viewport=PHONE, color_scheme=scheme)
    picture(page, f"consent-phone-{scheme}")
    answer(page, *CONSENT)
    site.wait(page, "idle")
    site.say(page, "A long question about the sea, the sky, and everything that is between the two of them")
    page.get_by_role("button", name="Like", exact=True).click()
    expect(page.get_by_test_id("toast-text")).to_contain_text("Saved")
    page.goto(site.url + "/me")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    controls = "[...document.querySelectorAll('button, a.button, label.check')]"
    small = "filter((each) => each.offsetParent && each.offsetHeight < 44).map((each) => each.textContent)"
    assert page.evaluate(f"{controls}.{small}") == []
    picture(page, f"me-phone-{scheme}")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    picture(page, f"me-phone-end-{scheme}")
