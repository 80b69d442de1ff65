"""A disk without room: one clear sentence, nothing half-written becomes visible, and it goes on once there is room.

First for real, on a small file system that holds the home and the server's temporary files, with the shared
two-layer vLLM; then the same by fault points, where nothing needs to be mounted and no vLLM runs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from crash_tools import (
    COMMAND,
    PAGE,
    Server,
    SmallDisk,
    Trained,
    events,
    one_sentence,
    rows,
    said,
    small_disk,
    stored_votes,
    tiny_home,
    trained,
)
from fakes import FakeEngine, FakeEngineClient, asker
from live_server import Live, serving, wait_ready
from safetensors.numpy import load, save
from tiny_engine import TinyEngine
from tiny_model import make_token_adapter

from thumbwise import faults
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import LOCAL_USER
from thumbwise.home import Home
from thumbwise.names import BASE, CONFIG, WEIGHTS
from thumbwise.training.run import client
from thumbwise.training.run.client import OpsClient, Run

pytestmark = pytest.mark.usefixtures("one_thread")
engine = pytest.mark.engine


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("small"), megabytes=16) as disk:
        yield disk


@pytest.fixture(scope="module")
def server(
    disk: SmallDisk, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_engine: TinyEngine
) -> Iterator[Server]:
    (disk.root / "tmp").mkdir()
    server = Server(tiny_home(disk.root / "home", tiny_model, f"unix:{tiny_engine.uds}"), TMPDIR=str(disk.root / "tmp"))
    server.log = tmp_path_factory.mktemp("log") / "serve.log"
    server.again()
    yield server
    server.kill()


@pytest.fixture
def full(disk: SmallDisk) -> Iterator[SmallDisk]:
    """The disk, for a test that fills it."""
    yield disk
    disk.make_room()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, one_thread: None) -> Trained:
    """One whose replies never end by themselves."""
    return trained(tiny_model, make_token_adapter(tiny_model, tmp_path_factory.mktemp("adapter") / "a", token=78))


def thumb(message_id: str) -> dict[str, Any]:
    return {"kind": "thumb", "message_id": message_id, "value": "up"}


def refusal(call: Any, *arguments: Any) -> ThumbwiseError:
    """What the job's client is told where the disk is full."""
    with pytest.raises(ThumbwiseError) as refused:
        call(*arguments)
    assert (refused.value.status, bool(one_sentence(str(refused.value)))) == (507, True)
    return refused.value


def visible(server: Server) -> list[str]:
    return sorted(path.name for path in server.home.policies.iterdir())


# --- a disk that is really full ----------------------------------------------------------------------------


@engine
def test_a_vote_on_a_full_disk_is_refused_and_the_same_call_is_stored_once_there_is_room(
    server: Server, full: SmallDisk
) -> None:
    message_id = server.ask().json()["id"]
    full.fill()
    given: dict[str, str] = {}
    while (answer := server.vote(f"full {len(given)}", thumb(message_id))).status_code == 201:
        given[f"full {len(given)}"] = answer.json()["feedback_id"]
        assert len(given) < 100
    assert (answer.status_code, "nothing was saved" in said(answer)) == (507, True)
    assert stored_votes(server.home) == given
    assert server.vote("full 0", thumb(message_id)).status_code in (201, 507)  # reading goes on
    full.make_room()
    later = server.vote(f"full {len(given)}", thumb(message_id))
    assert later.status_code == 201
    assert stored_votes(server.home) == given | {f"full {len(given)}": later.json()["feedback_id"]}


@engine
def test_a_reply_that_cannot_be_stored_is_not_begun_on_a_full_disk(server: Server, full: SmallDisk) -> None:
    before = rows(server.home, "SELECT count(*) FROM replies")
    full.fill()
    for call in (server.ask, server.compare):
        # A reply's row may still fit into what the database's files have already; soon it does not.
        while (answer := call("Something new to store. " * 200)).status_code == 200:
            before = rows(server.home, "SELECT count(*) FROM replies")
        assert answer.status_code == 507
        assert said(answer)
    assert rows(server.home, "SELECT count(*) FROM replies") == before
    full.make_room()
    assert server.ask().status_code == 200
    assert server.compare().status_code == 200


