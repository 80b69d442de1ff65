"""The name that a proxy sends in a header: believed from listed peers only, for pages, events and API alike."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeEngine, FakeEngineClient
from live_server import Live, serving
from team import Team, team

from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.errors import Conflict
from thumbwise.home import Home

PUBLIC = "https://chat.example.org"
PEER = "10.0.0.5"
ELSEWHERE = "10.0.0.6"
CONFIG = {"auth": "proxy", "public_url": PUBLIC, "proxy": {"peers": PEER}}


def via(here: Team, peer: str = PEER, *names: str | bytes, header: str = "x-forwarded-user") -> httpx.AsyncClient:
    """What comes from `peer`, with a header for each of the names."""
    transport = httpx.ASGITransport(here.transport.app, client=(peer, 5))
    headers = [(header, name) for name in names]
    return httpx.AsyncClient(transport=transport, base_url="http://chat.example.org", headers=headers)  # type: ignore[arg-type]


async def test_a_header_from_the_client_is_not_believed(tmp_path: Path) -> None:
    """Harm done elsewhere: the header of any client was believed."""
    async with team(tmp_path, **CONFIG) as here:
        here.account("boss", "operator")
        for peer in (ELSEWHERE, "127.0.0.1", "::1"):
            async with via(here, peer, "boss") as forged:
                for path in ("/", "/pages/chat", "/pages/chat/events", "/v1/models", "/config", "/metrics", "/me"):
                    answer = await forged.get(path, headers={"accept": "text/html"})
                    assert answer.status_code == 401, (peer, path)
                assert (await forged.post("/ops/api/rollback", json={})).status_code == 401
                assert "proxy.peers" in (await forged.get("/pages/chat")).json()["error"]["message"]
                assert (await forged.get("/health/live")).status_code == 200
        assert [account.name for account in here.assistant.users.all()] == ["boss"]


async def test_the_header_is_believed_for_the_api_too(tmp_path: Path) -> None:
    """Harm done elsewhere: the header was ignored for the API."""
    async with team(tmp_path, **CONFIG) as here, via(here, PEER, "Ann ") as ann, via(here, PEER, "bob") as bob:
        account, other = here.account("ann"), here.account("bob")  # who consented to what this stores
        for path in ("/pages/chat", "/v1/models", "/pages/compare"):
            assert (await ann.get(path)).status_code == 200, path
        said = {"model": "thumbwise", "messages": [{"role": "user", "content": "Is the sea deep?"}]}
        answer = await ann.post("/v1/chat/completions", json=said)
        assert answer.status_code == 200
        thumb = {"kind": "thumb", "message_id": answer.json()["thumbwise"]["message_id"], "value": "up"}
        for client, status in ((bob, 404), (ann, 201)):
            voted = await client.post("/v1/feedback", json=thumb, headers={"idempotency-key": "k"})
            assert voted.status_code == status, voted.text
        assert here.assistant.store.rows("SELECT user_id FROM feedback") == [{"user_id": account.id}]
        named = {**said, "user": other.id}  # a name below ann, never the other account
        assert (await ann.post("/v1/chat/completions", json=named)).status_code == 200
        assert "Is the sea deep?" not in (await bob.get("/pages/chat")).json()["list"]


async def test_who_comes_first_is_no_operator_and_the_operator_made_before_is(tmp_path: Path) -> None:
    """Harm done elsewhere: the first account by single sign-on was, or was not, the admin."""
    async with team(tmp_path, **CONFIG) as here:
        async with via(here, PEER, "ann") as first:
            assert (await first.get("/pages/chat")).status_code == 200
            assert (await first.get("/ops/api/users")).status_code == 403
        here.account("boss", "operator")  # as `thumbwise users create boss --role operator`
        async with via(here, PEER, "Boss") as boss:
            assert (await boss.get("/ops/api/users")).status_code == 200
        users = here.assistant.users
        assert (users.get("ann").role, users.get("boss").role) == ("user", "operator")
        with pytest.raises(Conflict, match="last operator"):
            users.set_role(users.get("boss").id, "user", COMMAND_LINE)


async def test_an_account_that_an_operator_made_before_can_sign_in(tmp_path: Path) -> None:
    """Harm done elsewhere: provisioned users could not sign in."""
    async with team(tmp_path, **CONFIG) as here:
        made = here.account("ann.o'neil@example.org", "reviewer")
        async with via(here, PEER, "Ann.O'Neil@Example.org") as ann:
            shown = (await ann.get("/pages/account")).json()["account"]
        assert shown["id"] == made.id
        assert [(a.id, a.role) for a in here.assistant.users.all()] == [(made.id, "reviewer")]


async def test_an_account_is_made_once_with_the_role_of_the_settings_and_an_audit_entry(tmp_path: Path) -> None:
    proxied = {"peers": PEER, "role": "reviewer", "header": "Remote-User"}
    async with team(tmp_path, **{**CONFIG, "proxy": proxied}) as here:
        async with via(here, PEER, "zoë".encode(), header="remote-user") as zoe:
            at_once = [zoe.get("/pages/chat", headers={"x-forwarded-for": "203.0.113.7"}) for _ in range(5)]
            assert {answer.status_code for answer in await asyncio.gather(*at_once)} == {200}
        (made,) = here.assistant.users.all()
        assert (made.name, made.role, made.has_password) == ("zoë", "reviewer", False)
        (entry,) = here.assistant.store.rows("SELECT * FROM audit WHERE action = 'user.create'")
        assert (entry["target"], entry["via"], entry["address"]) == (made.id, "proxy header", "203.0.113.7")
        async with via(here, PEER, "ann") as another:  # this header is not the one of the settings
            assert (await another.get("/pages/chat")).status_code == 401


async def test_a_missing_an_empty_or_a_doubled_header_is_nobody(tmp_path: Path) -> None:
    async with team(tmp_path, **CONFIG) as here:
        boss = here.account("boss", "operator")
        session = here.client(boss).cookies  # of a time with accounts: it counts for nothing here
        for names in ((), ("",), (" ",), ("boss", "ann"), ("boss", "boss"), ("boss,ann",), (b"\xff\xfe",), ("a/b",),
                      ("local",), (boss.id,)):  # fmt: skip
            async with via(here, PEER, *names) as client:
                client.cookies = session
                for path in ("/pages/chat", "/v1/models", "/"):
                    answer = await client.get(path, headers={"accept": "text/html"})
                    assert answer.status_code == 401, (names, path)
                    assert "operator" in answer.json()["error"]["message"]
        assert [account.name for account in here.assistant.users.all()] == ["boss"]


async def test_people_whose_names_look_alike_share_no_account(tmp_path: Path) -> None:
    async with team(tmp_path, **CONFIG) as here:
        names = ("strasse", "Straße", "νίκος", "νίκοσ", "ann", "Ann")
        for name in names:
            async with via(here, PEER, name.encode()) as client:
                assert (await client.get("/pages/chat")).status_code == 200, name
        made = [account.name for account in here.assistant.users.all()]
        assert made == ["strasse", "straße", "νίκος", "νίκοσ", "ann"]
        for name in ("ａnn", "\N{KELVIN SIGN}im", "ﬁn"):
            async with via(here, PEER, name.encode()) as client:
                refused = await client.get("/pages/chat")
                assert refused.status_code == 401, name
                assert "unusual form" in refused.json()["error"]["message"]
        assert len(here.assistant.users.all()) == len(made)


async def test_a_disabled_or_pending_account_stays_out(tmp_path: Path) -> None:
    async with team(tmp_path, **CONFIG) as here:
        ann = here.account("ann")
        here.account("bob", state="pending")
        async with via(here, PEER, "ann") as hers, via(here, PEER, "bob") as his:
            assert (await hers.get("/pages/chat")).status_code == 200
            here.assistant.users.set_state(ann.id, "disabled", COMMAND_LINE)
            for client in (hers, his):
                for path in ("/pages/chat", "/v1/models", "/config"):
                    assert (await client.get(path)).status_code == 403


async def test_a_request_that_is_refused_anyway_makes_no_account(tmp_path: Path) -> None:
    async with team(tmp_path, **CONFIG) as here, via(here, PEER, "ann") as client:
        assert (await client.post("/pages/chat/stop", headers={"origin": "https://evil.example"})).status_code == 403
        assert (await client.get("/health/live")).status_code == 200
        assert here.assistant.users.all() == []


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    home = Home.find(tmp_path)
    home.config.write_text(f'auth = "proxy"\npublic_url = "{PUBLIC}"\nproxy = {{peers = "127.0.0.2"}}\n')

    def prepare(assistant: Any) -> None:
        assistant.engine = FakeEngine(FakeEngineClient())
        assistant.start = _nothing

    with serving(home, prepare=prepare) as running:
        yield running


async def _nothing() -> None:
    pass


async def raw(live: Live, text: str, source: str = "127.0.0.1") -> bytes:
    """Send bytes from an address of this machine, and return the answer."""
    port = int(live.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write(text.replace("\n", "\r\n").encode())
    answer = await reader.readuntil(b"\r\n")
    writer.close()
    return answer


async def test_old_and_odd_requests_are_no_way_around(live: Live) -> None:
    forged = "X-Forwarded-User: boss\n"
    upgrade = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
    upgrade += "Sec-WebSocket-Key: YWJjZGVmZ2hpamtsbW5vcA==\n"
    for head, status in (
        (f"GET /pages/chat HTTP/1.0\n{forged}", b"403"),  # without a Host
        (f"GET /pages/chat HTTP/1.0\nHost: chat.example.org\n{forged}", b"401"),
        (f"GET http://evil.example/pages/chat HTTP/1.1\nHost: evil.example\n{forged}", b"403"),
        (f"GET /pages/chat HTTP/1.1\nHost: chat.example.org\nHost: 127.0.0.1\n{forged}", b"403"),
        (f"GET /pages/chat HTTP/1.1\nHost: chat.example.org\n{upgrade}{forged}", b"40"),
    ):
        assert b" " + status in await raw(live, head + "\n"), head
    believed = "GET /pages/chat HTTP/1.1\nHost: chat.example.org\nX-Forwarded-User: ann\n\n"
    assert b" 200" in await raw(live, believed, source="127.0.0.2")  # a listed peer, over a real connection
    odd = await raw(
        live, f"GET /pages/chat HTTP/1.1\nHost: chat.example.org\n{upgrade}X-Forwarded-User: ann\n\n", "127.0.0.2"
    )
    assert not odd.startswith(b"HTTP/1.1 101")
