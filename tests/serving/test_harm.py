"""What went wrong in other assistants and tools of this kind, one test a mistake: none of it happens here.

The details of each way in have tests of their own; these hold the rows of the list, by name, over HTTP where it
can be.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi_call import asgi_call
from crash_tools import said
from team import Team, team

from thumbwise.accounts.audit import Audit
from thumbwise.accounts.claims import identity_of
from thumbwise.accounts.identities import Identities, Identity
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.settings.access import OidcSettings

ISSUER = "https://login.example.org"
PASSWORD = "correct horse battery"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Is the sea deep?"}]}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def form(link: str, name: str) -> dict[str, str]:
    return {"link": link, "name": name, "password": PASSWORD, "again": PASSWORD}


def provided(subject: str, *names: str, **more: Any) -> Identity:
    return Identity(more.pop("issuer", ISSUER), subject, names, **more)


def people(here: Team) -> Identities:
    return Identities(here.assistant.store, here.assistant.users)


async def member(here: Team, name: str, role: Any = "user") -> Any:
    return here.account(name, role, password=await here.assistant.entry.passwords.hash(PASSWORD))


async def login(client: httpx.AsyncClient, name: str, password: str = PASSWORD) -> int:
    return (await client.post("/login", data={"name": name, "password": password})).status_code


async def test_default_password(tmp_path: Path) -> None:
    """A fresh assistant has no account, so no name and no password open it; only the setup link does."""
    many = {"attempts_per_account": "1000/minute", "attempts_per_address": "1000/minute"}
    async with team(tmp_path, accounts=many) as here, here.client() as nobody:
        assert here.assistant.users.all() == []
        for name in ("admin", "operator", "local"):
            for password in ("password1234", ""):
                with pytest.raises(ThumbwiseError, match="wrong"):
                    await here.assistant.entry.login(name, password, "")
        assert (await nobody.post("/join", data=form("", "eve"))).status_code == 403
        assert (await nobody.post("/setup", data=form("guess", "eve"))).status_code == 403
        assert not here.assistant.users.has_operator()


async def test_first_admin_race(tmp_path: Path) -> None:
    """Two who use the setup link at the same instant make one operator."""
    async with team(tmp_path) as here, here.client() as one, here.client() as two:
        link = here.assistant.people.setup_link()
        answers = await asyncio.gather(
            one.post("/setup", data=form(link, "boss")), two.post("/setup", data=form(link, "thief"))
        )
        assert sorted(answer.status_code == 303 for answer in answers) == [False, True]
        assert [account.role for account in here.assistant.users.all()] == ["operator"]


async def test_first_sso_account_is_not_admin(tmp_path: Path) -> None:
    """The first login by a provider gives a user; a map that says so gives an operator."""
    async with team(tmp_path) as here:
        first = people(here).enter(provided("1", "ann"), "open")
        assert (first.role, here.assistant.users.has_operator()) == ("user", False)
        assert people(here).enter(provided("2", "boss", role="operator"), "open").role == "operator"


async def test_a_provisioner_removes_or_demotes_admins(tmp_path: Path) -> None:
    """Neither the provider's claim, nor a command, nor the last operator takes the last operator."""
    async with team(tmp_path) as here:
        boss = people(here).enter(provided("1", "boss", role="operator"), "open")
        assert people(here).enter(provided("1", "boss", role="user"), "open").role == "operator"
        async with here.client(boss) as console:
            answers = [
                await console.post("/ops/api/users/boss/role", json={"role": "user"}),
                await console.post("/ops/api/users/boss/disable"), await console.delete("/ops/api/users/boss"),
            ]  # fmt: skip
        assert [answer.status_code for answer in answers] == [409] * 3
        assert (here.assistant.users.get("boss").role, here.assistant.users.get("boss").state) == (
            "operator",
            "active",
        )


async def test_provisioned_users_cannot_sign_in(tmp_path: Path) -> None:
    """An account that an operator makes lets its person in: by the link that the operator got."""
    async with team(tmp_path) as here, here.client(here.account("boss", "operator")) as boss, here.client() as ann:
        made = await boss.post("/ops/api/users", json={"name": "ann"})
        link = made.json()["link"].partition("link=")[2]
        set_ = await ann.post("/reset", data={"link": link, "password": PASSWORD, "again": PASSWORD})
        assert set_.status_code == 303
        assert (await ann.get("/pages/chat")).status_code == 200
        async with here.client() as phone:
            assert await login(phone, "ann") == 303


