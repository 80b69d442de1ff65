"""Single sign-on through HTTP, with a real provider process: in, again, refused, invited, connected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from mock_provider import choose, mock_provider
from team import Team, team
from tiny_provider import tiny_provider

from thumbwise.accounts.identities import SENTENCES
from thumbwise.accounts.principal import COMMAND_LINE

PEOPLE = (
    {"sub": "1", "preferred_username": "ann", "email": "ann@x.org", "groups": ["raters"]},
    {"sub": "2", "preferred_username": "bob", "groups": ["admins", "raters"]},
    {"sub": "3", "preferred_username": "ann", "email": "ann@x.org"},
    {"sub": "4", "preferred_username": "eve", "groups": {"admins": True}},
)
HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mock_provider(tmp_path_factory.mktemp("provider") / "log", *PEOPLE) as issuer:
        yield issuer


def sso(issuer: str, **more: Any) -> dict[str, Any]:
    return {"oidc": {"issuer": issuer, "client_id": "thumbwise", "client_secret": "s3cret", "sign_up": "open"} | more}


async def enter(here: Team, browser: httpx.AsyncClient, sub: str, **query: str) -> httpx.Response:
    begun = await browser.get("/oidc/login", params=query)
    assert begun.status_code == 303
    return await choose(browser, begun, sub)


def why(response: httpx.Response) -> str:
    """The code of the sentence that the login page shows."""
    assert response.status_code == 303
    at = urlsplit(response.headers["location"])
    assert at.path in ("/login", "/oidc/connect")
    return parse_qs(at.query)["sso"][0]


async def name(browser: httpx.AsyncClient, here: Team) -> str:
    """Who is logged in, by the assistant's own record."""
    found = here.assistant.who.session(dict(browser.cookies))
    return found[1].name if found else ""


async def test_a_login_and_the_next_one_are_the_same_account(issuer: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer)) as here, here.client() as browser, here.client() as another:
        back = await enter(here, browser, "1", next="/compare?x=1")
        assert back.headers["location"] == "/compare?x=1"
        assert await name(browser, here) == "ann"
        assert (await browser.get("/pages/chat")).status_code == 200
        await enter(here, another, "1")
        assert await name(another, here) == "ann"
        (ann,) = here.assistant.users.all()
        assert (ann.role, ann.state, ann.has_password) == ("user", "active", False)
        assert [entry["action"] for entry in here.assistant.audit.entries()] == ["login", "login", "user.create"]
        assert {entry["via"] for entry in here.assistant.audit.entries()} == {"oidc"}


async def test_the_cookie_of_a_login_is_for_the_callback_only_and_used_once(issuer: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer)) as here, here.client() as browser, here.client() as thief:
        begun = await browser.get("/oidc/login")
        cookie = begun.headers["set-cookie"]
        for part in ("HttpOnly", "SameSite=Lax", "Path=/oidc/callback", "Max-Age=600"):
            assert part in cookie.split("; ")
        assert "Secure" not in cookie
        assert here.assistant.oidc is not None
        back = await choose(browser, begun, "1")
        removed = [text for text in back.headers.get_list("set-cookie") if here.assistant.oidc.cookie in text]
        assert ["Max-Age=0" in text for text in removed] == [True]
        query = dict(parse_qs(urlsplit(str(back.request.url)).query))
        assert why(await browser.get("/oidc/callback", params=query)) == "started_elsewhere"
        assert why(await thief.get("/oidc/callback", params=query)) == "started_elsewhere"
        kept = {here.assistant.oidc.cookie: cookie.partition("=")[2].partition(";")[0]}
        copied = await thief.get("/oidc/callback", params=query, cookies=kept)
        assert why(copied) == "unverified"  # the provider takes a code once
        assert await name(thief, here) == ""


