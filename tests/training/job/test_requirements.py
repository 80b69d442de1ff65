"""How much the votes so far can carry, what a dry run says of it, and when the built-in schedule trains."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from training_world import FakeAssistant, make_snapshot

from thumbwise.cli.main import main
from thumbwise.contracts import Labels, Sample, Thumb
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.feedback.store import Store
from thumbwise.home import Home
from thumbwise.names import BASE
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.serving.schedule import Schedule
from thumbwise.settings import Settings
from thumbwise.settings.training import TrainSettings
from thumbwise.settings.values import seconds_of
from thumbwise.training.data.snapshot import Snapshot, parse
from thumbwise.training.data.votes import Sampling
from thumbwise.training.job import requirements
from thumbwise.training.job.dry_run import dry_run
from thumbwise.training.run.folders import nothing_new, unfinished
from thumbwise.versions.record import Versions
from thumbwise.versions.runs import Runs

SAMPLING = Sampling(temperature=0.7, max_tokens=48, longest=512)
SNAPSHOT = make_snapshot(30, ties=6)  # and a thumb on every fourth: 30 + 9 tell something


@pytest.mark.parametrize("votes", [1, 39, 100, 299, 300, 5000])
def test_auto_is_ppo_however_few_votes_there_are(votes: int) -> None:
    found, said = requirements.choose_algorithm("auto", votes)
    assert found == "ppo"
    assert said.startswith(f"{votes} votes")


def test_a_name_is_taken_as_it_is() -> None:
    assert requirements.choose_algorithm("best_of_n", 5000)[0] == "best_of_n"


def test_too_little_names_the_number_and_the_setting() -> None:
    assert requirements.too_few_votes(parse(SNAPSHOT), TrainSettings(min_votes=39), SAMPLING) == ""
    said = requirements.too_few_votes(parse(SNAPSHOT), TrainSettings(min_votes=40), SAMPLING)
    assert said.startswith("There are 39 votes that say which reply is better, ")
    assert said.endswith("(setting train.min_votes): collect more votes.")


def test_too_little_says_how_many_votes_are_on_replies_sampled_otherwise_and_what_to_do() -> None:
    hotter = requirements.too_few_votes(
        parse(SNAPSHOT), TrainSettings(min_votes=40), replace(SAMPLING, temperature=1.0)
    )
    assert hotter.startswith("There are 0 votes on replies sampled as training samples that say")
    assert "another temperature than 1, with top_p or stop: 39." in hotter
    assert "set temperature to theirs" in hotter
    shorter = requirements.too_few_votes(parse(SNAPSHOT), TrainSettings(min_votes=40), replace(SAMPLING, longest=7))
    assert "more than 7 tokens (train.max_reply_tokens): 39." in shorter


# --- dry run --------------------------------------------------------------------------------------------


def plan(tmp_path: Path, assistant: FakeAssistant, algorithm: str = "auto", **train: Any) -> Any:
    home = Home.find(tmp_path)
    settings, plugins = Settings(train=TrainSettings(**train)), PluginManager(home).load()
    transport = httpx.MockTransport(assistant.answer)
    return dry_run(home, settings, plugins, "http://assistant", "secret", algorithm, transport)


def test_thumbs_that_all_say_the_same_are_too_little_alone() -> None:
    def thumb(n: int) -> Thumb:
        reply = Sample((), "hi", (2,), (3, n), "stop", BASE)
        return Thumb(f"t{n}", "ann", "g", reply, up=True)

    ups = tuple(thumb(n) for n in range(200))
    assert Snapshot(Labels((), ups), ()).telling(TrainSettings(), SAMPLING) == 0
    both = Snapshot(Labels((), (*ups, replace(ups[0], id="t200", up=False))), ())
    assert both.telling(TrainSettings(), SAMPLING) == 201
    assert both.telling(TrainSettings(thumb_weight=0), SAMPLING) == 0


def test_a_dry_run_says_what_would_be_done_and_registers_nothing(tmp_path: Path) -> None:
    assistant = FakeAssistant(SNAPSHOT)
    run = tmp_path / "runs" / "run-1"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "result.json").write_text(json.dumps({"outcome": "rejected", "seconds": 150.0}))
    said = plan(tmp_path, assistant, min_votes=20)
    assert (said.comparisons, said.rankings, said.thumbs, said.telling, said.people) == (36, 0, 9, 39, 7)
    assert (said.algorithm, said.reward, said.last_run_seconds) == ("ppo", "bradley_terry", 150.0)
    assert "36 comparisons, 0 rankings, 9 thumbs by 7 people" in said.text()
    assert (said.other_settings, said.too_long, said.told) == (0, 0, "")
    assert "2 minutes" in said.text()
    assert assistant.finished == []
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run-1"]


def test_a_dry_run_names_whose_votes_are_set_aside_and_whom_the_last_run_doubted(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in SNAPSHOT.decode().splitlines()]
    for line in lines:
        line["person"] = "programs" if line["user"] != "u1" else "browser:a"
    assistant = FakeAssistant("".join(json.dumps(line) + "\n" for line in lines).encode())
    for number, doubted in ((1, {"key:a": 3}), (2, {"key:b": 31})):
        run = tmp_path / "runs" / f"run-{number}"
        run.mkdir(parents=True)
        (run / "fit.json").write_text(json.dumps({"fit": {"details": {"doubted": doubted}}}))
    said = plan(tmp_path, assistant, min_votes=5)
    assert said.people == 2
    assert list(said.aside) == ["programs"]
    assert f"over one person's part: {said.aside['programs']} of programs." in said.text()
    assert said.doubted == {"key:b": 31}
    assert "other people's votes contradict them: 31 of key:b." in said.text()


@pytest.mark.parametrize("written", ["{", "[]", '{"fit": 1}', '{"fit": {"details": null}}', '{"outcome": "promoted"}'])
def test_folders_of_runs_of_an_older_build_stand_in_nobodys_way(tmp_path: Path, written: str) -> None:
    old, last = tmp_path / "runs" / "run-0", tmp_path / "runs" / "run-1"
    for folder in (old, last):
        folder.mkdir(parents=True)
        (folder / "snapshot.jsonl").write_bytes(SNAPSHOT)
    for name in ("run.json", "result.json", "fit.json"):
        (old / name).write_text(written)
    said = plan(tmp_path, FakeAssistant(SNAPSHOT), min_votes=20)
    assert (said.last_run_seconds, said.doubted) == (None, {})
    (last / "run.json").write_text('{"given": {"number": 1}}')
    (last / "result.json").write_text('{"outcome": "rejected"}')
    home = Home.find(tmp_path)
    assert "Nobody has voted since run-1" in nothing_new(home, last)
    with pytest.raises(ThumbwiseError, match=r"The last run, run-1, has ended \(rejected\)"):
        unfinished(home)


def test_a_dry_run_says_how_many_corrections_are_set_aside(tmp_path: Path) -> None:
    line = {"type": "demonstration", "user": "x", "person": "programs", "group": "g", "prompt": [], "text": "Paris."}
    lines = [json.loads(line) | {"person": "browser:a"} for line in SNAPSHOT.decode().splitlines()]
    told = [*lines, *({**line, "id": str(n)} for n in range(60))]
    said = plan(tmp_path, FakeAssistant("".join(json.dumps(line) + "\n" for line in told).encode()), min_votes=5)
    assert (said.corrections, said.corrections_aside) == (0, 60)
    assert "Corrected replies set aside, over one person's part: 60." in said.text()


def test_a_dry_run_with_too_little_says_so_and_an_unknown_name_is_refused(tmp_path: Path) -> None:
    said = plan(tmp_path, FakeAssistant(SNAPSHOT), min_votes=100)
    assert said.algorithm is None
    assert said.why.endswith("collect more votes.")
    assert said.last_run_seconds is None
    with pytest.raises(NotFound, match="no policy algorithm named 'magic'"):
        plan(tmp_path, FakeAssistant(SNAPSHOT), "magic")


def test_a_dry_run_says_how_many_votes_do_not_count_and_why(tmp_path: Path) -> None:
    said = plan(tmp_path, FakeAssistant(SNAPSHOT), min_votes=20, max_reply_tokens=7)
    assert (said.algorithm, said.telling, said.other_settings, said.too_long) == (None, 0, 0, 39)
    assert said.told in said.text()
    assert said.told in said.why
    assert "Raise the setting" in said.told


def test_the_commands_last_line_says_what_the_dry_run_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBWISE_HOME", str(tmp_path))
    monkeypatch.setattr("thumbwise.cli.train.running", lambda home: "http://assistant")
    found = plan(tmp_path, FakeAssistant(SNAPSHOT), min_votes=20)
    monkeypatch.setattr("thumbwise.training.job.dry_run.dry_run", lambda *given: found)
    answer = CliRunner().invoke(main, ["train", "--dry-run"])
    assert answer.exit_code == 0
    assert answer.stdout == f"dry run: {found.why}\n"
    assert json.loads(CliRunner().invoke(main, ["train", "--dry-run", "--json"]).stdout)["outcome"] == "dry_run"
    assert CliRunner().invoke(main, ["train", "--dry-run", "--resume"]).exit_code == 2
    refused = CliRunner().invoke(main, ["train", "--dry-run", "--ptx", __file__])
    assert (refused.exit_code, "set train.ptx" in refused.stderr) == (2, True)


# --- the schedule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86400), ("90m", 5400), ("7d", 604800), ("1.5m", 90)])
def test_an_interval_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["24", "h", "1w", "-1h", "59s", "24h later"])
def test_what_is_no_interval_is_refused_with_the_settings_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ThumbwiseError, match=r"train_every.*such as 24h"):
        Settings.load(Home.find(tmp_path), train_every=text)


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(Store(tmp_path / "feedback.db"))


def test_a_run_is_due_an_interval_after_the_last_one_began(tmp_path: Path, versions: Versions) -> None:
    ready = True
    schedule = Schedule(Home.find(tmp_path), 3600, versions.runs, lambda: ready)
    now = time.time()
    assert schedule.due(now + 3590) is None
    assert schedule.due(now + 3610) == ["train", "--new-votes"]
    run = versions.runs.begin("s", 60)
    versions.runs.end(run.id, run.lease, "rejected", "")
    later = Schedule(Home.find(tmp_path), 3600, versions.runs, lambda: ready)  # the assistant was restarted
    later.begun += 1800
    assert later.due(now + 3590) is None
    assert later.due(now + 3610) == ["train", "--new-votes"]
    ready = False
    assert later.due(now + 3610) is None


def test_a_run_that_was_cut_off_is_gone_on_with_and_a_live_one_left_alone(tmp_path: Path, versions: Versions) -> None:
    schedule = Schedule(Home.find(tmp_path), 3600, versions.runs, lambda: True)
    run = versions.runs.begin("s", 60)
    assert schedule.due(time.time()) is None
    versions.runs.renew(run.id, run.lease, -1)
    assert schedule.due(time.time()) == ["train", "--resume"]


@pytest.fixture
def day_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Set the clock back by a day."""
    now, now_ns = time.time, time.time_ns

    def set_back() -> None:
        monkeypatch.setattr(time, "time", lambda: now() - 86_400)
        monkeypatch.setattr(time, "time_ns", lambda: now_ns() - 86_400 * 10**9)

    return set_back


