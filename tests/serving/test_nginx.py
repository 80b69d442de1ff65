"""The files of `deploy/` for nginx, run by Debian's nginx in front of a real assistant with a scripted engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import nginx as proxy
import pytest
from argon2 import PasswordHasher
from fakes import FakeEngine, FakeEngineClient
from live_server import Live, serving

from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.home import Home
from thumbwise.serving.assistant import Assistant

pytestmark = pytest.mark.skipif(bool(proxy.missing()), reason=proxy.missing() or "nginx is there")

PUBLIC = f"https://{proxy.HOST}"
BELOW = {"location / {": "location /wise/ {", "location /ops/api/ {": "location /wise/ops/api/ {"}
PASSWORD = "correct horse battery"
HTML = {"accept": "text/html"}
SAID = {"model": "thumbwise", "messages": [{"role": "user", "content": "Is the sea deep?"}]}


class Gate:
    """Holds back the words after the first, and can be opened from another thread."""

    def __init__(self) -> None:
        self.open = threading.Event()

    async def wait(self) -> None:
        while not self.open.is_set():
            await asyncio.sleep(0.01)


async def _nothing() -> None:
    pass


@contextmanager
def assistant(folder: Path, **settings: Any) -> Iterator[tuple[Live, Gate]]:
    """An assistant with the account `ann`, whose replies wait for the gate after their first word."""
    client = FakeEngineClient()
    gate = client.gate = Gate()  # type: ignore[assignment]

    def prepare(made: Assistant) -> None:
        made.engine = FakeEngine(client)  # type: ignore[assignment]
        made.start = _nothing  # type: ignore[method-assign]
        cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
        ann = made.users.create("ann", "user", COMMAND_LINE, password=cheap.hash(PASSWORD))
        made.consents.give(ann.id, keep_chats=True, use_votes=True, use_text=True, actor=COMMAND_LINE)

    with serving(Home.find(folder), prepare=prepare, proxy={"peers": "127.0.0.1"}, **settings) as live:
        yield live, gate


def log_in(client: httpx.Client, prefix: str = "") -> httpx.Response:
    answer = client.post(
        f"{prefix}/login", data={"name": "ann", "password": PASSWORD, "next": "/compare"}, headers={"origin": PUBLIC}
    )
    assert answer.status_code == 303, answer.text
    return answer


def contents(lines: Iterator[str]) -> Iterator[str]:
    """The words of a streamed reply, as they come."""
    for line in lines:
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                if word := choice["delta"].get("content"):
                    yield word


def test_people_log_in_through_nginx_and_replies_come_word_by_word(tmp_path: Path) -> None:
    with assistant(tmp_path, auth="accounts", public_url=PUBLIC) as (live, gate), proxy.nginx(live.url) as front:
        with front.client() as browser:
            login = browser.get("/compare?c=1", headers=HTML)
            assert (login.status_code, login.headers["location"]) == (303, "/login?next=%2Fcompare%3Fc%3D1")
            answer = log_in(browser)
            assert answer.headers["location"] == "/compare"
            assert "; Path=/; HttpOnly; SameSite=Lax; Secure" in answer.headers["set-cookie"]
            assert browser.get("/config").json()["root"] == PUBLIC
            with browser.stream("GET", "/pages/chat/events") as events:  # it has no end, so it must not be held back
                assert next(line for line in events.iter_lines() if line.startswith("event:")) == "event: top"
            with browser.stream("POST", "/v1/chat/completions", json={**SAID, "stream": True}) as stream:
                words = contents(stream.iter_lines())
                assert next(words) == "Hello"
                assert not gate.open.is_set()  # the others are not written yet
                gate.open.set()
                assert list(words) == [" there", " friend"]
        log = (front.folder / "access.log").read_text()
        assert "GET /compare 303" in log
        assert "?" not in log


def test_limits_and_names_are_the_assistants_and_operators_stay_on_the_machine(tmp_path: Path) -> None:
    with assistant(tmp_path, auth="accounts", public_url=PUBLIC) as (live, gate), proxy.nginx(live.url) as front:
        gate.open.set()
        with front.client(source="127.0.0.2", headers={"x-forwarded-for": "203.0.113.7"}) as browser:
            log_in(browser)
            (entry,) = live.assistant.store.rows("SELECT * FROM audit WHERE action LIKE '%login%'")
            assert entry["address"] == "127.0.0.2"
            long = {
                **SAID,
                "messages": [{"role": "user", "content": "\0" * 190_000}],
            }  # 1.1 MB; nginx's default is 1 MB
            assert browser.post("/v1/chat/completions", json=long).status_code == 200
            for origin, status in ((PUBLIC, 200), ("https://evil.example", 403), ("http://chat.example.org", 403)):
                asked = browser.post("/v1/chat/completions", json=SAID, headers={"origin": origin})
                assert asked.status_code == status, origin
            operator = {"authorization": f"Bearer {live.assistant.operator_token}"}
            for path in ("/ops/api/users", "//ops/api/users", "/ops%2Fapi/users", "/x/../ops/api/users"):
                answer = browser.get(path, headers=operator)
                assert answer.status_code == 404, path
                assert "usr_" not in answer.text
            plain = httpx.get(
                f"http://127.0.0.1:{front.plain}/compare?c=1", headers={"host": proxy.HOST}, trust_env=False
            )
            assert (plain.status_code, plain.headers["location"]) == (301, f"{PUBLIC}/compare?c=1")
        for host in ("evil.example", "127.0.0.1", "chat.example.org.evil.example"):
            with front.client(host) as browser:
                status = browser.get("/login").status_code
            assert status == (200 if host == "127.0.0.1" else 403), host


def test_everything_works_below_a_path(tmp_path: Path) -> None:
    below = assistant(tmp_path, auth="accounts", public_url=f"{PUBLIC}/wise")
    with below as (live, gate), proxy.nginx(live.url, changes=BELOW) as front, front.client() as browser:
        gate.open.set()
        assert browser.get("/login").status_code == 404  # of nginx: another program may be there
        assert browser.get("/wise").headers["location"] == "/wise/"
        assert browser.get("/wise/", headers=HTML).headers["location"] == "/wise/login?next=%2F"
        answer = log_in(browser, "/wise")
        assert answer.headers["location"] == "/wise/compare"
        assert "; Path=/wise; " in answer.headers["set-cookie"]
        for path in ("/wise/", "/wise/compare", "/wise/theme.css", "/wise/me", "/wise/pages/chat", "/wise/v1/models"):
            assert browser.get(path).status_code == 200, path
        assert browser.get("/wise/config").json()["root"] == f"{PUBLIC}/wise"
        assert browser.post("/wise/v1/chat/completions", json=SAID).status_code == 200
        operator = {"authorization": f"Bearer {live.assistant.operator_token}"}
        assert browser.get("/wise/ops/api/users", headers=operator).status_code == 404


@contextmanager
def login_service() -> Iterator[int]:
    """A login service like oauth2-proxy: the cookie `who` names who is logged in."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            who = (self.headers.get("cookie") or "").removeprefix("who=")
            check = self.path == "/oauth2/auth"
            self.send_response(200 if not check else 202 if who else 401)
            if check and who:
                self.send_header("X-Auth-Request-User", who)
            body = b"" if check else f"Log in for {self.headers['X-Auth-Request-Redirect']}".encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_the_login_service_says_who_asks_and_browsers_cannot(tmp_path: Path) -> None:
    forged = {"x-forwarded-user": "boss", "x-auth-request-user": "boss", "x_forwarded_user": "boss"}
    with assistant(tmp_path, auth="proxy", public_url=PUBLIC) as (live, gate), login_service() as port:
        live.assistant.users.create("boss", "operator", COMMAND_LINE)
        gate.open.set()
        changes = {"127.0.0.1:4180": f"127.0.0.1:{port}"}
        with proxy.nginx(live.url, "nginx-sso.conf", changes) as front:
            with front.client(headers=forged) as nobody:
                answer = nobody.get("/compare?c=1", headers=HTML)
                assert (answer.status_code, answer.text) == (403, "Log in for /compare?c=1")
                for path in ("/v1/models", "/pages/chat", "/config", "/oauth2/auth"):
                    assert nobody.get(path).status_code in (403, 404), path
                assert nobody.post("/v1/chat/completions", json=SAID).status_code == 403
                key = {"authorization": "Bearer tw-made-up"}  # goes past the login service, and must not name anybody
                assert nobody.get("/v1/models", headers=key).status_code == 401
                assert nobody.get("/pages/chat", headers=key).status_code == 401
                ann = live.assistant.users.get("ann").id
                key = {"authorization": f"Bearer {live.assistant.keys.create('script', owner=ann)}"}
                assert nobody.get("/v1/models", headers=key).status_code == 200
                assert nobody.get("/pages/account", headers=key).status_code == 401
            with front.client(headers={**forged, "cookie": "who=Ann"}) as browser:
                assert browser.get("/pages/account").json()["account"]["id"] == ann
                answer = browser.post("/v1/chat/completions", json=SAID)
                assert answer.status_code == 200
                message = answer.json()["thumbwise"]["message_id"]
                thumb = {"kind": "thumb", "message_id": message, "value": "up"}
                assert browser.post("/v1/feedback", json=thumb, headers={"idempotency-key": "k"}).status_code == 201
                assert live.assistant.store.rows("SELECT user_id FROM feedback") == [{"user_id": ann}]
                assert browser.get("/", headers=HTML).status_code == 200


def test_the_file_for_accounts_takes_a_forged_name_away(tmp_path: Path) -> None:
    """Also if somebody forgot to change the file after `auth`."""
    with assistant(tmp_path, auth="proxy", public_url=PUBLIC) as (live, _), proxy.nginx(live.url) as front:
        with front.client(headers={"x-forwarded-user": "ann"}) as browser:
            for path in ("/pages/chat", "/v1/models", "/"):
                answer = browser.get(path)
                assert answer.status_code == 401
                assert "is missing or empty" in answer.json()["error"]["message"]