async def test_behind_https_the_callback_is_public_and_the_cookie_secure(issuer: str, tmp_path: Path) -> None:
    public = "https://chat.example.org/thumbwise"
    async with team(tmp_path, public_url=public, **sso(issuer)) as here, here.client() as browser:
        assert here.assistant.oidc is not None
        url, text = await here.assistant.oidc.begin(f"{public}/oidc/callback", next="/", link="")
        assert parse_qs(urlsplit(url).query)["redirect_uri"] == [f"{public}/oidc/callback"]
        cookie = here.assistant.oidc.set_cookie(text, f"{public}/oidc/callback")
        assert "Secure" in cookie.split("; ")
        assert "Path=/thumbwise/oidc/callback" in cookie.split("; ")
        begun = await browser.get("/oidc/login")
        assert parse_qs(urlsplit(begun.headers["location"]).query)["redirect_uri"] == [f"{public}/oidc/callback"]


async def test_who_denies_is_told_so_on_the_login_page(issuer: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer)) as here, here.client() as browser:
        back = await enter(here, browser, "")
        assert why(back) == "denied"
        page = await browser.get(back.headers["location"], headers=HTML)
        assert SENTENCES["denied"] in page.text
        assert not here.assistant.users.all()
        hostile = await browser.get("/login", params={"sso": "<b>call 555</b>"}, headers=HTML)
        assert "555" not in hostile.text


async def test_the_login_page_offers_the_provider_by_its_label(issuer: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer, label="Log in with <ACME>")) as here, here.client() as browser:
        page = await browser.get("/login", headers=HTML)
        assert "Log in with &lt;ACME&gt;" in page.text
        assert 'href="oidc/login' in page.text


@pytest.mark.parametrize("next", ["//evil.example", "https://evil.example", "/\\evil.example", "/" + "x" * 600])
async def test_a_login_leads_to_no_other_site(issuer: str, next: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer)) as here, here.client() as browser:
        assert (await enter(here, browser, "1", next=next)).headers["location"] == "/"


async def test_sign_up_follows_the_accounts_unless_it_is_set(issuer: str, tmp_path: Path) -> None:
    for setting, sign_up, state in (("closed", "", ""), ("approval", "", "pending"), ("open", "", "active"),
                                    ("closed", "approval", "pending"), ("open", "closed", "")):  # fmt: skip
        home = tmp_path / f"{setting}{sign_up}"
        async with team(home, accounts={"sign_up": setting}, **sso(issuer, sign_up=sign_up)) as here:
            async with here.client() as browser:
                back = await enter(here, browser, "1")
                assert [account.state for account in here.assistant.users.all()] == ([state] if state else [])
                if not state:
                    assert why(back) == "no_account"
                assert (await browser.get("/pages/chat")).status_code == (200 if state == "active" else 401)


async def test_an_invitation_works_with_the_provider(issuer: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer, sign_up="closed")) as here, here.client() as browser:
        link = here.assistant.links.make("invite", "reviewer", COMMAND_LINE)
        page = await browser.get("/join", params={"link": link}, headers=HTML)
        assert f"oidc/login?link={link}" in page.text
        await enter(here, browser, "1", link=link)
        ann = here.assistant.users.get("ann")
        assert (ann.role, ann.state) == ("reviewer", "active")
        async with here.client() as another:
            begun = await another.get("/oidc/login", params={"link": link})
            assert why(begun) == "link"
            assert why(await enter(here, another, "2")) == "no_account"
        assert len(here.assistant.users.all()) == 1


async def test_one_invitation_makes_one_account_also_when_two_begin_with_it(issuer: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer, sign_up="closed")) as here, here.client() as one, here.client() as two:
        link = here.assistant.links.make("invite", "user", COMMAND_LINE)
        begun = [await browser.get("/oidc/login", params={"link": link}) for browser in (one, two)]
        assert (await choose(one, begun[0], "1")).headers["location"] == "/"
        assert why(await choose(two, begun[1], "2")) == "link"
        assert [account.name for account in here.assistant.users.all()] == ["ann"]


