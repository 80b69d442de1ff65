"""The rehearsal as an operator runs it, on the session's vLLM with the two-layer model: killed, resumed, read."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from plugin_files import put
from tiny_engine import TinyEngine
from tiny_model import ROUND

from thumbwise.cli.main import main
from thumbwise.home import Home, running_url
from thumbwise.training.rehearsal import home as rehearsal_home
from thumbwise.training.rehearsal.steps import _config, problem, total

COMMAND = Path(sys.executable).with_name("thumbwise")
VOTES = 60
JUDGE = """
from thumbwise import hookimpl

def letters(prompt, responses):
    return [response.count("e") / max(1, len(response)) for response in responses]

@hookimpl
def register_judges(register):
    register("letters", letters)
    register("broken", lambda prompt, responses: 1 / 0)
"""
ROUND_KEYS = {
    "round", "votes", "rm_accuracy", "kl", "win_rate", "win_rate_low", "win_rate_high", "n_eval",
    "best_of_16_win_rate", "finish_rate", "start_finish_rate", "repetition", "start_repetition", "promoted",
    "version", "train_seconds", "tokens", "kl_token", "begun_from", "kl_begun", "rm_reported", "rm_error",
    "best_of_16_low", "best_of_16_high", "length", "start_length", "reason",
}  # fmt: skip


def make_home(root: Path, config: str) -> Home:
    """A home with its settings and a loose plugin file that brings a judge."""
    home = Home.find(root)
    home.config.write_text(config)
    put(home, "letters", JUDGE)
    return home


def test_another_setting_or_plugin_is_another_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path, "")
    found = [_config(home), _config(home)]
    monkeypatch.setenv("THUMBWISE_TRAIN__PTX", "0.3")
    found.append(_config(home))
    put(home, "letters", JUDGE + "\n")
    found.append(_config(home))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def write_prompts(path: Path) -> Path:
    things = ("cats", "dogs", "rain", "bread", "tea", "boats")
    rows = [{"prompt": f"Tell me about {thing} number {n}.", "group": thing} for thing in things for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Rehearsed:
    """What two attempts at one rehearsal left: the first was killed in mid-training."""

    home: Home
    folder: Path
    first_said: Sequence[str]
    done: subprocess.CompletedProcess[str]
    report: dict[str, Any]

    def round_manifest(self, number: int) -> dict[str, Any]:
        version = self.report["rounds"][number - 1]["version"]
        found: dict[str, Any] = json.loads((self.folder / "home" / "policies" / version / "manifest.json").read_text())
        return found

    def metrics(self, number: int) -> list[dict[str, float]]:
        run = json.loads((self.folder / f"round-{number}" / "train.json").read_text())["run_id"]
        path = self.folder / "home" / "runs" / run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


def kill_in_mid_training(process: subprocess.Popen[str]) -> list[str]:
    """Read what it says until PPO's first iteration is done, then kill it (-9); everything below it must end too."""
    said = []
    for line in process.stderr or ():
        said.append(line)
        if "training: 1/" in line:
            process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    return said


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_engine: TinyEngine) -> Rehearsed:
    folder = tmp_path_factory.mktemp("rehearsal")
    config = f'model = "{tiny_model}"\nengine_url = "unix:{tiny_engine.uds}"\nchat_max_tokens = 400\n{ROUND}'
    home = make_home(folder / "home", config)
    arguments = ["rehearse", "--judge", "letters", "--votes", str(VOTES), "--noise", "0.1", "--rounds", "2", "--json"]
    arguments += ["--max-tokens", "24", "--prompts", str(write_prompts(folder / "prompts.jsonl"))]
    environment = os.environ | {"THUMBWISE_HOME": str(home.root), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    said = kill_in_mid_training(subprocess.Popen([COMMAND, *arguments], **pipes))
    with tiny_engine.paced():
        done = subprocess.run([COMMAND, *arguments], **pipes, timeout=500)
    assert done.returncode == 0, done.stderr
    (made,) = home.runs.glob("rehearsal-*")
    return Rehearsed(home, made, said, done, json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_a_rehearsal_that_was_killed_goes_on_where_it_stopped(rehearsed: Rehearsed) -> None:
    assert "starts in" in rehearsed.first_said[0]
    said = rehearsed.done.stderr
    assert "continues where it stopped in" in said
    assert "replies of start" not in said  # done before
    assert f"{VOTES}/{VOTES}" in said
    with sqlite3.connect(rehearsed.folder / "home" / "feedback.db") as db:
        assert db.execute("SELECT count(*), count(DISTINCT idempotency_key) FROM feedback").fetchone() == (120, 120)
        runs = db.execute("SELECT number, outcome FROM runs ORDER BY number").fetchall()
    assert runs == [(1, "promoted"), (2, "promoted")]  # the run that was killed was resumed, not begun anew


@pytest.mark.engine
def test_its_last_line_is_the_object_that_the_contract_names(rehearsed: Rehearsed) -> None:
    assert rehearsed.done.stdout.count("\n") == 1
    rounds = rehearsed.report["rounds"]
    assert [row["round"] for row in rounds] == [1, 2]
    assert all(set(row) >= ROUND_KEYS for row in rounds)
    for row in rounds:
        assert row["votes"] == VOTES
        assert row["n_eval"] >= 200
        assert row["rm_pairs"] >= 150
        assert row["win_rate_low"] <= row["win_rate"] <= row["win_rate_high"]
        assert row["promoted"] is True
    assert set(rehearsed.report["swap"]) == {"streams", "dropped", "mixed"}
    assert rehearsed.report["seconds"] > sum(row["train_seconds"] for row in rounds)


@pytest.mark.engine
def test_replies_streamed_across_each_swap_and_none_was_dropped_or_mixed(rehearsed: Rehearsed) -> None:
    assert rehearsed.report["swap"]["streams"] >= 8
    assert (rehearsed.report["swap"]["dropped"], rehearsed.report["swap"]["mixed"]) == (0, 0)
    for number in (1, 2):
        swap = json.loads((rehearsed.folder / f"round-{number}" / "swap.json").read_text())
        assert swap["seen"]
        assert swap["replies"] > swap["streams"]


@pytest.mark.engine
def test_the_second_round_trains_a_fresh_adapter_on_both_rounds_votes(rehearsed: Rehearsed) -> None:
    first, second = rehearsed.round_manifest(1), rehearsed.round_manifest(2)
    assert (first["n_labels"], second["n_labels"]) == (VOTES, 2 * VOTES)
    assert (first["stable"], second["stable"]) == ("policy-0000", first["version"])
    for number in (1, 2):  # it begins as the reference, bit for bit
        metrics = rehearsed.metrics(number)
        assert metrics[0]["kl"] == 0.0
        assert metrics[1]["kl"] != 0.0  # an estimate: it may be under 0


@pytest.mark.engine
def test_the_report_has_a_table_twenty_replies_before_and_after_and_curves(rehearsed: Rehearsed) -> None:
    text = (rehearsed.folder / "report.md").read_text()
    assert "| win rate over start |" in text
    assert text.count("- before: ") == text.count("- after: ") == 20
    assert (rehearsed.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| win rate over start |" in rehearsed.done.stderr


@pytest.mark.engine
def test_the_operators_own_database_and_versions_are_never_touched(rehearsed: Rehearsed) -> None:
    home = rehearsed.home
    assert not home.database.exists()
    assert list(home.policies.iterdir()) == list(home.snapshots.iterdir()) == []
    assert [path.name for path in home.runs.iterdir()] == [rehearsed.folder.name]
    assert running_url(Home(rehearsed.folder / "home")) is None
    assert "your database, versions and runs do not change" in rehearsed.done.stderr


# --- what is refused, before anything is begun -------------------------------------------------------------


def refused(monkeypatch: pytest.MonkeyPatch, home: Home, *arguments: str) -> Result:
    monkeypatch.setenv("THUMBWISE_HOME", str(home.root))
    answer = CliRunner().invoke(main, ["rehearse", *arguments])
    assert answer.exit_code == 1, answer.output
    return answer


def test_an_unknown_judge_or_algorithm_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path, "")
    said = refused(monkeypatch, home, "--judge", "nobody").stderr
    assert "There is no judge named 'nobody' (known: broken, concise, letters, sentiment)" in said
    said = refused(monkeypatch, home, "--algorithm", "magic").stderr
    assert "There is no policy algorithm named 'magic'" in said
    said = refused(monkeypatch, home, "--judge", "broken").stderr
    assert "The judge broken failed (ZeroDivisionError: division by zero): fix the plugin that brings it." in said
    assert list(home.runs.iterdir()) == []


def test_a_bad_line_of_prompts_is_named_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path / "home", "")
    path = write_prompts(tmp_path / "prompts.jsonl")
    path.write_text(path.read_text() + '{"question": "?"}\n')
    said = refused(monkeypatch, home, "--prompts", str(path)).stderr
    assert "73" in said
    assert "Traceback" not in said


def test_wrong_settings_are_told_before_anything_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path, "no_such_setting = 1\n")
    assert "no_such_setting" in refused(monkeypatch, home).stderr
    assert "no_such_setting" in refused(monkeypatch, home, "--chat-tokens", "48").stderr
    home.config.write_text('train.prompts_file = "nowhere.jsonl"\n')
    assert "There is no file nowhere.jsonl" in refused(monkeypatch, home).stderr
    home.config.write_text('train.rollouts = "magic"\n')
    assert "There is no rollout backend named 'magic'" in refused(monkeypatch, home).stderr
    assert list(home.runs.iterdir()) == []