async def test_allow_lists_ignored_for_roles(tmp_path: Path) -> None:
    """Who is not in `oidc.allowed` gets no account, and loses the one that they had at the next login."""
    async with team(tmp_path) as here:
        with pytest.raises(ThumbwiseError):
            people(here).enter(provided("1", "eve", allowed=False), "open")
        assert here.assistant.users.all() == []
        people(here).enter(provided("2", "ann"), "open")
        with pytest.raises(ThumbwiseError):
            people(here).enter(provided("2", "ann", allowed=False), "open")


async def test_allow_lists_ignored_at_key_endpoints(tmp_path: Path) -> None:
    """A key opens what its scopes say, at each address; no method and no way to write a path opens more."""
    async with team(tmp_path) as here, here.client() as http:
        boss = here.account("boss", "operator")
        keys = here.assistant.keys
        chat = bearer(keys.create("chat", ["chat"], owner=boss.id))
        votes = bearer(keys.create("votes", ["feedback"], owner=boss.id))
        operate = bearer(keys.create("ops", ["operate"], owner=boss.id))
        vote = {"kind": "thumb", "message_id": "msg_1", "value": "up"}
        refused = [
            ("POST", "/v1/chat/completions", votes), ("GET", "/v1/models", votes), ("POST", "/v1/comparisons", votes),
            ("POST", "/v1/feedback", chat), ("POST", "/v1/feedback", operate), ("GET", "/v1/models", operate),
            ("GET", "/ops/api/users", chat), ("GET", "/ops/api/audit", votes), ("GET", "/metrics", chat),
            ("HEAD", "/metrics", votes), ("POST", "/ops/api/users", chat), ("GET", "/v1/models/", votes),
            ("GET", "//v1/models", operate), ("GET", "/pages/chat", chat), ("GET", "/me", operate),
            ("GET", "/v1/../pages/chat", chat), ("GET", "/V1/models", operate), ("GET", "/me/keys", operate),
        ]  # fmt: skip
        for method, path, key in refused:
            answer = await http.request(method, path, json=vote, headers=key)
            assert answer.status_code in (401, 403), (method, path, answer.status_code)
        assert (await http.get("/v1/models", headers=chat)).status_code == 200
        assert (await http.get("/ops/api/users", headers=operate)).status_code == 200


async def test_header_from_the_client_believed(tmp_path: Path) -> None:
    """With logins, no header of a client says who it is; nor is its address what it says."""
    async with team(tmp_path) as here, here.client() as eve:
        boss = here.account("boss", "operator")
        names = ("X-Forwarded-User", "X-Remote-User", "Remote-User", "X-Forwarded-Email", "X-User", "X-Webauth-User")
        for name in names:
            for who in ("boss", boss.id):
                for path in ("/pages/chat", "/v1/models", "/ops/api/users", "/me/keys"):
                    assert (await eve.get(path, headers={name: who})).status_code == 401, (name, path)
        for number in range(3):
            await eve.post("/login", data={"name": "boss", "password": "x" * 9},
                           headers={"X-Forwarded-For": f"10.0.0.{number}"})  # fmt: skip
        addresses = {entry["address"] for entry in here.assistant.audit.entries(action="login.failed")}
        assert addresses == {"127.0.0.1"}


async def test_admin_locked_out_by_own_limits(tmp_path: Path) -> None:
    """Who is tried by strangers can still be let in: a reset link by the command line, and sessions stay."""
    async with team(tmp_path) as here, here.client() as stranger:
        boss = await member(here, "boss", "operator")
        async with here.client(boss) as inside:
            statuses = [await login(stranger, "boss", f"guess {number}") for number in range(14)]
            assert 429 in statuses
            assert (await inside.get("/ops/api/users")).status_code == 200
        headers = bearer(here.assistant.operator_token)
        link = (await stranger.post("/ops/api/users/boss/reset", headers=headers)).json()["link"].partition("link=")[2]
        await here.assistant.entry.reset(link, PASSWORD + "!", "10.1.1.1")
        assert await here.assistant.entry.login("boss", PASSWORD + "!", "10.1.1.2")


