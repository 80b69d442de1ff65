"""The assistant killed with -9, at named places and at any moment.

What was acknowledged is there after the restart, what was not is stored once when it is sent again, and no
version is ever half there. One `thumbwise serve` on the shared two-layer vLLM is killed again and again.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from crash_tools import Server, Trained, rows, said, served, stored_votes, tiny_home, trained
from tiny_engine import TinyEngine
from tiny_model import make_tiny_adapter

from thumbwise.home import HomeLock, running_url
from thumbwise.names import BASE, MANIFEST
from thumbwise.training.run import client
from thumbwise.training.run.candidate import Candidate
from thumbwise.training.run.client import Run

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread", "no_repetition")]

PUBLISHING = ("adapter_incoming", "adapter_renamed", "adapter_complete")
PROMOTING = ("adapter_loaded", "adapter_probed", "pointer_written", "pointer_moved")


@pytest.fixture
def no_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's client would wait for the assistant at an address that is gone: here the test calls again."""
    monkeypatch.setattr(client, "WAITS", ())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_engine: TinyEngine) -> Iterator[Server]:
    server = Server(tiny_home(tmp_path_factory.mktemp("crash") / "home", tiny_model, f"unix:{tiny_engine.uds}"))
    server.again()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, one_thread: None) -> Trained:
    return trained(tiny_model, make_tiny_adapter(tiny_model, tmp_path_factory.mktemp("adapter") / "a", seed=21))


def thumb(server: Server, **body: Any) -> dict[str, Any]:
    """A vote on a reply that is asked for first."""
    return {"kind": "thumb", "message_id": server.ask(**body).json()["id"], "value": "up"}


def pair(server: Server) -> dict[str, Any]:
    return {"kind": "pair", "comparison_id": server.compare().json()["comparison_id"], "value": {"choice": "left"}}


# --- votes ----------------------------------------------------------------------------------------------


def test_votes_acknowledged_before_a_kill_are_there_after_it_and_a_retry_stores_none_twice(server: Server) -> None:
    votes = {f"a{n}": (thumb if n % 2 else pair)(server) for n in range(6)}
    given = {key: server.vote(key, vote).json()["feedback_id"] for key, vote in votes.items()}
    server.kill()
    assert stored_votes(server.home) == given
    server.again()
    assert {key: server.vote(key, vote).json()["feedback_id"] for key, vote in votes.items()} == given
    assert stored_votes(server.home) == given
    assert server.vote("a1", votes["a1"] | {"value": "down"}).status_code == 409
    exported = server.snapshot()
    assert all(vote_id in exported for vote_id in given.values())


def test_a_vote_that_a_kill_left_unanswered_is_stored_once_when_it_is_sent_again(server: Server) -> None:
    server.again("vote_written#2")
    for place, following in (("vote_written", "vote_committed#2"), ("vote_committed", "")):
        # The retry after the first kill is the first vote to pass the second place.
        before = stored_votes(server.home)
        if place == "vote_written":
            before[f"{place} 1"] = server.vote(f"{place} 1", thumb(server)).json()["feedback_id"]
        cut = pair(server)
        with server.dying():
            server.vote(f"{place} 2", cut)
        after = stored_votes(server.home)
        assert after.keys() - before.keys() == ({f"{place} 2"} if place == "vote_committed" else set())
        server.again(following)
        answer = server.vote(f"{place} 2", cut)
        assert answer.status_code == 201
        assert stored_votes(server.home) == before | after | {f"{place} 2": answer.json()["feedback_id"]}


def test_a_reply_cut_off_by_a_kill_is_failed_and_in_no_snapshot(server: Server) -> None:
    server.again("reply_begun#2")
    for place, following in (("reply_begun", "reply_ended#2"), ("reply_ended", "")):
        whole = server.ask(f"Is this one whole ({place})?").json()["id"]
        with server.dying():
            server.ask(f"Is this one cut ({place})?")
        assert rows(server.home, "SELECT count(*) FROM replies WHERE state = 'streaming'") == [(1,)]
        server.again(following)
        newest = "SELECT id, state, error FROM replies ORDER BY created_at DESC LIMIT 2"
        (cut, *ended), (before, *_) = rows(server.home, newest)
        assert (before, ended) == (whole, ["failed", "The assistant was stopped while it wrote this: ask again."])
        refused = server.vote(f"on a cut reply ({place})", {"kind": "thumb", "message_id": cut, "value": "up"})
        assert (refused.status_code, "failed" in said(refused)) == (409, True)
        exported = server.snapshot()
        assert f"Is this one whole ({place})?" in exported
        assert "Is this one cut" not in exported


