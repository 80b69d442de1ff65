"""A team in real Chromium: first run, invitation, two people at once, logins that end while a page is open."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from chromium import PHONE, Site, picture
from playwright.sync_api import Page, expect

from thumbwise.account_pages import login
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.pages import feed

pytestmark = pytest.mark.browser
PASSWORD = "correct horse battery"
TYPED = "half a thought about"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages see at once that their login has ended."""
    monkeypatch.setattr(feed, "LOGIN_SECONDS", 0.2)


def link(site: Site, kind: Any, role: Any = "user") -> str:
    """The path of a new one-time link."""
    page = {"setup": "setup", "invite": "join", "reset": "reset"}[kind]
    return f"/{page}?link={site.assistant.links.make(kind, role, COMMAND_LINE)}"


def consent(page: Page) -> None:
    """Answer the page that asks before the first chat: all three."""
    for name in ("Keep my chats", "Learn from my votes", "Learn from my text"):
        page.get_by_label(name).check()
    page.get_by_role("button", name="Save and go on").click()


def join(site: Site, path: str, name: str, **context: Any) -> Page:
    """Open a link, fill in its form, and consent, up to the chat page."""
    page = site.open(path, state=None, **context)
    expect(page.get_by_label("Name")).to_be_focused()
    picture(page, f"{path.partition('?')[0].strip('/')}-{name}")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password again").fill(PASSWORD)
    page.get_by_role("button", name="Make the account").click()
    consent(page)
    return page


def log_in(page: Page, name: str) -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()


def member(site: Site, name: str, **context: Any) -> Page:
    """Somebody with an account, at the chat page in a browser of their own."""
    page = join(site, link(site, "invite"), name, **context)
    site.wait(page, "idle")
    expect(page.locator(".tw-menu summary")).to_have_attribute("aria-label", f"Account of {name}")
    return page


def ended(page: Page) -> None:
    expect(page.locator("body[data-ended]")).to_be_visible()
    expect(page.locator("#tw-banner")).to_contain_text("Your login has ended")
    expect(page.locator("#tw-send")).to_be_disabled()


def test_first_run_invitation_and_two_people_at_once(team_site: Site) -> None:
    site = team_site
    boss = join(site, link(site, "setup", "operator"), "boss")
    site.wait(boss, "idle")
    boss.locator(".tw-menu summary").click()
    expect(boss.locator(".tw-menu-list")).to_contain_text("Operator")
    picture(boss, "menu")
    boss.keyboard.press("Escape")
    expect(boss.locator(".tw-menu-list")).to_be_hidden()
    ann = member(site, "ann", color_scheme="dark")

    site.writer.hold = 1  # both replies are written at the same time
    site.say(boss, "What does the boss ask?", state="streaming")
    site.say(ann, "What does ann ask?", state="streaming")
    site.writer.hold = None
    for page, own, other in ((boss, "boss", "ann"), (ann, "ann", "boss")):
        site.wait(page, "done")
        expect(page.locator("#tw-list a")).to_have_text([f"What does {'the boss' if own == 'boss' else 'ann'} ask?"])
        assert other not in page.locator("#tw-chat").inner_text()
        page.get_by_role("button", name="Like", exact=True).click()
        expect(page.get_by_role("button", name="Liked", exact=True)).to_be_visible()
    picture(ann, "chat-dark")
    for page in (boss, ann):
        page.goto(f"{site.url}/compare")
        site.wait(page, "idle")
        page.fill("#tw-box textarea", "Which one?")
        page.press("#tw-box textarea", "Enter")
    for page in (boss, ann):
        site.wait(page, "ready")
        page.click("#tw-better-1")
        site.wait(page, "voted")
    owners = site.rows("SELECT user_id, COUNT(*) AS votes FROM feedback GROUP BY user_id ORDER BY user_id")
    ids = sorted(site.assistant.users.get(name).id for name in ("boss", "ann"))
    assert owners == [{"user_id": id_, "votes": 2} for id_ in ids]

    ann_id = site.assistant.users.get("ann").id
    (hers,) = site.rows(f"SELECT id FROM conversations WHERE user_id = '{ann_id}' AND title LIKE 'What does%'")
    boss.goto(f"{site.url}/?c={hers['id']}")
    site.wait(boss, "done")  # as if it did not exist: the newest one of the own
    expect(boss.get_by_test_id("user")).to_have_text(["What does the boss ask?"])