async def test_admin_locked_out_after_upgrade(tmp_path: Path) -> None:
    """A home from `local` that is opened with accounts has no operator, and offers the setup link that makes one."""
    async with team(tmp_path, auth="local") as here, here.client() as browser:
        assert (await browser.post("/v1/chat/completions", json=ASK)).status_code == 200
    async with team(tmp_path) as here, here.client() as boss:
        assert (await boss.get("/pages/chat")).status_code == 401
        link = here.assistant.people.setup_link()
        assert (await boss.post("/setup", data=form(str(link), "boss"))).status_code == 303
        assert (await boss.get("/ops/api/users")).status_code == 200
        assert (await boss.post("/ops/api/users/boss/adopt")).json()["replies"] == 1


async def hers(here: Team, ann: Any) -> dict[str, str]:
    """A chat, a comparison and an API reply of ann: the ids that name them."""
    key = here.assistant.keys.create("app", owner=ann.id)
    async with here.client(ann) as page, here.client() as program:
        chat = (await page.post("/pages/chat/messages", json={"text": "Ann's question"})).json()["conversation"]
        pair = (await page.post("/pages/compare/comparisons", json={"text": "Ann's prompt"})).json()["comparison"]
        reply = (await program.post("/v1/chat/completions", json=ASK, headers=bearer(key))).json()["id"]
    while here.assistant.store.rows("SELECT 1 FROM replies WHERE state = 'streaming'"):
        await asyncio.sleep(0.01)
    rows = here.assistant.store.rows("SELECT id FROM replies WHERE conversation_id = ?", [chat])
    return {"conversation": chat, "comparison": pair, "reply": reply, "message": rows[0]["id"]}