@engine
@pytest.mark.parametrize("whole", ["nothing", "half the weights", "the weights and not the manifest"])
def test_a_publish_on_a_full_disk_leaves_nothing_behind_and_succeeds_once_there_is_room(
    server: Server, full: SmallDisk, adapter: Trained, whole: str
) -> None:
    before = visible(server)
    weights, config = len(adapter.files[WEIGHTS]), len(adapter.files[CONFIG])
    room = {"nothing": 0, "half the weights": weights // 2}.get(whole, -(-weights // PAGE) * PAGE + config)
    with server.run() as (ops, run):
        candidate = adapter.candidate(run)
        full.fill(room)
        refusal(ops.publish, run, candidate.version, candidate.files)
        assert visible(server) == before
        assert candidate.version not in server.states()
        full.make_room()
        ops.publish(run, candidate.version, candidate.files)
        assert server.states()[candidate.version] == "staged"


@engine
def test_an_upload_that_the_temporary_folder_cannot_hold_says_that_the_disk_is_full(
    server: Server, full: SmallDisk, adapter: Trained
) -> None:
    padded = save(load(adapter.files[WEIGHTS]), metadata={"padding": "x" * 2_000_000})  # over 1 MB goes through a file
    with server.run() as (ops, run):
        candidate = Trained(adapter.files | {WEIGHTS: padded}, adapter.probes).candidate(run)
        full.fill()
        assert "full" in str(refusal(ops.publish, run, candidate.version, candidate.files))
        full.make_room()
        ops.publish(run, candidate.version, candidate.files)
        assert server.states()[candidate.version] == "staged"


@engine
def test_a_run_is_not_begun_on_a_full_disk(server: Server, full: SmallDisk) -> None:
    message_id = server.ask("Is this in the snapshot?").json()["id"]
    server.vote("for the snapshot", thumb(message_id))
    with server.ops() as ops:
        full.fill()
        refusal(ops.take_snapshot)
        refusal(ops.begin)
        assert all(len(path.stem) == 64 for path in server.home.snapshots.iterdir())
        full.make_room()
    with server.run("too_little_data") as (ops, run):
        assert message_id in ops.snapshot(run.snapshot_id).decode()


@engine
def test_a_reply_that_the_disk_fills_up_under_ends_in_an_error_and_is_failed_once_there_is_room(
    server: Server, full: SmallDisk, adapter: Trained
) -> None:
    with server.run("promoted") as (ops, run):
        candidate = adapter.candidate(run)
        ops.publish(run, candidate.version, candidate.files)
        ops.promote(run, candidate.version, run.stable)
    body = {"messages": [{"role": "user", "content": "Is there room?"}], "max_tokens": 400, "stream": True}
    seen: list[dict[str, Any]] = []
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as stream:
        for event in events(stream.iter_lines()):
            seen.append(event)
            if len(seen) == 5:
                full.fill()
    assert "nothing was saved" in one_sentence(seen[-1]["error"]["message"])
    full.make_room()
    kept = server.ask().json()["id"]  # the next thing that is stored takes it along
    cut = seen[0]["id"]
    assert rows(server.home, "SELECT state FROM replies WHERE id IN (?, ?) ORDER BY created_at", cut, kept) == [
        ("failed",),
        ("done",),
    ]
    assert one_sentence(rows(server.home, "SELECT error FROM replies WHERE id = ?", cut)[0][0])
    assert server.vote("on a lost reply", thumb(cut)).status_code == 409
    assert "Is there room?" not in server.snapshot()


@engine
def test_an_assistant_killed_on_a_full_disk_starts_again_or_says_why_not(server: Server, full: SmallDisk) -> None:
    given = stored_votes(server.home)
    body = {"messages": [{"role": "user", "content": "Which one is cut?"}], "max_tokens": 3000, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as stream:
        seen = events(stream.iter_lines())
        cut = next(seen)["id"]
        full.fill()
        server.launch()
    told = server.ended()
    print("TOLD", told)  # it must mark the reply as failed, for which there may be room in the database's files
    assert told is None or "Make room" in one_sentence(told)
    full.make_room()
    server.again()
    assert rows(server.home, "SELECT state FROM replies WHERE id = ?", cut) == [("failed",)]
    assert stored_votes(server.home) == given


def test_a_first_start_on_a_full_disk_is_told_in_one_sentence(tmp_path: Path) -> None:
    with small_disk(tmp_path, megabytes=1) as disk:
        disk.fill()
        environment = Server(Home.find(tmp_path / "home")).environment
        done = subprocess.run([COMMAND, "serve"], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert "disk is full" in one_sentence(done.stderr.rstrip("\n"))


@engine
def test_a_model_that_cannot_be_prepared_on_a_full_disk_says_so_where_readiness_is_asked(
    server: Server, full: SmallDisk
) -> None:
    for note in server.home.models.glob("folder-*.json"):  # of the model's digest: it is written anew
        note.unlink()
    full.fill()
    server.launch()
    while (told := server.wait(503)["detail"]) in ("The model is being prepared.", "Hashing model"):
        pass
    assert "No space left" in one_sentence(told)
    full.make_room()
    server.again()
    assert server.ask().status_code == 200


# --- the same by fault points --------------------------------------------------------------------------------


@dataclass
class Twin:
    """A running assistant without vLLM, and how to fill its disk at a named place."""

    live: Live
    patch: pytest.MonkeyPatch

    def fill_at(self, place: str) -> None:
        faults._passed.clear()
        self.patch.setenv(faults.VARIABLE, f"{place}=full")

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return httpx.post(f"{self.live.url}{path}", json=body, headers=headers, timeout=60)

    def ask(self, **body: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello?"}]} | body)


@pytest.fixture(scope="module")
def fake_served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Live]:
    home = tiny_home(tmp_path_factory.mktemp("twin") / "home", tiny_model)
    with serving(home, lambda: FakeEngine(FakeEngineClient())) as live:
        wait_ready(live)
        yield live


@pytest.fixture
def twin(fake_served: Live, monkeypatch: pytest.MonkeyPatch) -> Twin:
    monkeypatch.setattr(client, "WAITS", ())
    return Twin(fake_served, monkeypatch)


def test_a_vote_that_meets_a_full_disk_is_rolled_back_and_stored_at_the_second_call(twin: Twin) -> None:
    store = twin.live.assistant.store
    vote = thumb(twin.ask().json()["id"])
    twin.fill_at("vote_written")
    refused = twin.post("/v1/feedback", vote, **{"Idempotency-Key": "once"})
    assert (refused.status_code, "nothing was saved" in said(refused)) == (507, True)
    assert store.rows("SELECT * FROM feedback") == []
    stored = twin.post("/v1/feedback", vote, **{"Idempotency-Key": "once"})
    assert [row["id"] for row in store.rows("SELECT id FROM feedback")] == [stored.json()["feedback_id"]]


@pytest.mark.parametrize("stream", [True, False])
def test_a_reply_whose_end_meets_a_full_disk_is_an_error_and_failed_with_the_next_thing_stored(
    twin: Twin, stream: bool
) -> None:
    store = twin.live.assistant.store
    twin.fill_at("reply_ended")
    cut = twin.ask(stream=stream)
    if stream:
        error = list(events(iter(cut.text.splitlines())))[-1]["error"]
    else:
        assert cut.status_code == 507
        error = cut.json()["error"]
    assert "nothing was saved" in one_sentence(error["message"])
    newest = "SELECT id, state, error FROM replies ORDER BY created_at DESC LIMIT 1"
    lost = store.rows(newest)[0]
    assert lost["state"] in ("streaming", "failed")
    assert twin.ask().status_code == 200
    lost = store.rows("SELECT state, error, text FROM replies WHERE id = ?", [lost["id"]])[0]
    assert lost["state"] == "failed"
    assert one_sentence(lost["error"])


async def test_a_reply_whose_reader_leaves_a_full_disk_keeps_its_text_with_the_next_thing_stored(twin: Twin) -> None:
    conversations, store = twin.live.assistant.conversations, twin.live.assistant.store
    turn = await conversations.begin(asker(), [{"role": "user", "content": "Hello?"}], conversations.sampling())
    chunks = conversations.stream(turn, asker())
    await anext(chunks)
    twin.fill_at("reply_ended")
    await chunks.aclose()
    found = "SELECT state, text FROM replies WHERE id = ?"
    assert store.rows(found, [turn.message_id]) == [{"state": "streaming", "text": ""}]
    store.start_conversation(LOCAL_USER, "There is room again.")
    assert store.rows(found, [turn.message_id]) == [{"state": "stopped", "text": "Hello"}]


@pytest.mark.parametrize("place", ["adapter_incoming", "adapter_renamed", "adapter_complete"])
def test_a_publish_that_meets_a_full_disk_leaves_nothing_and_succeeds_at_the_second_call(
    twin: Twin, adapter: Trained, place: str
) -> None:
    assistant = twin.live.assistant
    before = sorted(assistant.home.policies.iterdir())
    with OpsClient(twin.live.url, assistant.token) as ops:
        run: Run = ops.begin()
        candidate = adapter.candidate(run)
        twin.fill_at(place)
        refusal(ops.publish, run, candidate.version, candidate.files)
        assert sorted(assistant.home.policies.iterdir()) == before
        assert candidate.version not in [version.version for version in assistant.versions.all()]
        ops.publish(run, candidate.version, candidate.files)
        ops.finish(run, "rejected", "")
    folder = assistant.policies.loading.folder(candidate.version)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == candidate.files
    assert assistant.versions.stable() == BASE
    assert json.loads((folder / "manifest.json").read_text())["version"] == candidate.version