def test_logging_out_everywhere_ends_the_other_browser(team_site: Site) -> None:
    site = team_site
    laptop = member(site, "ann")
    phone = site.open("/login", state=None, viewport=PHONE)
    log_in(phone, "ann")
    site.wait(phone, "idle")
    phone.fill("#tw-box textarea", TYPED)
    laptop.goto(f"{site.url}/logout")
    picture(laptop, "logout")
    laptop.get_by_role("button", name="Log out on all devices").click()
    expect(laptop.get_by_role("heading", name="Log in")).to_be_visible()
    ended(phone)
    expect(phone.locator("#tw-box textarea")).to_have_value(TYPED)
    picture(phone, "ended-phone")
    laptop.goto(f"{site.url}/?c=new")
    expect(laptop).to_have_url(f"{site.url}/login?next=%2F%3Fc%3Dnew")


def test_a_login_that_ends_in_mid_chat_keeps_the_reply_and_the_typed_text(team_site: Site) -> None:
    site = team_site
    page = member(site, "ann")
    ann = site.assistant.users.get("ann")
    site.writer.hold = 1
    site.say(page, "Go on", state="streaming")
    expect(page.get_by_test_id("bot")).to_have_text("Hello")
    page.fill("#tw-box textarea", TYPED)
    site.assistant.sessions.end_all(ann.id, COMMAND_LINE)
    ended(page)
    picture(page, "ended")
    site.writer.hold = None
    expect(page.locator("#tw-box textarea")).to_have_value(TYPED)
    before = page.url
    page.get_by_role("link", name="Log in again").click()
    log_in(page, "ann")
    site.wait(page, "done")
    assert page.url == before
    expect(page.get_by_test_id("bot")).to_have_text("Hello there, friend.")
    expect(page.locator("#tw-box textarea")).to_have_value(TYPED)
    site.say(page, "And now?")


def test_a_message_to_an_ended_login_is_not_lost(team_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site = team_site
    page = member(site, "ann")
    monkeypatch.setattr(feed, "LOGIN_SECONDS", 60.0)
    site.say(page, "One")  # this page's feed looks again in a minute
    site.assistant.sessions.end_all(site.assistant.users.get("ann").id, COMMAND_LINE)
    page.fill("#tw-box textarea", TYPED)
    page.press("#tw-box textarea", "Enter")
    ended(page)
    expect(page.locator("#tw-box textarea")).to_have_value(TYPED)
    expect(page.locator(".tw-toast")).to_have_count(0)
    other = page.context.new_page()  # logged in again in another tab: the page goes on by itself
    other.goto(f"{site.url}/login")
    log_in(other, "ann")
    site.wait(other, "done")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("body:not([data-ended])")).to_be_visible()
    page.press("#tw-box textarea", "Enter")
    expect(page.get_by_test_id("user")).to_have_text(["One", TYPED])


def test_typed_text_is_not_for_the_next_person_in_the_same_browser(team_site: Site) -> None:
    site = team_site
    member(site, "bob").context.close()
    site.pages.pop()
    page = member(site, "ann")
    site.say(page, "My secret plan")
    page.fill("#tw-box textarea", TYPED)
    conversation = page.url
    other = page.context.new_page()
    other.goto(f"{site.url}/")
    site.wait(other, "done")
    other.locator(".tw-menu summary").click()
    other.get_by_role("button", name="Log out").click()
    log_in(other, "bob")
    site.wait(other, "idle")
    ended(page)
    page.press("#tw-box textarea", "Enter")  # a page of hers does not speak for him
    page.get_by_role("link", name="Log in again").click()
    site.wait(page, "idle")
    expect(page.locator(".tw-menu summary")).to_have_attribute("aria-label", "Account of bob")
    for each in (page, other):
        expect(each.locator("#tw-box textarea")).to_have_value("")
        expect(each.get_by_text("My secret plan")).to_have_count(0)
    page.go_back()
    expect(page.get_by_text("My secret plan")).to_have_count(0)
    page.goto(conversation)
    site.wait(page, "idle")
    expect(page.locator("#tw-box textarea")).to_have_value("")
    assert TYPED not in page.evaluate("JSON.stringify({...sessionStorage})")
    bob = site.assistant.users.get("bob").id
    assert site.rows(f"SELECT * FROM replies WHERE user_id = '{bob}'") == []