OTHERS = [
    ("page", "GET", "/pages/chat?c={conversation}", None),
    ("page, new message", "POST", "/pages/chat/messages", {"conversation": "{conversation}", "text": "and?"}),
    ("stop", "POST", "/pages/chat/stop", {"message": "{message}"}),
    ("vote", "POST", "/pages/chat/thumbs", {"message": "{message}", "thumb": "down"}),
    ("comment", "POST", "/pages/chat/comments", {"message": "{message}", "text": "bad"}),
    ("vote on a comparison", "POST", "/pages/compare/votes",
     {"comparison": "{comparison}", "choice": "left", "strength": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("what", "method", "path", "body"), OTHERS, ids=[row[0] for row in OTHERS])
@pytest.mark.parametrize("role", ["user", "reviewer", "operator"])
async def test_someone_elses_chat_by_id(
    tmp_path: Path, what: str, method: str, path: str, body: dict[str, Any] | None, role: Any
) -> None:
    """Another person's id answers as one that does not exist, on the pages, whatever the role."""
    async with team(tmp_path) as here, here.client(here.account("eve", role)) as eve:
        ids = await hers(here, here.account("ann"))
        none = {name: f"{id_[:4]}{'0' * (len(id_) - 4)}" for name, id_ in ids.items()}
        answers = []
        for known in (ids, none):
            sent = {name: str(value).format(**known) if isinstance(value, str) else value
                    for name, value in (body or {}).items()}  # fmt: skip
            answers.append(await eve.request(method, path.format(**known), json=sent or None))
        assert [answer.status_code for answer in answers] == [404, 404], what
        told = [re.sub("|".join([*ids.values(), *none.values()]), "ID", answer.text) for answer in answers]
        assert told[0] == told[1]
        assert here.assistant.store.rows("SELECT 1 FROM feedback") == []


async def test_someone_elses_chat_by_id_with_an_api_key(tmp_path: Path) -> None:
    """A key votes on nothing that its owner was not given, also with the owner's name in `user`."""
    async with team(tmp_path) as here, here.client() as http:
        ann, eve = here.account("ann"), here.account("eve")
        ids, key = await hers(here, ann), bearer(here.assistant.keys.create("app", owner=eve.id))
        votes = [
            {"kind": "thumb", "message_id": ids["reply"], "value": "down"},
            {"kind": "pair", "comparison_id": ids["comparison"], "value": {"choice": "left", "strength": 1}},
        ]
        for vote in votes:
            for user in (None, "ann", ann.id, f"../{ann.id}"):
                answer = await http.post(
                    "/v1/feedback", json=vote | {"user": user}, headers=key | {"Idempotency-Key": "k"}
                )
                assert answer.status_code == 404
        assert here.assistant.store.rows("SELECT 1 FROM feedback") == []


async def test_someone_elses_chat_by_id_on_a_stream(tmp_path: Path) -> None:
    """The address of another person's feed sends the top of the page and nothing of the reply."""
    async with team(tmp_path) as here:
        ann, eve = here.account("ann"), here.account("eve")
        ids, text = await hers(here, ann), here.assistant.sessions.start(eve.id, COMMAND_LINE)
        own = here.assistant.sessions.start(ann.id, COMMAND_LINE)
        paths = ("chat/events?c={conversation}&reply={message}", "compare/events?follow={comparison}")
        for path in paths:
            told = []
            for cookie in (own, text):
                headers = {"host": "127.0.0.1:7860", "cookie": f"{here.assistant.who.cookie}={cookie}"}
                url = f"http://127.0.0.1:7860/pages/{path.format(**ids)}"
                told.append((await asgi_call(here.transport.app, "GET", url, headers)).body)
            assert b"event: end" in told[0]
            assert b"event: end" not in told[1]
            assert b"Hello" not in told[1]


async def test_secrets_in_audit_log(tmp_path: Path) -> None:
    """No password, link, key, cookie or chat text is in the log, whatever was done."""
    async with team(tmp_path) as here, here.client() as http:
        link = str(here.assistant.people.setup_link())
        await http.post("/setup", data=form(link, "boss"))
        key = (await http.post("/me/keys", json={"name": "app"})).json()["key"]
        invited = (await http.post("/ops/api/users/invitations", json={"role": "user"})).json()["link"]
        await http.post("/pages/chat/messages", json={"text": "what nobody else may read"})
        cookie = http.cookies[here.assistant.who.cookie]
        await login(http, "my password by mistake", "another secret")
        await http.post("/logout")
        log = str(here.assistant.audit.entries(1000)) + str(here.assistant.store.rows("SELECT * FROM audit"))
        for secret in (PASSWORD, link, key[7:], invited.partition("link=")[2], cookie, "nobody else", "by mistake",
                       "another secret"):  # fmt: skip
            assert secret not in log
        assert len(here.assistant.audit.entries(1000)) > 4


async def test_rater_forged(tmp_path: Path) -> None:
    """A vote counts for the account that is logged in, whatever the body or a header says."""
    async with team(tmp_path) as here:
        ann, bob = here.account("ann"), here.account("bob")
        ids = await hers(here, bob)
        async with here.client(bob) as page:
            for field in ("user", "user_id", "person", "rater"):
                body = {"message": ids["message"], "thumb": "up", field: ann.id}
                assert (await page.post("/pages/chat/thumbs", json=body)).status_code == 400
            body = {"message": ids["message"], "thumb": "up"}
            await page.post("/pages/chat/thumbs", json=body, headers={"X-User": ann.id, "X-Forwarded-User": "ann"})
        (vote,) = here.assistant.store.rows("SELECT user_id, person FROM feedback")
        assert (vote["user_id"], vote["person"]) == (bob.id, bob.id)


async def test_linked_by_e_mail(tmp_path: Path) -> None:
    """A provider's name or e-mail address opens no account that has it; issuer and subject do."""
    async with team(tmp_path) as here:
        ann = here.account("ann@example.org", "operator")
        eve = people(here).enter(provided("1", "ann@example.org"), "open")
        other = people(here).enter(provided("1", "ann@example.org", issuer="https://evil.example"), "open")
        assert len({ann.id, eve.id, other.id}) == 3
        assert {eve.role, other.role} == {"user"}


@pytest.mark.parametrize("groups", [7, True, {"admins": 1}, ["admins", 1], [["admins"]], None, "admins,users"])
async def test_group_claim_wrong_type(tmp_path: Path, groups: object) -> None:
    """A claim of another type gives no role, takes none, and ends no login."""
    settings = OidcSettings(issuer=ISSUER, client_id="x", role_claim="groups", roles={"admins": "operator"})
    claims = {"iss": ISSUER, "sub": "1", "preferred_username": "ann", "groups": groups}
    async with team(tmp_path) as here:
        account = people(here).enter(identity_of(claims, settings), "open")
        assert (account.role, account.state) == ("user", "active")


async def test_admin_locked_out_by_a_refused_change(tmp_path: Path) -> None:
    """What is refused changes nothing: neither the account nor the log."""
    async with team(tmp_path) as here:
        boss = here.account("boss", "operator")
        before = Audit(here.assistant.store).entries(100)
        with pytest.raises(Conflict, match="last operator") as refused:
            here.assistant.users.set_role(boss.id, "user", COMMAND_LINE)
        assert "make another" in str(refused.value)
        assert Audit(here.assistant.store).entries(100) == before
        async with here.client(boss) as console:
            answer = await console.delete("/ops/api/users/boss")
            assert "last operator" in said(answer)