async def test_a_password_account_connects_and_then_logs_in_by_both(issuer: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer, sign_up="closed")) as here:
        ann = here.account("ann")
        async with here.client(ann) as browser, here.client() as another:
            assert why(await enter(here, another, "1")) == "no_account"
            assert 'href="oidc/connect"' in (await browser.get("/me", headers=HTML)).text
            page = await browser.get("/oidc/connect", headers=HTML)
            (way,) = [text.partition('"')[0] for text in page.text.split('href="')[1:] if text.startswith("connect?")]
            back = await choose(browser, await browser.get(f"/oidc/{way}"), "1")
            assert back.headers["location"] == "/me"
            await enter(here, another, "1")
            assert await name(another, here) == "ann"
        async with here.client(here.account("bob")) as browser:
            page = await browser.get("/oidc/connect", headers=HTML)
            (way,) = [text.partition('"')[0] for text in page.text.split('href="')[1:] if text.startswith("connect?")]
            back = await choose(browser, await browser.get(f"/oidc/{way}"), "1")
            assert why(back) == "taken"
            page = await browser.get(back.headers["location"], headers=HTML)
            assert SENTENCES["taken"].partition(":")[0] in page.text


async def test_no_other_site_or_session_can_connect_an_account(issuer: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer)) as here:
        ann, bob = here.account("ann"), here.account("bob")
        async with here.client(ann) as hers, here.client(bob) as his, here.client() as nobody:
            assert (await nobody.get("/oidc/connect")).status_code in (303, 401)
            page = await hers.get("/oidc/connect", headers=HTML)
            way = page.text.partition('href="connect?')[2].partition('"')[0]
            for guess in ("", "go=", "go=1", way):  # `way` is of her session
                assert (await his.get(f"/oidc/connect?{guess}", headers=HTML)).status_code == 200
            begun = await hers.get(f"/oidc/connect?{way}")
            here.assistant.sessions.end_all(ann.id, COMMAND_LINE)
            assert why(await choose(hers, begun, "1")) == "logged_out"
            assert here.assistant.identities.of(ann.id) == []


async def test_linked_by_e_mail(issuer: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer)) as here, here.client() as browser, here.client() as another:
        boss = here.account("ann", "operator")
        await enter(here, browser, "1")
        await enter(here, another, "3")
        assert {await name(browser, here), await name(another, here)} == {"ann 2", "ann 3"}
        assert here.assistant.identities.of(boss.id) == []


async def test_roles_come_from_the_claim_only_where_they_are_mapped(issuer: str, tmp_path: Path) -> None:
    mapped = sso(issuer, role_claim="groups", roles={"admins": "operator", "raters": "reviewer"})
    async with team(tmp_path, **mapped) as here:
        for sub, role in (("2", "operator"), ("1", "reviewer"), ("3", "user"), ("4", "user")):
            async with here.client() as browser:
                await enter(here, browser, sub)
                assert here.assistant.users.get(await name(browser, here)).role == role
        assert [e["action"] for e in here.assistant.audit.entries() if "claim" in e["action"]] == ["role.claim_ignored"]
    async with team(tmp_path / "unmapped", **sso(issuer)) as here, here.client() as browser:
        await enter(here, browser, "2")
        assert here.assistant.users.get("bob").role == "user"


async def test_a_provisioner_removes_or_demotes_admins(issuer: str, tmp_path: Path) -> None:
    mapped = sso(issuer, role_claim="groups", roles={"admins": "operator", "raters": "reviewer"})
    async with team(tmp_path, **mapped) as here, here.client() as browser:
        boss = here.account("boss", "operator")
        here.assistant.store.share(lambda db: db.table("identities").insert(
            {"issuer": issuer, "subject": "1", "user_id": boss.id, "created_at": 1}))  # fmt: skip
        await enter(here, browser, "1")
        assert await name(browser, here) == "boss"
        assert here.assistant.users.get("boss").role == "operator"
        assert "role.kept" in [entry["action"] for entry in here.assistant.audit.entries()]


