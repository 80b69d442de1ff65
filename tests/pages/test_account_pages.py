"""The pages of login, setup, invitation and approval, over HTTP."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from team import Team, team

from thumbwise import account_pages, pages
from thumbwise.account_pages.forms import local_path
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.pages import feed

HTML = {"accept": "text/html"}
PASSWORD = "correct horse battery"
CROSS_SITE = (
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:9999"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
    {"sec-fetch-site": "same-site"},
)


async def member(here: Team, name: str, role: Any = "user") -> str:
    """Make an account with a password; returns its id."""
    hashed = await here.assistant.entry.passwords.hash(PASSWORD)
    return here.account(name, role, password=hashed).id


async def log_in(client: httpx.AsyncClient, name: str, **more: str) -> httpx.Response:
    return await client.post("/login", data={"name": name, "password": PASSWORD, **more})


async def test_first_run_to_operator_and_an_invitation(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as boss, here.client() as guest:
        links = here.assistant.links
        link = links.make("setup", "operator", COMMAND_LINE)
        form = await boss.get("/setup", params={"link": link}, headers=HTML)
        assert form.status_code == 200
        assert f'value="{link}"' in form.text
        asked = {"link": link, "name": "Boss", "password": PASSWORD, "again": PASSWORD}
        made = await boss.post("/setup", data=asked)
        assert (made.status_code, made.headers["location"]) == (303, "/")
        assert (await boss.get("/pages/account")).json()["account"]["id"] == here.assistant.users.get("boss").id
        assert "Operator" in (await boss.get("/pages/account")).json()["account"]["menu"]
        again = await guest.post("/setup", data={**asked, "name": "second"})
        assert again.status_code in (403, 409)
        assert (await guest.get("/setup", params={"link": link})).status_code == 409
        assert len(here.assistant.users.all()) == 1

        link = links.make("invite", "reviewer", COMMAND_LINE)
        assert (await guest.get("/join", params={"link": "wrong"})).status_code == 403
        assert "<form" not in (await guest.get("/join", params={"link": "wrong"})).text
        joined = await guest.post("/join", data={**asked, "link": link, "name": "ann"})
        assert joined.status_code == 303
        assert here.assistant.users.get("ann").role == "reviewer"
        assert "Reviewer" in (await guest.get("/pages/account")).json()["account"]["menu"]


async def test_the_cookie_is_for_no_script_and_no_other_site(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as client:
        await member(here, "ann")
        (cookie,) = (await log_in(client, "ann")).headers.get_list("set-cookie")
        for word in ("HttpOnly", "SameSite=Lax", "Path=/"):
            assert word in cookie
        assert "Secure" not in cookie
        out = await client.post("/logout")
        assert (out.status_code, out.headers["location"]) == (303, "/login")
        assert (await client.get("/pages/chat")).status_code == 401
    async with team(tmp_path / "tls", public_url="https://chat.example") as here, here.client() as client:
        await member(here, "ann")
        assert "Secure" in (await log_in(client, "ann")).headers["set-cookie"]


async def test_a_wrong_password_comes_back_with_the_name_and_without_the_password(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as client:
        await member(here, "ann")
        answers = {}
        for name in ("ann", 'no"body<b>'):
            data = {"name": name, "password": "wrong words here", "next": "/?c=conv_1"}
            answer = await client.post("/login", data=data)
            assert answer.status_code == 401
            assert "set-cookie" not in answer.headers
            assert "wrong words here" not in answer.text
            assert 'value="/?c=conv_1"' in answer.text
            (focused,) = re.findall(r"<input[^>]*autofocus[^>]*>", answer.text)
            assert 'id="password"' in focused
            assert 'aria-invalid="true"' in focused
            answers[name] = answer.text
        assert 'value="ann"' in answers["ann"]
        kept = 'value="no&#34;body&lt;b&gt;"'
        assert answers["ann"] == answers['no"body<b>'].replace(kept, 'value="ann"')


async def test_too_many_attempts_are_told_in_the_form(tmp_path: Path) -> None:
    async with team(tmp_path, accounts={"attempts_per_account": "2/hour"}) as here, here.client() as client:
        await member(here, "ann")
        for _ in range(2):
            assert (await client.post("/login", data={"name": "ann", "password": "wrong words"})).status_code == 401
        refused = await log_in(client, "ann")
        assert refused.status_code == 429
        assert "Retry-After" in refused.headers
        assert 'role="alert"' in refused.text


async def test_logging_out_while_waiting_for_approval_ends_the_login(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        cleo = here.account("cleo", state="pending")
        async with here.client(cleo) as client:
            assert "You are cleo" in (await client.get("/pending")).text
            await client.post("/logout")
        assert here.assistant.sessions.of(cleo.id) == []


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"name": "a/b"}, "name"),
        ({"name": "ann"}, "name"),
        ({"password": "short", "again": "short"}, "password"),
        ({"again": "another text"}, "again"),
    ],
)
async def test_an_error_is_at_its_field_and_the_link_still_works(
    tmp_path: Path, asked: dict[str, str], field: str
) -> None:
    async with team(tmp_path) as here, here.client() as client:
        await member(here, "ann")
        link = here.assistant.links.make("invite", "user", COMMAND_LINE)
        whole = {"link": link, "name": "bob", "password": PASSWORD, "again": PASSWORD}
        answer = await client.post("/join", data={**whole, **asked})
        assert 400 <= answer.status_code < 500
        (focused,) = re.findall(r"<input[^>]*autofocus[^>]*>", answer.text)
        assert f'id="{field}"' in focused
        assert f'id="{field}-error"' in answer.text
        assert PASSWORD not in answer.text
        assert (await client.post("/join", data=whole)).status_code == 303


async def test_sign_up_is_closed_by_default_and_may_need_approval(tmp_path: Path) -> None:
    async with team(tmp_path / "closed") as here, here.client() as client:
        await member(here, "ann")
        assert (await client.get("/join")).status_code == 403
        asked = {"name": "bob", "password": PASSWORD, "again": PASSWORD}
        assert (await client.post("/join", data=asked)).status_code == 403
        assert 'href="join"' not in (await client.get("/login")).text
    async with team(tmp_path / "approval", accounts={"sign_up": "approval"}) as here, here.client() as client:
        assert 'href="join"' in (await client.get("/login")).text
        assert "must approve" in (await client.get("/join")).text
        assert (await client.post("/join", data=asked)).status_code == 303
        home = await client.get("/", headers=HTML)
        assert home.headers["location"].startswith("/login")
        sent = await client.get(home.headers["location"])
        assert sent.headers["location"] == "/pending?next=%2F"
        page = await client.get("/pending")
        assert "must approve" in page.text
        assert 'http-equiv="refresh"' in page.text
        for path in ("/pages/chat", "/pages/account", "/config", "/me"):
            assert (await client.get(path)).status_code == 401, path
        assert (await client.post("/pages/chat/messages", json={"text": "Hi"})).status_code == 401
        here.assistant.users.set_state(here.assistant.users.get("bob").id, "active", COMMAND_LINE)
        assert (await client.get("/pending")).headers["location"] == "/"
        assert (await client.get("/pages/chat")).status_code == 200
    async with team(tmp_path / "open", accounts={"sign_up": "open"}) as here, here.client() as client:
        assert (await client.post("/join", data=asked)).status_code == 303
        assert (await client.get("/pages/chat")).status_code == 200


@pytest.mark.parametrize(
    "wanted",
    ["//evil.example", "https://evil.example", "/\\evil.example", "/%5cevil.example", "/%2fevil.example",
     "javascript:1", "/\t/evil.example", "\n//evil.example", "evil.example", "", "/login", "/login?next=/login",
     "///evil.example", "http:evil.example", "/logout"],
)  # fmt: skip
async def test_a_login_sends_nobody_to_another_site(tmp_path: Path, wanted: str) -> None:
    assert local_path(wanted) == "/"
    async with team(tmp_path) as here, here.client() as client:
        await member(here, "ann")
        assert 'name="next" value="/"' in (await client.get("/login", params={"next": wanted})).text
        assert (await log_in(client, "ann", next=wanted)).headers["location"] == "/"
        assert (await client.get("/login", params={"next": wanted})).headers["location"] == "/"


def test_a_login_leads_back_to_the_page_that_asked_for_it() -> None:
    for path in ("/", "/?c=conv_01", "/compare?c=cmp_1", "/me", "/?c=new#end"):
        assert local_path(path) == path


@pytest.mark.parametrize("path", ["/login", "/logout", "/setup", "/join", "/reset", "/password"])
async def test_a_form_of_another_site_is_refused(tmp_path: Path, path: str) -> None:
    """Also the login's: it would make somebody chat in an account of the attacker."""
    async with team(tmp_path, accounts={"sign_up": "open"}) as here:
        ann = here.assistant.users.get(await member(here, "ann"))
        async with here.client(ann) as client, here.client() as nobody:
            data = {"name": "ann", "password": PASSWORD, "again": PASSWORD, "old": PASSWORD}
            for headers in CROSS_SITE:
                for each in (client, nobody):
                    answer = await each.post(path, data=data, headers=headers)
                    assert answer.status_code == 403, headers
                    assert "set-cookie" not in answer.headers
            assert (await client.get("/pages/chat")).status_code == 200