@pytest.mark.parametrize("team_site", [{"accounts": {"sign_up": "approval"}}], indirect=True)
def test_sign_up_waits_for_approval(team_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "LOOK_SECONDS", 1)
    site = team_site
    page = site.open("/", state=None, viewport=PHONE)
    picture(page, "login-phone")
    page.get_by_role("link", name="Make one").click()
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password again").fill(PASSWORD + "!")
    page.get_by_role("button", name="Make the account").click()
    expect(page.get_by_label("Password again")).to_be_focused()
    expect(page.get_by_label("Name")).to_have_value("ann")
    picture(page, "join-wrong-phone")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password again").fill(PASSWORD)
    page.get_by_role("button", name="Make the account").click()
    expect(page.get_by_role("heading", name="An operator must approve")).to_be_visible()
    picture(page, "pending-phone")
    page.goto(f"{site.url}/compare")
    expect(page.get_by_role("heading", name="An operator must approve")).to_be_visible()
    site.assistant.users.set_state(site.assistant.users.get("ann").id, "active", COMMAND_LINE)
    consent(page)
    site.wait(page, "idle")
    assert page.url.startswith(f"{site.url}/compare")


def test_the_login_by_keyboard_and_its_error(team_site: Site) -> None:
    site = team_site
    member(site, "ann").context.close()
    site.pages.pop()
    page = site.open("/compare", state=None, color_scheme="dark")
    expect(page.get_by_label("Name")).to_be_focused()
    page.keyboard.type("ann")
    page.keyboard.press("Tab")
    page.keyboard.type("a wrong password")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong: try again.")
    expect(page.get_by_label("Password")).to_be_focused()
    picture(page, "login-wrong-dark")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    site.wait(page, "idle")
    assert page.url == f"{site.url}/compare"


def test_at_390_px_nothing_is_cut_off_and_the_menu_opens(team_site: Site) -> None:
    site = team_site
    page = member(site, "a-rather-long-name-of-a-person@example.org", viewport=PHONE)
    for path in ("/", "/compare"):
        page.goto(site.url + path)
        site.wait(page, "idle")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.locator(".tw-menu summary").click()
        box = page.locator(".tw-menu-list").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        picture(page, f"menu-phone{path.replace('/', '-')}")
        for part in page.locator("#tw-top a:visible, #tw-top summary:visible, #tw-top .tw-chip:visible").all():
            inside = part.bounding_box()
            assert inside is not None
            assert inside["x"] >= 0
            assert inside["x"] + inside["width"] <= 390
        page.keyboard.press("Escape")


def test_another_site_can_neither_log_in_nor_out(team_site: Site) -> None:
    """A form on another origin, sent by a real browser."""
    site = team_site
    page = member(site, "ann")
    evil = page.context.new_page()
    evil.route("http://127.0.0.2:1/", lambda route: route.fulfill(content_type="text/html", body=(
        f'<form method="post" action="{site.url}/logout"><button>Win</button></form>'
    )))  # fmt: skip
    evil.goto("http://127.0.0.2:1/")
    evil.get_by_role("button").click()
    expect(evil.locator("body")).to_contain_text("comes from another site")
    page.reload()
    site.wait(page, "idle")
    assert httpx.get(f"{site.url}/config").status_code == 401
