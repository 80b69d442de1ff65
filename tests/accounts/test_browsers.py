"""Which browser it is: the cookie that a page gives, what counts without one, and old rows that had none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import pytest
from fakes import FakeEngine, FakeEngineClient
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import TimestampSigner
from live_server import serving
from sqlite_utils import Database

from thumbwise.accounts.browsers import YOUNG_SECONDS, Browsers
from thumbwise.accounts.keys import migrations as accounts
from thumbwise.feedback.migrations import BROWSERS_BEFORE, migrations
from thumbwise.feedback.records import LOCAL_USER, NEW_BROWSER, PROGRAMS, Asker, FeedbackRequest, new_id
from thumbwise.feedback.snapshot import take_snapshot
from thumbwise.feedback.store import Store
from thumbwise.home import Home
from thumbwise.serving.assistant import Assistant
from thumbwise.training.data.snapshot import parse

PAGE = {"Accept": "text/html"}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch):
    """Let time pass."""
    now = time.time

    def pass_(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: now() + seconds)

    return pass_


def test_a_browser_counts_with_all_new_ones_for_a_day_and_then_by_itself(later) -> None:
    browsers = Browsers("secret")
    one, other = browsers.new(), browsers.new()
    assert browsers.asker(one).user == LOCAL_USER
    assert {browsers.asker(text).counted for text in (one, other)} == {NEW_BROWSER}
    assert browsers.asker(one).person != browsers.asker(other).person  # each has limits of its own at once
    later(YOUNG_SECONDS + 2)
    assert browsers.asker(one).counted == browsers.asker(one).person != browsers.asker(other).counted
    later(-1000)  # a clock that was set back
    assert browsers.asker(one).counted == NEW_BROWSER


@given(st.text())
def test_what_is_no_cookie_of_ours_is_a_new_browser_and_never_an_error(text: str) -> None:
    browsers = Browsers("secret")
    assert browsers.asker(text) == Asker(LOCAL_USER, NEW_BROWSER, young=True, page=True)
    assert not browsers.known(text)


def test_nobody_can_invent_an_id_or_an_older_one(later) -> None:
    ours, another = Browsers("secret"), Browsers("another home's")
    later(-10 * YOUNG_SECONDS)
    forged, mine = another.new(), ours.new()
    later(0)
    id_, given_at, signature = ours.new().split(".")
    old = ".".join([id_, mine.split(".")[1], signature])
    for text in (forged, old, f"{id_}x.{given_at}.{signature}", ours.new().swapcase()):
        assert ours.asker(text) == Asker(LOCAL_USER, NEW_BROWSER, young=True, page=True)


def test_a_page_gives_each_browser_a_cookie_which_it_keeps_and_scripts_cannot_read(
    tmp_path: Path, tiny_model: Path
) -> None:
    home = Home.find(tmp_path)
    home.config.write_text(f'model = "{tiny_model}"\n')
    with serving(home, lambda: FakeEngine(FakeEngineClient())) as live:
        browsers = live.assistant.browsers
        with httpx.Client(base_url=live.url, headers=PAGE) as browser, httpx.Client(base_url=live.url) as other:
            cookie = SimpleCookie(browser.get("/").headers["set-cookie"])[browsers.name]
            assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/")
            assert int(cookie["max-age"]) >= 365 * 24 * 3600
            again = SimpleCookie(browser.get("/compare").headers["set-cookie"])[browsers.name]
            assert again.value == cookie.value
            first = other.get("/", headers=PAGE).cookies[browsers.name]
            assert browsers.asker(first).person != browsers.asker(cookie.value).person
            assert "set-cookie" not in other.get("/health/live").headers
            broken = httpx.get(live.url, headers=PAGE | {"Cookie": f"{browsers.name}=x"})
            assert browsers.known(broken.cookies[browsers.name])
    assert home.browser_secret.stat().st_mode & 0o777 == 0o600
    assert Browsers(home.cookie_secret()).asker(cookie.value) == browsers.asker(cookie.value)  # after a restart too


def test_two_assistants_of_one_machine_do_not_overwrite_each_others_cookies() -> None:
    assert Browsers("one home's").name != Browsers("another home's").name


def test_a_vote_stays_that_of_a_new_browser_when_the_browser_grows_old(tmp_path: Path) -> None:
    store, ask = Store(tmp_path / "feedback.db"), [{"role": "user", "content": "Why?"}]
    young, old = Asker(LOCAL_USER, "browser:a", young=True), Asker(LOCAL_USER, "browser:a")
    for asker in (young, old):
        message = store.start_reply(asker, ask, "policy-0000", {})
        store.finish_reply(message, "done", text="So.", finish_reason="stop", prompt_ids=[1], response_ids=[2])
        store.add_feedback(asker, message, FeedbackRequest(kind="thumb", message_id=message, value="up"))
    assert [row["person"] for row in store.rows("SELECT person FROM feedback ORDER BY seq")] == [
        NEW_BROWSER, "browser:a",
    ]  # fmt: skip
    name = take_snapshot(store, tmp_path)
    text = (tmp_path / f"{name}.jsonl").read_text()
    assert text.count(f'"person":"{NEW_BROWSER}"') >= 1
    assert text.count('"person":"browser:a"') >= 1
    parse(text.encode())
    store.close()


@pytest.mark.parametrize("mostly_pages", [True, False])
def test_rows_from_before_there_were_people_count_for_whoever_wrote_them(tmp_path: Path, mostly_pages: bool) -> None:
    path = tmp_path / "feedback.db"
    database = Database(path)
    migrations.apply(database, stop_before="m010_people")
    database.table("prompts").insert({"sha256": "p", "messages": "[]"})
    database.table("conversations").insert({"id": "c", "user_id": "local", "title": "", "created_at": 1})
    for id_, user, source in (("cmp_page", "local", "page"), ("cmp_api", "local", "api")):
        row = {"id": id_, "user_id": user, "source": source, "prompt_sha256": "p", "shown": "[]", "created_at": 1}
        database.table("comparisons").insert(row)
    replies = [
        ("page", "local", "c", None), ("draft", "local", None, "cmp_page"), ("named", "ann", None, None),
        ("nobody", "local", None, None), ("key", "app", None, None), ("behind", "app/ann", None, None),
        ("like", "application", None, None),
    ]  # fmt: skip
    more = [(f"page {n}", "local", "c", None) for n in range(20 if mostly_pages else 0)]
    for id_, user, conversation, compared in replies + more:
        row = {"id": id_, "user_id": user, "conversation_id": conversation, "comparison_id": compared}
        row |= {"prompt_sha256": "p", "policy_version": "v", "sampling": "{}", "state": "done", "created_at": 1}
        database.table("replies").insert(row)
    votes = [
        ("page", None, "local"),
        (None, "cmp_page", "local"),
        (None, "cmp_api", "local"),
        ("behind", None, "app/ann"),
    ]
    for message, compared, user in votes:
        row = {"id": f"fb_{message}{compared}", "user_id": user, "kind": "thumb", "message_id": message}
        row |= {"comparison_id": compared, "value": "{}", "idempotency_key": f"{message}{compared}"}
        database.table("feedback").insert(row | {"body_sha256": "", "consent": "local", "created_at": 1})
    accounts.apply(database)
    key = {"id": "key_app", "prefix": "", "name": "app", "sha256": "x", "scopes": "[]", "created_at": "2026-01-01"}
    database.table("api_keys").insert(key)
    database.close()
    store = Store(path)
    assert {row["id"]: row["person"] for row in store.rows("SELECT id, person FROM replies")} == {
        "page": BROWSERS_BEFORE, "draft": BROWSERS_BEFORE, "named": PROGRAMS, "nobody": PROGRAMS,
        "key": "key:app", "behind": "key:app", "like": PROGRAMS, **{id_: BROWSERS_BEFORE for id_, *_ in more},
    }  # fmt: skip
    assert [row["person"] for row in store.rows("SELECT person FROM feedback ORDER BY seq")] == [
        BROWSERS_BEFORE, BROWSERS_BEFORE, PROGRAMS, "key:app",
    ]  # fmt: skip
    assert [row["person"] for row in store.rows("SELECT person FROM comparisons ORDER BY id")] == [
        PROGRAMS, BROWSERS_BEFORE,
    ]  # fmt: skip
    store.close()


def test_nobody_takes_back_what_another_browser_said(tmp_path: Path) -> None:
    store, ask = Store(tmp_path / "feedback.db"), [{"role": "user", "content": "Why?"}]
    mine, another = Asker(LOCAL_USER, "browser:a"), Asker(LOCAL_USER, "browser:b")
    message = store.start_reply(mine, ask, "policy-0000", {})
    store.finish_reply(message, "done", text="So.", finish_reason="stop", prompt_ids=[1], response_ids=[2])

    def say(asker: Asker, value: str) -> None:
        request = FeedbackRequest(kind="thumb", message_id=message, value=value)
        store.add_feedback(asker, new_id("page"), request)

    def counted() -> list[tuple[str, bool]]:
        text = (tmp_path / f"{take_snapshot(store, tmp_path)}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        return sorted((line["person"], line["up"]) for line in lines if line["type"] == "thumb")

    say(Asker(LOCAL_USER, BROWSERS_BEFORE), "up")
    say(Asker(LOCAL_USER, PROGRAMS), "clear")
    assert counted() == [(BROWSERS_BEFORE, True)]
    say(another, "clear")  # whoever it was, a page says that it is taken back
    assert counted() == []
    say(mine, "up")
    for asker in (another, Asker(LOCAL_USER, PROGRAMS), Asker(LOCAL_USER, "browser:c", young=True)):
        say(asker, "clear")
    assert counted() == [("browser:a", True)]
    say(Asker(LOCAL_USER, "browser:c", young=True), "down")
    assert counted() == [("browser:a", True), (NEW_BROWSER, False)]
    say(Asker(LOCAL_USER, "browser:c"), "up")  # a day later
    say(mine, "down")
    assert counted() == [("browser:a", False), ("browser:c", True)]
    store.close()


def test_each_browser_has_limits_of_its_own_and_its_votes_count_for_it(tmp_path: Path, tiny_model: Path) -> None:
    home, engine = Home.find(tmp_path), FakeEngineClient()
    home.config.write_text(f'model = "{tiny_model}"\nlocal_in_flight = 1\n')

    def prepare(assistant: Assistant) -> None:
        assistant.engine = FakeEngine(engine)  # type: ignore[assignment]
        engine.gate = asyncio.Event()

    with serving(home, lambda: FakeEngine(engine), prepare) as live, contextlib.ExitStack() as stack:
        browsers = live.assistant.browsers
        yesterday = TimestampSigner(home.cookie_secret(), salt="browser")
        yesterday.get_timestamp = lambda: int(time.time()) - YOUNG_SECONDS - 60  # type: ignore[method-assign]
        cookies = [{browsers.name: text} for text in (yesterday.sign("old").decode(), browsers.new(), browsers.new())]
        clients = [stack.enter_context(httpx.Client(base_url=live.url, cookies=each)) for each in [*cookies, {}]]
        ask = {"conversation": None, "text": "Hello?", "listed": 1}
        for client in clients:
            assert client.post("/pages/chat/messages", json=ask).status_code == 200
            assert client.post("/pages/chat/messages", json=ask).status_code == 429
        rows = live.assistant.store.rows("SELECT user_id, person FROM replies ORDER BY rowid")
        assert [row["person"] for row in rows] == ["browser:old", NEW_BROWSER, NEW_BROWSER, NEW_BROWSER]
        assert {row["user_id"] for row in rows} == {LOCAL_USER}
