"""The address under which people reach the assistant: Host, Origin, cookies, links; behind a proxy, below a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from team import Team, team

from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.serving.address import Address, peer_of
from thumbwise.settings import Settings

PUBLIC = "https://chat.example.org"
PREFIX = "/wise"
HTML = {"accept": "text/html"}


def client_at(here: Team, peer: str, base: str = "http://chat.example.org", **options: Any) -> httpx.AsyncClient:
    """A client whose connection comes from `peer`; a proxy on this machine by default sends what browsers sent."""
    transport = httpx.ASGITransport(here.transport.app, client=(peer, 5))
    return httpx.AsyncClient(transport=transport, base_url=base, **options)


HOSTS = (
    ("10.0.0.9", "chat.example.org", 200), ("10.0.0.9", "CHAT.example.org:443", 200),
    ("127.0.0.1", "chat.example.org", 200), ("127.0.0.1", "127.0.0.1:7860", 200), ("::1", "[::1]:7860", 200),
    ("127.0.0.1", "localhost", 200),
    ("10.0.0.9", "127.0.0.1:7860", 403), ("10.0.0.9", "localhost", 403), ("::ffff:10.0.0.9", "localhost", 403),
    ("10.0.0.9", "evil.example", 403), ("127.0.0.1", "evil.example", 403), ("10.0.0.9", "10.0.0.1", 403),
    ("127.0.0.1", "chat.example.org.evil.example", 403), ("127.0.0.1", "", 403), ("127.0.0.1", "[", 403),
)  # fmt: skip


async def test_only_our_own_names_are_answered_and_loopback_only_from_this_machine(tmp_path: Path) -> None:
    async with team(tmp_path, public_url=PUBLIC) as here:
        for peer, host, status in HOSTS:
            async with client_at(here, peer) as client:
                answer = await client.get("/health/live", headers={"host": host})
            assert answer.status_code == status, (peer, host)
            assert status == 200 or PUBLIC in answer.json()["error"]["message"]
        async with client_at(here, "127.0.0.1") as client:
            twice = [("host", "chat.example.org"), ("host", "evil.example")]
            assert (await client.get("/health/live", headers=twice)).status_code == 403


async def test_a_public_url_is_nothing_in_local(tmp_path: Path) -> None:
    async with team(tmp_path, auth="local", public_url=PUBLIC) as here, client_at(here, "127.0.0.1") as client:
        assert (await client.get("/health/live")).status_code == 403


ORIGINS = (
    (PUBLIC, True), (None, True), ("http://chat.example.org", False), ("https://chat.example.org:8443", False),
    ("https://evil.example", False), ("http://127.0.0.1:7860", False), ("null", False),
)  # fmt: skip


async def test_the_origin_is_compared_with_public_url_whatever_headers_say(tmp_path: Path) -> None:
    async with team(tmp_path, public_url=PUBLIC, proxy={"peers": "127.0.0.1"}) as here:
        sent = {"message": "reply_1"}
        async with client_at(here, "127.0.0.1", cookies=here.client(here.account("ann")).cookies) as client:
            for origin, allowed in ORIGINS:
                for forged in ({}, {"x-forwarded-proto": "http", "x-forwarded-host": "evil.example"}):
                    headers = forged | ({"origin": origin} if origin else {})
                    answer = await client.post("/pages/chat/stop", json=sent, headers=headers)
                    assert (answer.status_code != 403) is allowed, (origin, answer.text)
            tunnel = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}
            assert (await client.post("/pages/chat/stop", json=sent, headers=tunnel)).status_code != 403


async def test_gradio_builds_its_addresses_from_public_url_and_no_header(tmp_path: Path) -> None:
    async with team(tmp_path, public_url=PUBLIC + PREFIX) as here:
        ann = here.account("ann")
        async with client_at(here, "127.0.0.1", cookies=here.client(ann).cookies) as client:
            forged = {
                "x-forwarded-host": "evil.example",
                "x-gradio-server": "http://evil.example",
                "x-forwarded-proto": "ftp",
            }
            for path in ("/config", PREFIX + "/config"):
                assert (await client.get(path, headers=forged)).json()["root"] == PUBLIC + PREFIX


async def test_the_cookie_of_a_login_is_for_the_prefix_and_secure(tmp_path: Path) -> None:
    async with team(tmp_path, public_url=PUBLIC + PREFIX) as here:
        assert "; Path=/wise; HttpOnly; SameSite=Lax; Secure" in here.assistant.who.set_cookie("text")
    async with team(tmp_path / "plain", public_url="http://chat.example.org") as here:
        assert here.assistant.who.set_cookie("text").endswith("; Path=/; HttpOnly; SameSite=Lax")


@pytest.mark.parametrize("prefix", ["", PREFIX], ids=["taken away by the proxy", "passed on"])
async def test_everything_works_below_a_path(tmp_path: Path, prefix: str) -> None:
    async with team(tmp_path, public_url=PUBLIC + PREFIX) as here:
        async with client_at(here, "127.0.0.1") as nobody:
            answer = await nobody.get(prefix + "/compare?c=1", headers=HTML)
            assert (answer.status_code, answer.headers["location"]) == (303, "/wise/login?next=%2Fcompare%3Fc%3D1")
            assert (await nobody.get(prefix + "/login")).status_code == 200
            assert (await nobody.get(prefix + "/pages/chat")).status_code == 401
            assert (await nobody.get(prefix + "/ops/api/policies")).status_code == 401
            assert (await nobody.get(prefix + "/v1/models")).status_code == 401
        ann = here.account("ann")
        async with client_at(here, "127.0.0.1", cookies=here.client(ann).cookies) as client:
            inside = await client.get(prefix + "/login?next=/compare", headers=HTML)
            assert inside.headers["location"] == "/wise/compare"
            for path in ("/pages/chat", "/pages/compare", "/config", "/gradio_api/info", "/compare", "/theme.css"):
                assert (await client.get(prefix + path)).status_code == 200, path
            assert (await client.get(prefix + "/nothing")).status_code == 404
            big = await client.post(prefix + "/v1/chat/completions", content=b"x" * 2_000_000)
            assert big.status_code == 413


async def test_the_prefix_alone_leads_to_the_page_and_tokens_work_with_and_without_it(tmp_path: Path) -> None:
    async with team(tmp_path, public_url=PUBLIC + PREFIX) as here:
        ann = here.account("ann")
        async with client_at(here, "127.0.0.1", cookies=here.client(ann).cookies) as client:
            answer = await client.get(PREFIX, headers=HTML)
            assert (answer.status_code, answer.headers["location"]) == (308, "/wise/")
        async with client_at(here, "127.0.0.1", base="http://127.0.0.1:7860") as program:
            for token, path, status in (
                (here.assistant.token, "/ops/api/policies", 200),
                (here.assistant.token, "/ops/api/users", 403),
                (here.assistant.operator_token, "/ops/api/users", 200),
            ):
                for before in ("", PREFIX):
                    answer = await program.get(before + path, headers={"authorization": f"Bearer {token}"})
                    assert answer.status_code == status


ADDRESSES = (
    ("127.0.0.1", "127.0.0.1", "203.0.113.7", "203.0.113.7"),
    ("127.0.0.1", "127.0.0.1", "6.6.6.6, 203.0.113.7", "203.0.113.7"),  # the first was sent by the client
    ("127.0.0.1,10.0.0.0/8", "127.0.0.1", "6.6.6.6, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
    ("127.0.0.1", "127.0.0.1", "2001:db8::1", "2001:db8::1"),
    ("127.0.0.1", "127.0.0.1", "nonsense", "127.0.0.1"), ("127.0.0.1", "127.0.0.1", None, "127.0.0.1"),
    ("127.0.0.1", "::ffff:127.0.0.1", "203.0.113.7", "203.0.113.7"),
    ("", "127.0.0.1", "203.0.113.7", "127.0.0.1"), ("10.0.0.0/8", "192.0.2.1", "203.0.113.7", "192.0.2.1"),
    ("unix", "127.0.0.1", "203.0.113.7", "127.0.0.1"),
)  # fmt: skip


def test_the_address_is_the_browsers_if_a_listed_proxy_says_it(tmp_path: Path) -> None:
    home = Home.find(tmp_path)
    for peers, peer, forwarded, address in ADDRESSES:
        settings = Settings.load(home, auth="accounts", public_url=PUBLIC, proxy={"peers": peers})
        headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
        scope = {"path": "/", "headers": headers, "client": (peer, 5), "server": ("127.0.0.1", 7860)}
        settled = Address(settings).settle(scope)
        assert (settled["client"][0], settled["headers"]) == (address, []), (peers, peer, forwarded)


def test_a_connection_without_a_peer_is_no_unix_socket() -> None:
    assert peer_of({"server": ("/run/thumbwise.sock", None), "client": None}) == "unix"
    assert peer_of({"server": ("127.0.0.1", 7860), "client": None}) == ""  # it was closed already
    assert peer_of({"server": None, "client": None}) == ""


@pytest.mark.parametrize(
    "wrong",
    ["chat.example.org", "ftp://chat.example.org", "https://", "https://a/?q", "https://a/#f", "https://u@a", "https://a:0",
     "https://a:x", "https://a/../b", "https://a//b", "https://a/%2e", "https://ä.example", "https://a/ops", "https://a/v1/x"],
)  # fmt: skip
def test_a_wrong_public_url_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ThumbwiseError, match="public_url"):
        Settings.load(Home.find(tmp_path), public_url=wrong)


def test_the_host_of_browsers(tmp_path: Path) -> None:
    for url, host in (("https://a.b:443/", "a.b"), ("http://a.b:443", "a.b:443"), ("http://[::1]:80/x", "[::1]")):
        assert Address(Settings.load(Home.find(tmp_path), auth="accounts", public_url=url)).host == host