async def test_our_own_forms_are_let_through(tmp_path: Path) -> None:
    """Browsers send `Origin: null` with a form of a page whose policy is no-referrer; ours is another."""
    async with team(tmp_path) as here, here.client() as client:
        await member(here, "ann")
        form = await client.get("/login", headers=HTML)
        assert form.headers["referrer-policy"] == pages.security.HEADERS["Referrer-Policy"] == "same-origin"
        assert form.headers["cache-control"] == "no-store"
        assert "script-src" not in form.headers["content-security-policy"]
        assert "default-src 'none'" in form.headers["content-security-policy"]
        headers = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
        data = {"name": "ann", "password": PASSWORD}
        assert (await client.post("/login", data=data, headers=headers)).status_code == 303


async def test_logging_out_everywhere_and_changing_the_password_end_other_logins(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.assistant.users.get(await member(here, "ann"))
        async with here.client(ann) as laptop, here.client(ann) as phone:
            wrong = {"old": "not this one", "password": "another one here", "again": "another one here"}
            refused = await laptop.post("/password", data=wrong)
            assert refused.status_code == 403
            assert 'id="old-error"' in refused.text
            assert (await phone.get("/pages/chat")).status_code == 200
            assert (await laptop.post("/password", data={**wrong, "old": PASSWORD})).status_code == 303
            assert (await phone.get("/pages/chat")).status_code == 401
            assert (await laptop.get("/pages/chat")).status_code == 200
        async with here.client(ann) as laptop, here.client(ann) as phone:
            assert (await laptop.get("/logout")).text.count("<form") == 2
            await laptop.post("/logout", data={"everywhere": "yes"})
            for each in (laptop, phone):
                assert (await each.get("/pages/chat")).status_code == 401


async def test_a_reset_link_sets_a_password(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as client:
        ann = here.account("ann")
        link = here.assistant.links.make("reset", "user", COMMAND_LINE, ann.id)
        form = (await client.get("/reset", params={"link": link})).text
        assert 'autocomplete="new-password"' in form
        assert 'value="ann" autocomplete="username"' in form  # for password managers
        data = {"link": link, "password": PASSWORD, "again": PASSWORD}
        assert (await client.post("/reset", data=data)).status_code == 303
        assert (await client.get("/pages/chat")).status_code == 200
        assert (await client.post("/reset", data=data)).status_code == 403
        await client.post("/logout")
        assert (await log_in(client, "ann")).status_code == 303


async def test_logging_in_as_somebody_else_ends_the_login_before(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as shared:
        ann = await member(here, "ann")
        await member(here, "bob")
        await log_in(shared, "ann")
        before = dict(shared.cookies)
        await log_in(shared, "bob")
        async with httpx.AsyncClient(transport=here.transport, base_url=str(shared.base_url), cookies=before) as old:
            assert (await old.get("/pages/chat")).status_code == 401
        # A page that Ann left open still names her account: it does not speak for Bob.
        headers = {"X-Thumbwise-Account": ann}
        asked = await shared.post("/pages/chat/messages", json={"text": "From Ann"}, headers=headers)
        assert (asked.status_code, asked.json()["error"]["code"]) == (401, "login_needed")
        assert (await shared.get("/pages/chat/events", params={"account": ann})).status_code == 401
        assert here.assistant.store.rows("SELECT * FROM conversations") == []


async def test_another_persons_feed_shows_nothing(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann, bob = here.account("ann"), here.account("bob")
        here.assistant.engine.client.gate = asyncio.Event()  # type: ignore[union-attr]
        async with here.client(ann) as hers, here.client(bob) as his:
            page = (await hers.post("/pages/chat/messages", json={"text": "My secret"})).json()
            assert "reply=" in page["events"]
            seen: list[str] = []

            async def read() -> None:
                async with his.stream("GET", page["events"]) as stream:
                    async for line in stream.aiter_lines():
                        seen.append(line)

            reading = asyncio.create_task(read())
            await asyncio.sleep(0.3)
            here.assistant.engine.client.gate.set()  # type: ignore[union-attr]
            await asyncio.sleep(0.3)
            here.assistant.sessions.end_all(bob.id, COMMAND_LINE)
            await asyncio.wait_for(reading, 30)
            assert not [line for line in seen if line.startswith("event:") and line != "event: top"]
            for path in ("/gradio_api/queue/data?session_hash=abc", "/gradio_api/heartbeat/abc"):
                assert (await his.get(path)).status_code == 401  # his login has ended


@pytest.mark.parametrize("why", ["logged out", "disabled", "too old"])
async def test_a_feed_ends_with_the_login_and_the_reply_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(feed, "LOGIN_SECONDS", 0.1)
    async with team(tmp_path) as here:
        assistant, ann = here.assistant, here.account("ann")
        gate = assistant.engine.client.gate = asyncio.Event()  # type: ignore[union-attr]
        async with here.client(ann) as hers:
            page = (await hers.post("/pages/chat/messages", json={"text": "Go on"})).json()
            idle, streaming = (
                asyncio.create_task(hers.get(address)) for address in ("/pages/chat/events", page["events"])
            )
            await asyncio.sleep(0.3)
            assert not idle.done()
            assert not streaming.done()
            if why == "logged out":
                assistant.sessions.end_all(ann.id, COMMAND_LINE)
            elif why == "disabled":
                assistant.users.set_state(ann.id, "disabled", COMMAND_LINE)
            else:
                monkeypatch.setattr(assistant.sessions, "days", 0.0)
            for each in (idle, streaming):
                answer = await asyncio.wait_for(each, 30)
                assert "event: end" not in answer.text
            refused = await hers.get(page["events"])
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "login_needed")
            gate.set()
            for _ in range(300):
                (reply,) = assistant.store.rows("SELECT * FROM replies")
                if reply["state"] != "streaming":
                    break
                await asyncio.sleep(0.05)
            assert (reply["state"], reply["text"], reply["user_id"]) == ("done", "Hello there friend", ann.id)


async def test_nothing_that_all_people_get_names_a_person(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann-with-a-name", "operator")
        async with here.client(ann) as client:
            page = (await client.get("/", headers=HTML)).text
            assert "ann-with-a-name" not in page
            assert '"elem_id":"tw-account"' in page
            assert "You choose what is kept" in page
            mine = await client.get("/pages/account")
            assert "ann-with-a-name" in mine.text
            assert mine.headers["cache-control"] == "no-store"


async def test_without_accounts_the_pages_are_as_before(tmp_path: Path) -> None:
    async with team(tmp_path, auth="local") as here, here.client() as client:
        for path in account_pages.PATHS:
            assert (await client.get(path)).headers["location"] == "/"
            answer = await client.post(path, data={"name": "ann", "password": PASSWORD})
            assert answer.headers["location"] == "/"
        page = (await client.get("/", headers=HTML)).text
        assert '"elem_id":"tw-account"' not in page
        assert "machine’s users" in page or "machine\\u2019s users" in page
        assert "account" not in (await client.get("/pages/chat")).json()


async def test_behind_a_proxy_that_logs_in_there_are_no_passwords(tmp_path: Path) -> None:
    async with team(tmp_path, auth="proxy", proxy={"peers": "192.0.2.1"}) as here, here.client() as client:
        for path in account_pages.PATHS:
            for answer in (await client.get(path, headers=HTML), await client.post(path, data={"name": "ann"})):
                assert answer.status_code in (303, 401), path  # 303: to /login, from a path that is not open
                assert here.assistant.who.cookie not in answer.headers.get("set-cookie", "")
        assert "Log in at the proxy" in (await client.get("/login", headers=HTML)).text


def test_the_colours_are_those_of_the_chat_page() -> None:
    def colours(file: Path) -> list[str]:
        return re.findall(r"--tw-[a-z-]+: [^;]+;", "".join(file.read_text().split("\n}\n")[:2]))

    folder = Path(account_pages.__file__).parent
    ours, theirs = colours(folder / "forms.css"), colours(Path(pages.__file__).parent / "style.css")
    assert len(ours) == 28
    assert ours == theirs[:28]