async def test_allow_lists_ignored(issuer: str, tmp_path: Path) -> None:
    listed = sso(issuer, role_claim="groups", allowed=["admins"])
    async with team(tmp_path, **listed) as here, here.client() as browser:
        link = here.assistant.links.make("invite", "operator", COMMAND_LINE)
        for sub in ("1", "3", "4"):
            assert why(await enter(here, browser, sub)) == "not_allowed"
            assert why(await enter(here, browser, sub, link=link)) == "not_allowed"
        assert not here.assistant.users.all()
        await enter(here, browser, "2")
        assert await name(browser, here) == "bob"


async def test_a_disabled_account_is_refused(issuer: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer)) as here, here.client() as browser:
        await enter(here, browser, "1")
        here.assistant.users.set_state(here.assistant.users.get("ann").id, "disabled", COMMAND_LINE)
        assert why(await enter(here, browser, "1")) == "disabled"
        assert len(here.assistant.users.all()) == 1


async def test_a_deleted_account_does_not_come_back(issuer: str, tmp_path: Path) -> None:
    async with team(tmp_path, **sso(issuer)) as here, here.client() as browser:
        await enter(here, browser, "1")
        first = here.assistant.users.get("ann")
        here.assistant.users.delete(first.id, COMMAND_LINE)
        await enter(here, browser, "1")
        (second,) = here.assistant.users.all()
        assert second.id != first.id


async def test_a_provider_that_is_down_stops_nothing_but_its_logins(tmp_path: Path) -> None:
    async with team(tmp_path, **sso("http://127.0.0.1:9")) as here, here.client() as browser:
        assert (await browser.get("/login", headers=HTML)).status_code == 200
        back = await browser.get("/oidc/login")
        assert why(back) == "unreachable"
        assert SENTENCES["unreachable"] in (await browser.get(back.headers["location"], headers=HTML)).text


async def test_without_a_provider_there_is_no_page_of_it(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as browser:
        for path in ("/oidc/login", "/oidc/callback?code=1&state=2", "/oidc/connect", "/oidc/x/y"):
            answer = await browser.get(path)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "not_found"
        assert "oidc" not in (await browser.get("/login", headers=HTML)).text


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "started_elsewhere"), ("?state=x", "started_elsewhere"), ("?code=x", "started_elsewhere"),
        ("?code=a&state=%C3%A4", "started_elsewhere"), ("?state=%FF", "started_elsewhere"),
        ("?error=access_denied", "denied"), ("?error=access_denied&state=x&code=y", "denied"),
        ("?error=server_error", "unreachable"), ("?error=invalid_scope", "misconfigured"),
        ("?error=%0Aforged+line", "misconfigured"), ("?error=", "misconfigured"),
    ],
)  # fmt: skip
async def test_a_callback_out_of_nowhere_is_a_sentence(
    query: str, code: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with team(tmp_path, **sso("http://127.0.0.1:9")) as here, here.client() as browser:
        assert why(await browser.get(f"/oidc/callback{query}")) == code
        assert "forged" not in caplog.text


async def test_no_code_token_or_secret_is_kept(tmp_path: Path) -> None:
    with tiny_provider() as there:
        settings = sso(there.issuer)
        async with team(tmp_path, **settings) as here, here.client() as browser:
            for token in ({}, {"aud": "another"}):
                there.token = token
                begun = await browser.get("/oidc/login")
                async with httpx.AsyncClient(trust_env=False) as provider:
                    back = urlsplit((await provider.get(begun.headers["location"])).headers["location"])
                answer = await browser.get(f"{back.path}?{back.query}")
            assert why(answer) == "unverified"
            kept = json.dumps(here.assistant.audit.entries()) + (await browser.get(answer.headers["location"])).text
            text = "\n".join(here.assistant.store.db.conn.iterdump())
        assert len(there.given) == 6
        for secret in (*there.given, "s3cret"):
            assert secret not in kept + text