@pytest.mark.parametrize("restarted", [False, True])
def test_a_killed_runs_lease_ends_though_the_clock_was_set_back(
    tmp_path: Path, versions: Versions, day_before: Callable[[], None], monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    versions.runs.begin("s", 60)
    day_before()
    runs = Runs(versions.store) if restarted else versions.runs
    with pytest.raises(Conflict, match="under way"):
        runs.begin("s", 60)
    later = time.monotonic() + 121
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert runs.interrupted()
    runs.begin("s", 60)
    (killed, _) = versions.store.rows("SELECT outcome, ended_at FROM runs ORDER BY number")
    assert killed["outcome"] == "failed"
    assert killed["ended_at"] is not None


def test_a_live_run_is_left_alone_though_the_clock_was_set_forward(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.runs.begin("s", 60)
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert not versions.runs.interrupted()
    with pytest.raises(Conflict, match="under way"):
        versions.runs.begin("s", 60)


def test_a_clock_that_is_set_back_delays_the_next_run_by_no_more_than_an_interval(
    tmp_path: Path, versions: Versions, day_before: Callable[[], None]
) -> None:
    schedule = Schedule(Home.find(tmp_path), 3600, versions.runs, lambda: True)
    run = versions.runs.begin("s", 60)
    versions.runs.end(run.id, run.lease, "rejected", "")
    day_before()
    assert schedule.due(time.time()) is None
    assert schedule.due(time.time() + 3590) is None
    assert schedule.due(time.time() + 3610) == ["train", "--new-votes"]
    run = versions.runs.begin("s", 60)  # registered before the other one, by the clock
    versions.runs.end(run.id, run.lease, "rejected", "")
    assert schedule.due(time.time() + 3590) is None


@pytest.mark.slow
async def test_a_run_that_cannot_be_gone_on_with_is_given_up_and_the_schedule_goes_on(tmp_path: Path, versions) -> None:
    schedule = Schedule(Home.find(tmp_path), 3600, versions.runs, lambda: True)
    schedule.pause = 0
    versions.runs.begin("s", -1)  # killed before it had a folder
    assert schedule.due(time.time()) == ["train", "--resume"]
    await schedule._train(["train", "--resume"])
    assert schedule.due(time.time()) is None
    assert schedule.due(time.time() + 3610) == ["train", "--new-votes"]
    (run,) = versions.store.rows("SELECT outcome, reason FROM runs")
    assert run["outcome"] == "failed"
    assert run["reason"].startswith("it could not be resumed: Error: No assistant runs on")


@pytest.mark.slow
async def test_a_run_that_was_killed_at_work_is_not_given_up(
    tmp_path: Path, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(Home.find(tmp_path), 3600, versions.runs, lambda: True)
    run = versions.runs.begin("s", 3600)

    async def pause(seconds: float) -> None:
        versions.runs.renew(run.id, run.lease, -1)

    monkeypatch.setattr(asyncio, "sleep", pause)
    await schedule._train(["train", "--resume"])
    assert schedule.due(time.time()) == ["train", "--resume"]
    (found,) = versions.store.rows("SELECT id, outcome FROM runs")
    assert (found["id"], found["outcome"]) == (run.id, None)


# --- what the record says of a run that is resumed --------------------------------------------------------


def test_a_lease_that_ran_out_while_the_machine_slept_is_renewed_unless_another_run_began(versions: Versions) -> None:
    run = versions.runs.begin("s", -1)
    versions.runs.renew(run.id, run.lease, 60)
    assert versions.runs.check_lease(run.lease) == run.id
    versions.runs.renew(run.id, run.lease, -1)
    other = versions.runs.begin("s", 60)
    with pytest.raises(Conflict, match="train --resume"):
        versions.runs.renew(run.id, run.lease, 60)
    assert versions.runs.check_lease(other.lease) == other.id


def test_a_resumed_run_gets_a_fresh_lease_and_the_old_one_is_void(versions: Versions) -> None:
    run = versions.runs.begin("s", -1)  # killed, and its lease ran out
    answer = versions.runs.resume(run.id, 60)
    assert (answer["outcome"], answer["version"]) == (None, None)
    assert versions.runs.check_lease(answer["lease"]) == run.id
    with pytest.raises(ThumbwiseError, match="not valid any more"):
        versions.runs.check_lease(run.lease)
    versions.runs.end(run.id, answer["lease"], "failed", "The disk is full.")
    assert versions.runs.resume(run.id, 60)["lease"] not in (None, answer["lease"])


def test_a_run_that_came_to_its_end_keeps_it_and_an_unknown_one_is_not_found(versions: Versions) -> None:
    run = versions.runs.begin("s", 60)
    versions.runs.end(run.id, run.lease, "rejected", "Too long.")
    assert versions.runs.resume(run.id, 60) == {
        "lease": None, "version": None, "outcome": "rejected", "reason": "Too long.",
    }  # fmt: skip
    with pytest.raises(NotFound, match="no training run 'run_x'"):
        versions.runs.resume("run_x", 60)


def test_a_run_is_not_resumed_while_another_is_live(versions: Versions) -> None:
    old = versions.runs.begin("s", -1)
    new = versions.runs.begin("s", 60)
    with pytest.raises(ThumbwiseError, match=f"{new.id} is under way"):
        versions.runs.resume(old.id, 60)
