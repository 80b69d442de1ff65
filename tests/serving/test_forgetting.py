"""Forgetting in a whole home: database, snapshots, runs, versions; also after a kill, and while a job works."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from forgetful import agree, begin_run, files_with, make_version, opened, promote, say
from team import Team, team

from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.errors import Conflict, NotFound
from thumbwise.feedback import forget
from thumbwise.names import BASE
from thumbwise.serving.forgetting import KEPT_OF_RUNS, Forgetting
from thumbwise.versions.states import State

ANN, BEN = "usr_ann", "usr_ben"
POINTS = ("forget_committed", "forget_noted", "snapshot_redacted", "run_cleaned", "forget_files")


# --- everywhere -----------------------------------------------------------------------------------------


def test_a_person_is_gone_from_every_file_of_the_home_and_the_run_is_over(tmp_path: Path) -> None:
    with opened(tmp_path) as parts:
        agree(parts.store, ANN, BEN)
        say(parts.store, ANN, "MARKANN")
        say(parts.store, BEN, "MARKBEN")
        run_id, lease, folder = begin_run(parts)
        (parts.home.snapshots / ".making-killed").write_text("MARKANN")
        assert len(files_with(tmp_path, b"MARKANN")) >= 5
        done = parts.forget_person(ANN, COMMAND_LINE)
        assert (done.snapshots, done.learned, done.finished) == (1, [], True)
        assert files_with(tmp_path, b"MARKANN") == []
        assert files_with(parts.home.snapshots, b"MARKBEN") != []
        assert {path.name for path in folder.iterdir()} <= KEPT_OF_RUNS
        for refused in (
            lambda: parts.versions.runs.resume(run_id, 60),
            lambda: parts.versions.runs.check_lease(lease),
            lambda: parts.versions.runs.renew(run_id, lease, 60),
        ):
            with pytest.raises(Conflict, match="was deleted by the person who gave it"):
                refused()
        assert parts.versions.runs.begin("another", 60).number == 2  # and the next one need not wait


def test_a_run_whose_snapshot_held_nothing_of_it_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as parts:
        agree(parts.store, ANN, BEN)
        say(parts.store, BEN, "MARKBEN")
        run_id, lease, folder = begin_run(parts)
        say(parts.store, ANN, "MARKANN")
        before = sorted(folder.rglob("*"))
        assert parts.forget_person(ANN, COMMAND_LINE).snapshots == 0
        assert sorted(folder.rglob("*")) == before
        parts.versions.runs.renew(run_id, lease, 60)


def test_what_a_job_still_works_on_goes_when_it_has_stopped(tmp_path: Path) -> None:
    with opened(tmp_path) as parts:
        agree(parts.store, ANN)
        say(parts.store, ANN, "MARKANN")
        _, _, folder = begin_run(parts)
        with (folder / "lock").open("a") as job:
            fcntl.flock(job, fcntl.LOCK_EX)
            assert not parts.forget_person(ANN, COMMAND_LINE).finished
            assert files_with(tmp_path, b"MARKANN") == [
                f"runs/{folder.name}/{n}" for n in ("error.log", "snapshot.jsonl")
            ]
            (folder / "late.json").write_text("MARKANN")  # what it writes before it sees that its lease is void
            assert not parts.finish()
        assert parts.finish()
        assert files_with(tmp_path, b"MARKANN") == []


def test_a_candidate_that_was_handed_over_and_not_promoted_is_rejected(tmp_path: Path) -> None:
    with opened(tmp_path) as parts:
        agree(parts.store, ANN)
        votes = say(parts.store, ANN, "MARKANN")
        run_id, _, _ = begin_run(parts)
        version = make_version(parts, run_id, BASE, dict.fromkeys(votes, 1.0))
        assert parts.forget_person(ANN, COMMAND_LINE).learned == [version]
        assert parts.versions.get(version).state == State.REJECTED


# --- which versions learned from it ---------------------------------------------------------------------


def chain(parts: Forgetting) -> tuple[list[str], list[str]]:
    """Ann taught the first version, Ben the second that began from it; the third began at the base, of Ben alone."""
    agree(parts.store, ANN, BEN)
    anns = say(parts.store, ANN, "MARKANN")
    versions = []
    for parent, learned in ((BASE, anns), ("", say(parts.store, BEN, "MARKBEN")), (BASE, say(parts.store, BEN, "B"))):
        run_id, lease, _ = begin_run(parts)
        name = make_version(parts, run_id, parent if parent else versions[0], dict.fromkeys(learned, 0.5))
        promote(parts, run_id, lease, name)
        versions.append(name)
    return versions, anns


def test_versions_that_learned_from_it_are_listed_also_through_what_they_began_from(tmp_path: Path) -> None:
    with opened(tmp_path) as parts:
        versions, _ = chain(parts)
        assert parts.versions.learned.from_user(ANN) == versions[:2]
        assert parts.versions.learned.from_user(BEN) == versions[1:]
        assert parts.forget_person(ANN, COMMAND_LINE).learned == versions[:2]
        assert parts.versions.learned.from_user(ANN) == versions[:2]


def test_the_next_round_begins_at_the_base_while_stable_learned_from_something_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path) as parts:
        versions, anns = chain(parts)
        parts._forget("vote", ANN, anns[0])
        assert not parts.versions.must_begin_at_base()  # stable is the third
        parts.versions.move_pointer("rollback", versions[1], versions[2], "by hand")
        assert parts.versions.must_begin_at_base()
        parts.versions.move_pointer("rollback", BASE, versions[1], "by hand")
        assert not parts.versions.must_begin_at_base()


def test_a_vote_without_weight_taught_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as parts:
        agree(parts.store, ANN)
        votes = say(parts.store, ANN, "MARKANN")
        run_id, lease, _ = begin_run(parts)
        promote(parts, run_id, lease, make_version(parts, run_id, BASE, dict.fromkeys(votes, 0.0)))
        assert parts.forget_person(ANN, COMMAND_LINE).learned == []


def test_of_a_version_from_before_lineage_all_in_its_snapshot_counts(tmp_path: Path) -> None:
    with opened(tmp_path) as parts:
        say(parts.store, "local", "MARK")
        run_id, lease, _ = begin_run(parts)
        version = make_version(parts, run_id, BASE)
        promote(parts, run_id, lease, version)
        assert parts.forget_person("local", COMMAND_LINE).learned == [version]
        assert parts.versions.must_begin_at_base()


# --- kills ----------------------------------------------------------------------------------------------

FORGET = """
import sys
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.feedback.store import Store
from thumbwise.home import Home
from thumbwise.serving.forgetting import Forgetting
from thumbwise.versions.record import Versions
home = Home.find(sys.argv[1])
store = Store(home.database)
Forgetting(home, store, Versions(store)).forget_person("usr_ann", COMMAND_LINE)
"""


@pytest.mark.parametrize("point", ["forget_written", *POINTS])
def test_after_a_kill_anywhere_the_wish_is_finished_or_was_never_taken(tmp_path: Path, point: str) -> None:
    with opened(tmp_path) as parts:
        agree(parts.store, ANN, BEN)
        votes = say(parts.store, ANN, "MARKANN")
        say(parts.store, BEN, "MARKBEN")
        run_id, lease, _ = begin_run(parts)
        version = make_version(parts, run_id, BASE, dict.fromkeys(votes, 1.0))
        promote(parts, run_id, lease, version)
    killed = subprocess.run(
        [sys.executable, "-c", FORGET, str(tmp_path)], env=os.environ | {"THUMBWISE_FAULT": point}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    with opened(tmp_path) as parts:
        if point == "forget_written":  # before the COMMIT, so nobody was told that it is done
            assert forget.unfinished(parts.store) == []
            assert len(parts.store.conversations(ANN, 9)) == 1
            return
        assert parts.store.conversations(ANN, 9) == []
        assert parts.finish()
        assert files_with(tmp_path, b"MARKANN") == []
        assert files_with(parts.home.snapshots, b"MARKBEN") != []
        assert len(parts.store.conversations(BEN, 9)) == 1
        assert parts.versions.learned.from_user(ANN) == [version]
        with pytest.raises(Conflict):
            parts.versions.runs.check_lease(lease)


# --- with an assistant ----------------------------------------------------------------------------------


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Team]:
    async with team(tmp_path) as found:
        yield found


async def test_an_operator_has_somebody_forgotten_by_name_and_nobody_else_may(here: Team, tmp_path: Path) -> None:
    ann, ops = here.account("ann"), here.account("ops", "operator")
    assistant = here.assistant
    await assistant.store.run(agree, assistant.store, ann.id)
    await assistant.store.run(say, assistant.store, ann.id, "MARKANN")
    for account in (ann, here.account("rev", "reviewer"), None):
        async with here.client(account) as client:
            assert (await client.post("/ops/api/forget", json={"user": "ann"})).status_code in (401, 403)
    async with here.client() as client:
        token = {"Authorization": f"Bearer {tmp_path.joinpath('job.token').read_text()}"}  # only what a round needs
        refused = await client.post("/ops/api/forget", json={"user": "ann"}, headers=token)
        assert refused.status_code in (401, 403)
    async with here.client(ops) as client:
        assert (await client.post("/ops/api/forget", json={"user": "nobody"})).status_code == 404
        answer = await client.post("/ops/api/forget", json={"user": "ann"})
        assert answer.json() == {"items": 3, "snapshots": 0, "learned": [], "finished": True}
    assert files_with(tmp_path, b"MARKANN") == []
    (entry,) = await assistant.store.run(assistant.audit.entries, 9, action="feedback.forget")
    assert (entry["actor"], entry["target"], entry["detail"]) == (ops.id, ann.id, {})


async def test_a_job_that_asks_for_its_snapshot_or_to_go_on_gets_the_sentence(here: Team) -> None:
    assistant = here.assistant
    await assistant.store.run(agree, assistant.store, ANN)
    await assistant.store.run(say, assistant.store, ANN, "MARKANN")
    run_id, lease, folder = await assistant.store.run(begin_run, assistant.forgetting)
    snapshot_id = json.loads((folder / "run.json").read_text())["given"]["snapshot_id"]
    await assistant.forgetting.person(ANN, COMMAND_LINE)
    body = {"lease": lease}
    async with here.client() as client:
        client.headers["Authorization"] = f"Bearer {assistant.token}"
        for answer in (
            await client.get(f"/ops/api/snapshots/{snapshot_id}"),
            await client.post(f"/ops/api/runs/{run_id}/heartbeat", json=body),
            await client.post(f"/ops/api/runs/{run_id}/resume"),
        ):
            assert answer.status_code == 409
            assert "start a new one with `thumbwise train`" in answer.json()["error"]["message"]


async def test_an_owner_has_a_chat_and_a_vote_forgotten_and_nobody_else(here: Team) -> None:
    assistant = here.assistant
    ann, ben = here.account("ann"), here.account("ben")
    votes = await assistant.store.run(say, assistant.store, ann.id, "MARKANN")
    ((chat, _),) = await assistant.store.run(assistant.store.conversations, ann.id, 9)
    for refused in (assistant.forgetting.vote(votes[0], ben.id), assistant.forgetting.conversation(chat, ben.id)):
        with pytest.raises(NotFound):
            await refused
    assert (await assistant.forgetting.vote(votes[0], ann.id)).items == 1
    assert (await assistant.forgetting.conversation(chat, ann.id)).items == 2
    assert await assistant.store.run(assistant.store.conversations, ann.id, 9) == []


async def test_an_assistant_that_starts_finishes_what_a_kill_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with team(tmp_path) as here:
        await here.assistant.store.run(say, here.assistant.store, ANN, "MARKANN")
        await here.assistant.store.run(forget.forget, here.assistant.store, "person", ANN)
    async with team(tmp_path) as here:
        assert await here.assistant.store.run(forget.unfinished, here.assistant.store) != []
        here.assistant.spawn(here.assistant.forgetting.run())
        while await here.assistant.store.run(forget.unfinished, here.assistant.store):
            pass
    assert files_with(tmp_path, b"MARKANN") == []
