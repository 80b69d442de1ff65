"""Single sign-on in real Chromium, with a real provider process: login, again, by invitation, denied, connected."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import PHONE, Site, picture
from mock_provider import mock_provider
from playwright.sync_api import Page, expect

from thumbwise.accounts.identities import SENTENCES
from thumbwise.accounts.principal import COMMAND_LINE

pytestmark = pytest.mark.browser
PEOPLE = (
    {"sub": "subject-1", "preferred_username": "ann", "email": "ann@example.org"},
    {"sub": "subject-2", "preferred_username": "ann", "email": "ann@example.org"},
)
BUTTON = "Log in with Example"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mock_provider(tmp_path_factory.mktemp("provider") / "log", *PEOPLE) as issuer:
        yield issuer


@pytest.fixture(autouse=True)
def settings(issuer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"ISSUER": issuer, "CLIENT_ID": "thumbwise", "CLIENT_SECRET": "s3cret", "LABEL": BUTTON, "SIGN_UP": "open"}
    for name, value in given.items():
        monkeypatch.setenv(f"THUMBWISE_OIDC__{name}", value)


@pytest.fixture
def here(settings: None, issuer: str, team_site: Site) -> Site:
    team_site.provider = issuer
    return team_site


def enter(page: Page, subject: str) -> None:
    """Go to the provider by our button, and be this person there."""
    page.get_by_role("link", name=BUTTON).click()
    expect(page.get_by_role("heading", name="Authorize Client")).to_be_visible()
    page.get_by_role("button", name=subject).first.click()


def consent(page: Page) -> None:
    for name in ("Keep my chats", "Learn from my votes", "Learn from my text"):
        page.get_by_label(name).check()
    page.get_by_role("button", name="Save and go on").click()


def in_chat_as(here: Site, page: Page, name: str, state: str = "idle") -> None:
    here.wait(page, state)
    expect(page.locator(".tw-menu summary")).to_have_attribute("aria-label", f"Account of {name}")


def test_a_login_and_the_next_one_in_another_browser_are_the_same_account(here: Site) -> None:
    page = here.open("/", state=None)
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    picture(page, "oidc-login")
    enter(page, "subject-1")
    consent(page)
    in_chat_as(here, page, "ann")
    here.say(page, "Is the sea deep?")

    phone = here.open("/compare", state=None, viewport=PHONE, color_scheme="dark")
    picture(phone, "oidc-login-phone-dark")
    enter(phone, "subject-1")
    expect(phone).to_have_url(f"{here.url}/compare")
    phone.goto(here.url)
    in_chat_as(here, phone, "ann", state="done")
    expect(phone.locator("#tw-chat")).to_contain_text("Is the sea deep?")
    assert [(row["name"], row["role"]) for row in here.rows("SELECT * FROM users")] == [("ann", "user")]
    assert [cookie["name"] for cookie in page.context.cookies() if "oidc" in cookie["name"]] == []


def test_the_same_name_at_the_provider_is_another_person(here: Site) -> None:
    for subject, name in (("subject-1", "ann"), ("subject-2", "ann 2")):
        page = here.open("/login", state=None)
        enter(page, subject)
        consent(page)
        in_chat_as(here, page, name)
        expect(page.locator("#tw-list a")).to_have_count(0)
        here.say(page, "Is the sea deep?")


def test_an_invitation_by_the_provider(here: Site) -> None:
    object.__setattr__(here.assistant.settings.oidc, "sign_up", "closed")
    page = here.open("/login", state=None)
    enter(page, "subject-1")
    expect(page.get_by_role("alert")).to_have_text(SENTENCES["no_account"])
    picture(page, "oidc-not-invited")
    link = here.assistant.links.make("invite", "reviewer", COMMAND_LINE)
    page.goto(f"{here.url}/join?link={link}")
    picture(page, "oidc-join")
    enter(page, "subject-1")
    consent(page)
    in_chat_as(here, page, "ann")
    assert here.assistant.users.get("ann").role == "reviewer"


def test_who_says_no_at_the_provider_can_try_again(here: Site) -> None:
    page = here.open("/login?next=/compare", state=None)
    page.get_by_role("link", name=BUTTON).click()
    page.get_by_role("button", name="Deny").click()
    expect(page.get_by_role("alert")).to_have_text(SENTENCES["denied"])
    enter(page, "subject-1")
    consent(page)
    in_chat_as(here, page, "ann")


def test_an_account_connects_the_provider(here: Site) -> None:
    boss = here.assistant.users.create("boss", "operator", COMMAND_LINE)
    page = here.open("/login", state=None)
    cookie = {"name": here.assistant.who.cookie, "value": here.assistant.sessions.start(boss.id, COMMAND_LINE)}
    page.context.add_cookies([{**cookie, "url": here.url}])
    page.goto(f"{here.url}/oidc/connect")
    picture(page, "oidc-connect")
    page.get_by_role("link", name="Connect").click()
    page.get_by_role("button", name="subject-1").first.click()
    page.wait_for_url(lambda url: "/oidc/" not in url and url.startswith(here.url))
    assert [found["subject"] for found in here.assistant.identities.of(boss.id)] == ["subject-1"]
    another = here.open("/login", state=None)
    enter(another, "subject-1")
    consent(another)
    in_chat_as(here, another, "boss")