class Voter(threading.Thread):
    """Votes until told to stop; a vote that got no answer is sent again, key and all, until it gets one."""

    def __init__(self, server: Server, number: int, messages: list[str]) -> None:
        super().__init__(daemon=True)
        self.server, self.messages = server, messages
        self.draw = random.Random(number)
        self.enough = threading.Event()
        self.acknowledged: dict[str, str] = {}
        self.refused: list[str] = []

    def run(self) -> None:
        with httpx.Client(timeout=60) as http:
            while not self.enough.is_set():
                vote = {"kind": "thumb", "message_id": self.draw.choice(self.messages), "value": "up"}
                self._until_answered(http, f"ledger-{uuid.uuid4()}", vote)
                if self.draw.random() < 0.1:
                    self._ask(http)

    def _until_answered(self, http: httpx.Client, key: str, vote: dict[str, Any]) -> None:
        while True:
            try:
                address = f"{self.server.url}/v1/feedback"
                answer = http.post(address, json=vote, headers={"Idempotency-Key": key})
            except (httpx.HTTPError, httpx.InvalidURL):
                time.sleep(0.05)
                continue
            if answer.status_code == 201:
                self.acknowledged[key] = answer.json()["feedback_id"]
            else:
                self.refused.append(answer.text)
            return

    def _ask(self, http: httpx.Client) -> None:
        """Leave a reply in the making, now and then; the next kill may meet it."""
        try:
            http.post(f"{self.server.url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "?"}]})
        except (httpx.HTTPError, httpx.InvalidURL):
            return


def test_kills_at_any_moment_lose_no_acknowledged_vote_of_several_voters(server: Server) -> None:
    draw = random.Random(5)
    voters = [Voter(server, n, [server.ask().json()["id"] for _ in range(3)]) for n in range(4)]

    def ledger() -> dict[str, str]:
        return {key: name for voter in voters for key, name in voter.acknowledged.copy().items()}

    for voter in voters:
        voter.start()
    for _ in range(3):
        enough = len(ledger()) + draw.randrange(20, 60)
        while len(ledger()) < enough:
            assert not any(voter.refused for voter in voters), [voter.refused for voter in voters]
            time.sleep(0.001)
        time.sleep(draw.random() * 0.02)
        server.kill()
        assert ledger().items() <= stored_votes(server.home).items()
        server.again()
    for voter in voters:
        voter.enough.set()
    for voter in voters:
        voter.join(timeout=60)
    stored = {key: name for key, name in stored_votes(server.home).items() if key.startswith("ledger-")}
    assert stored == ledger()
    assert [voter.refused for voter in voters] == [[]] * 4


def test_a_command_that_looks_for_the_assistant_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    home = tiny_home(tmp_path, tmp_path)
    enough = threading.Event()

    def look() -> None:
        while not enough.is_set():
            running_url(home)

    looking = [threading.Thread(target=look) for _ in range(2)]
    for thread in looking:
        thread.start()
    try:
        for n in range(50):
            with HomeLock(home) as lock:
                lock.announce(f"http://{n}")
                assert running_url(home) == f"http://{n}"
    finally:
        enough.set()
        for thread in looking:
            thread.join()


# --- versions -------------------------------------------------------------------------------------------


def begin(server: Server, adapter: Trained) -> tuple[Run, Candidate]:
    with server.ops() as ops:
        run = ops.begin()
    return run, adapter.candidate(run)


def publish(server: Server, run: Run, candidate: Candidate) -> None:
    with server.ops() as ops:
        ops.publish(run, candidate.version, candidate.files)


def promote(server: Server, run: Run, candidate: Candidate) -> None:
    with server.ops() as ops:
        ops.promote(run, candidate.version, run.stable)


def finish(server: Server, run: Run, outcome: str) -> None:
    with server.ops() as ops:
        ops.finish(run, outcome, "")


def answering(server: Server) -> str:
    return str(server.ask().json()["thumbwise"]["policy_version"])


def test_a_publish_killed_anywhere_is_invisible_and_ends_the_same_when_it_is_called_again(
    server: Server, adapter: Trained, tiny_engine: TinyEngine
) -> None:
    server.again(PUBLISHING[0])
    published: list[str] = []
    # The second call passes every place once more, so that the next kill is at the second passage.
    for place, following in zip(PUBLISHING, (*(f"{name}#2" for name in PUBLISHING[1:]), ""), strict=True):
        run, candidate = begin(server, adapter)
        folder = server.home.policies / candidate.version
        with server.dying():
            publish(server, run, candidate)
        assert (folder / MANIFEST).exists() is (place == "adapter_complete"), place
        server.again(following)
        assert list(server.states()) == published, place
        assert answering(server) == BASE
        refused = server.ask(model=candidate.version)
        assert (refused.status_code, "There is no model" in said(refused)) == (404, True)
        publish(server, run, candidate)
        published.append(candidate.version)
        assert list(server.states()) == published, place
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == candidate.files, place
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o400}, place
        finish(server, run, "rejected")
    assert sorted(path.name for path in server.home.policies.iterdir()) == sorted(published)
    assert not set(published) & set(served(tiny_engine.uds))


def test_a_promotion_killed_anywhere_leaves_one_stable_version_and_ends_the_same_when_it_is_called_again(
    server: Server, adapter: Trained
) -> None:
    server.again(PROMOTING[0])
    for place, following in zip(PROMOTING, (*(f"{name}#2" for name in PROMOTING[1:]), ""), strict=True):
        run, candidate = begin(server, adapter)
        publish(server, run, candidate)
        assert answering(server) == run.stable
        with server.dying():
            promote(server, run, candidate)
        moves = len(rows(server.home, "SELECT * FROM pointer_log"))
        server.again(following)
        moved = place == "pointer_moved"
        assert answering(server) == (candidate.version if moved else run.stable), place
        states = server.states()
        assert (states[candidate.version] == "stable") is moved, place
        assert list(states.values()).count("stable") == (moved or run.stable != BASE), place
        promote(server, run, candidate)
        promote(server, run, candidate)  # a third call changes nothing either
        assert answering(server) == candidate.version, place
        assert server.states()[candidate.version] == "stable", place
        assert len(rows(server.home, "SELECT * FROM pointer_log")) == moves + (not moved), place
        finish(server, run, "promoted")