# --- holding the job ---------------------------------------------------------------------------------------------


def test_a_job_that_ends_instead_of_stopping_is_not_waited_for(tmp_path: Path) -> None:
    job = rehearsal_home.start(["train", "--resume"], os.environ | {"THUMBWISE_HOME": str(tmp_path)})
    rehearsal_home.wait_held(job)
    assert job.wait(timeout=60) == 1  # no assistant is running
    rehearsal_home.let_go_on(job)


# --- what counts as failed -----------------------------------------------------------------------------------


def swap(**changes: Any) -> dict[str, Any]:
    return {"promoted": True, "seen": True, "streams": 12, "dropped": 0, "mixed": 0} | changes


@pytest.mark.parametrize(
    ("swaps", "says"),
    [
        ([swap(), swap(streams=8)], ""),
        ([swap(streams=7)], "Only 7 replies were open across a swap, fewer than 8"),
        ([swap(), swap(dropped=1)], "1 replies were dropped and 0 were mixed"),
        ([swap(mixed=2)], "0 replies were dropped and 2 were mixed"),
        ([swap(promoted=False, streams=0)], ""),
    ],
)
def test_a_dropped_or_mixed_reply_or_too_few_streams_fail_the_rehearsal(swaps: list[dict[str, Any]], says: str) -> None:
    assert problem(swaps).startswith(says)
    assert bool(problem(swaps)) == bool(says)
    assert total(swaps)["dropped"] == sum(swap["dropped"] for swap in swaps)
