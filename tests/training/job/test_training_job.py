"""The training job from end to end on a two-layer model, against a stand-in for the assistant's ops API."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from plugin_files import put
from tiny_model import make_tiny_model
from training_world import CHAT, FakeAssistant, make_snapshot, train

from thumbwise.base_model.weights import base_modules
from thumbwise.contracts import GateReport, RunContext
from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.feedback.records import canonical
from thumbwise.home import Home
from thumbwise.names import BASE
from thumbwise.settings import Settings
from thumbwise.training.job import job, reward_fitting
from thumbwise.training.job.job import run_training
from thumbwise.training.job.reward_fitting import CALIBRATION
from thumbwise.training.policy import stepping
from thumbwise.training.policy.losses import MissingEnd, ends_wanted
from thumbwise.training.run.folders import TrainResult
from thumbwise.training.run.progress import RunProgress
from thumbwise.versions import artifacts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def test_a_round_makes_a_candidate_that_serving_accepts_and_promotes_it(tmp_path: Path, model: Path) -> None:
    assistant = FakeAssistant(make_snapshot(60))
    result = train(tmp_path, model, assistant, curves=True)
    assert result.outcome == "promoted", result.reason
    assert assistant.promoted == [{"version": result.version, "expect_stable": "policy-0000", "lease": "lease-1"}]
    assert [f["outcome"] for f in assistant.finished] == ["promoted"]
    files = assistant.policies[str(result.version)]
    manifest = artifacts.check(str(result.version), files, modules=base_modules(model), base_digest="base", max_rank=32)
    assert manifest["snapshot_id"] == hashlib.sha256(assistant.snapshot).hexdigest()
    assert manifest["n_labels"] == 63 + 16
    assert manifest["config"]["iterations"] == 2
    assert manifest["parent"] == "policy-0000"
    assert len(manifest["probes"]) == 8
    assert all(len(p["top_ids"]) == len(p["base_top_logprobs"]) == 20 for p in manifest["probes"])
    assert {g["name"] for g in manifest["gates"]} == {
        "rm_accuracy", "win_rate_proxy", "kl", "chat_kl", "base_kl", "length", "chat_length", "finish_rate",
        "chat_finish_rate", "repetition", "chat_repetition",
    }  # fmt: skip
    assert result.metrics["length"] <= assistant.max_tokens < result.metrics["chat_length"] <= CHAT
    ends = json.loads((tmp_path / "home" / "runs" / "run-1" / "fit.json").read_text())["finish_rate"]
    ended = ends * (CALIBRATION + 2 * 63 + 16)  # of those sampled anew, and of all drafts that were judged
    assert ended > 0.5
    assert ended == pytest.approx(round(ended))
    assert result.metrics["rm_accuracy"] > 0.65
    run = tmp_path / "home" / "runs" / "run-1"
    assert (run / "snapshot.jsonl").read_bytes() == assistant.snapshot
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert {row["metric"] for row in json.loads((run / "health.json").read_text())} >= {
        "kl_token",
        "rm_accuracy",
        "proxy_excess",
    }
    assert (run / "curves.png").exists()
    assert not (run / "checkpoints").exists()  # what it would have gone on from
    assert json.loads((run / "result.json").read_text())["outcome"] == "promoted"


@pytest.mark.slow
def test_the_same_snapshot_and_seed_give_the_same_bytes_and_another_seed_others(tmp_path: Path, model: Path) -> None:
    versions = [
        train(tmp_path / str(n), model, FakeAssistant(make_snapshot(40)), seed=seed).version
        for n, seed in enumerate((0, 0, 1))
    ]
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.slow
def test_a_later_round_is_judged_against_the_stable_adapter_that_it_fetches(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "tidy", lambda folder: None)
    assistant = FakeAssistant(make_snapshot(40))
    first = train(tmp_path, model, assistant)
    assistant.stable, assistant.number = str(first.version), 2
    second = train(tmp_path, model, assistant, seed=3)
    assert second.outcome == "promoted", second.reason
    assert assistant.promoted[1]["expect_stable"] == first.version
    manifest = json.loads(assistant.policies[str(second.version)]["manifest.json"])
    assert manifest["stable"] == first.version
    fetched = tmp_path / "home" / "runs" / "run-2" / "stable" / "adapter_model.safetensors"
    assert fetched.read_bytes() == assistant.policies[str(first.version)]["adapter_model.safetensors"]


@pytest.mark.slow
def test_replies_are_to_end_somewhat_more_often_than_the_references_and_nearly_as_often_as_stables(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steered = []

    def noted(context: RunContext) -> MissingEnd:
        steered.append(context.finish_rate)
        return MissingEnd(0.0, None)

    monkeypatch.setattr(reward_fitting, "finish_rate_at", lambda lengths, replies: 0.1)
    monkeypatch.setattr(reward_fitting, "finish_rate", lambda replies: 0.9)
    monkeypatch.setattr(stepping, "missing_end", noted)
    assistant = FakeAssistant(make_snapshot(40))
    first = train(tmp_path, model, assistant)
    assistant.stable, assistant.number = str(first.version), 2
    train(tmp_path, model, assistant, {"max_finish_loss": 0.06})
    assistant.snapshot, assistant.number, assistant.stable = make_snapshot(40, corrections=8), 3, BASE
    train(tmp_path, model, assistant, {"max_finish_loss": 0.06}, sft_demonstrations=5)
    assert steered == [ends_wanted(0.1), 0.9 - 0.06 / 6, 0.9 - 0.06 / 6]


@pytest.mark.slow
def test_where_nobody_has_voted_since_nothing_is_trained_if_one_asks_for_that(tmp_path: Path, model: Path) -> None:
    assistant = FakeAssistant(make_snapshot(40))
    assert train(tmp_path, model, assistant, new_votes=True).outcome == "promoted"
    prompt = [{"role": "user", "content": "Hi\u2028?"}]
    asked = canonical({"type": "prompt", "user": "u", "group": "g", "prompt": prompt})
    said = canonical({"type": "comment", "user": "u", "group": "g", "prompt": prompt, "text": "Good."})
    assistant.snapshot, assistant.number = assistant.snapshot + f"{asked}\n{said}\n".encode(), 2
    again = train(tmp_path, model, assistant, new_votes=True)
    assert (again.outcome, "Nobody has voted since run-1" in again.reason) == ("too_little_data", True)
    lines = [json.loads(line) for line in make_snapshot(40).decode().splitlines()]
    upgraded = [canonical(line | {"person": "browser:before"}) for line in sorted(lines, key=lambda line: line["type"])]
    assistant.snapshot, assistant.number = "".join(line + "\n" for line in upgraded).encode(), 3
    assert "Nobody has voted since run-1" in train(tmp_path, model, assistant, new_votes=True).reason
    assistant.snapshot, assistant.number = make_snapshot(41), 4
    assert train(tmp_path, model, assistant, new_votes=True).outcome == "promoted"


def test_a_rank_that_could_not_be_served_is_refused_before_the_round(tmp_path: Path, model: Path) -> None:
    assistant = FakeAssistant(make_snapshot(40))
    with pytest.raises(ThumbwiseError, match=r"rank 64 \(train.lora_rank\) cannot be served"):
        train(tmp_path, model, assistant, lora_rank=64)
    assert assistant.finished == []


def test_a_plugin_that_changes_the_base_model_publishes_nothing(tmp_path: Path, model: Path) -> None:
    put(
        Home.find(tmp_path / "home"),
        "changes",
        "from thumbwise import hookimpl\nfrom thumbwise.plugins.best_of_n import BestOfN\n\n"
        "class Changes(BestOfN):\n"
        "    def step(self, iteration):\n"
        "        self.context.backbone.base.get_output_embeddings().weight.data.add_(1e-3)\n"
        "        return super().step(iteration)\n\n"
        "@hookimpl\ndef register_policy_algorithms(register):\n    register('changes', Changes)\n",
    )
    assistant = FakeAssistant(make_snapshot(40))
    result = train(tmp_path, model, assistant, algorithm="changes")
    assert result.outcome == "failed"
    assert "changed the frozen base weights" in result.reason
    assert assistant.policies == {}


def test_too_little_data_ends_the_run_with_one_sentence(tmp_path: Path, model: Path) -> None:
    assistant = FakeAssistant(make_snapshot(15, ties=1))
    result = train(tmp_path, model, assistant)
    assert result.outcome == "too_little_data"
    assert "19 votes that say which reply is better, and training begins at 20" in result.reason
    assert assistant.finished == [{"lease": "lease-1", "outcome": "too_little_data", "reason": result.reason}]
    assert assistant.policies == {}


def test_a_second_run_is_refused_with_the_assistants_sentence(tmp_path: Path, model: Path) -> None:
    with pytest.raises(Conflict, match="Training run r0 is under way"):
        train(tmp_path, model, FakeAssistant(make_snapshot(40), busy=True))


def test_a_lost_lease_stops_the_run(tmp_path: Path, model: Path) -> None:
    assistant = FakeAssistant(make_snapshot(40), lease_lost=True, lease_seconds=0.004)
    result = train(tmp_path, model, assistant)
    assert result.outcome == "failed"
    assert "lease is not valid" in result.reason
    assert assistant.policies == {}
    assert assistant.beats == 1


def test_a_failed_gate_rejects_the_candidate_with_its_sentence(tmp_path: Path, model: Path) -> None:
    assistant = FakeAssistant(make_snapshot(40))
    result = train(tmp_path, model, assistant, gates={"max_length": 0.01, "min_length": 0.0})
    assert result.outcome == "rejected"
    assert "(level 0.1); 0 to 0.01 is allowed" in result.reason
    assert [r["version"] for r in assistant.rejected] == [result.version]
    assert assistant.promoted == []
    assert assistant.finished[0]["outcome"] == "rejected"


@pytest.mark.slow
@pytest.mark.parametrize("status", [409, 422])
def test_a_refused_promotion_is_a_rejection_with_that_reason(tmp_path: Path, model: Path, status: int) -> None:
    assistant = FakeAssistant(make_snapshot(40), promotion=status)
    result = train(tmp_path, model, assistant)
    assert (result.outcome, result.reason) == ("rejected", "It answers like the base model.")


def test_a_failing_reward_plugin_fails_the_run_with_one_sentence(tmp_path: Path, model: Path) -> None:
    home = Home.find(tmp_path / "home")
    raises = "def shape_reward(samples):\n    raise OSError('no such lexicon')\n"
    put(home, "broken", f"from thumbwise import hookimpl\n\n@hookimpl\n{raises}")
    assistant = FakeAssistant(make_snapshot(40))
    result = train(tmp_path, model, assistant)
    assert result.outcome == "failed"
    assert "broken" in result.reason
    assert "no such lexicon" in result.reason
    assert "\n" not in result.reason
    assert assistant.finished[0]["outcome"] == "failed"
    assert "Traceback" in (home.runs / "run-1" / "error.log").read_text()
    assert assistant.policies == {}


def test_the_kl_budget_ends_training_and_goes_back_to_the_last_policy_within_it(tmp_path: Path, model: Path) -> None:
    assistant = FakeAssistant(make_snapshot(40))
    changes = {"kl_budget": 0.007, "learning_rate": 3e-2, "iterations": 6, "warmup": 0, "kl_coefficient": 0.0}
    result = train(tmp_path, model, assistant, **changes)
    assert result.metrics["stopped"] == "stopped:kl"
    assert result.metrics["kl_token"] <= 0.007
    rows = (tmp_path / "home" / "runs" / "run-1" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) < 6
    assert json.loads(rows[-1])["kl_token"] > 0.007


def test_another_base_model_than_the_served_one_is_refused(tmp_path: Path, model: Path) -> None:
    result = train(tmp_path, model, FakeAssistant(make_snapshot(40), digest="another"))
    assert result.outcome == "failed"
    assert "is not the one that is served" in result.reason


def test_a_damaged_snapshot_is_refused(tmp_path: Path, model: Path) -> None:
    class Damaging(FakeAssistant):
        def answer(self, request: httpx.Request) -> httpx.Response:
            answer = super().answer(request)
            return httpx.Response(200, content=b"{}\n") if "/snapshots/" in request.url.path else answer

    result = train(tmp_path, model, Damaging(make_snapshot(40)))
    assert result.outcome == "failed"
    assert "arrived damaged" in result.reason


def test_an_unknown_algorithm_is_refused_before_a_run_is_registered(tmp_path: Path) -> None:
    home = Home.find(tmp_path)
    with pytest.raises(ThumbwiseError, match="There is no policy algorithm named 'magic'"):
        run_training(home, Settings(), "http://assistant", "secret", "magic")


def test_the_command_needs_a_running_assistant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBWISE_HOME", str(tmp_path))
    from thumbwise.cli.main import main

    answer = CliRunner().invoke(main, ["train"])
    assert answer.exit_code == 1
    assert answer.stderr.count("\n") == 1
    assert "No assistant runs on" in answer.stderr


@pytest.mark.parametrize(
    ("outcome", "status"), [("promoted", 0), ("rejected", 0), ("too_little_data", 0), ("failed", 1)]
)
def test_the_commands_last_line_and_exit_status_say_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Any, status: int
) -> None:
    monkeypatch.setenv("THUMBWISE_HOME", str(tmp_path))
    monkeypatch.setattr("thumbwise.cli.train.running", lambda home: "http://assistant")
    asked: list[tuple[Any, ...]] = []

    def fake(home: Home, settings: Settings, url: str, token: str, algorithm: str, **rest: Any) -> TrainResult:
        asked.append((url, token, algorithm, settings.reward))
        return TrainResult(outcome, "Because.", "run-1", gates=[GateReport("kl", True, 1.0, 15.0, "Near enough.")])

    monkeypatch.setattr("thumbwise.training.job.job.run_training", fake)
    from thumbwise.cli.main import main

    answer = CliRunner().invoke(main, ["train", "--reward", "mine"])
    assert answer.exit_code == status
    assert answer.stdout.splitlines()[-1] == f"{outcome.replace('_', ' ')}: Because."
    assert "passed  kl: Near enough." in answer.stderr
    assert asked == [("http://assistant", Home.find(tmp_path).job_token(), "auto", "mine")]
    answer = CliRunner().invoke(main, ["train", "--json"])
    assert json.loads(answer.stdout.splitlines()[-1])["outcome"] == outcome


def test_without_a_terminal_progress_is_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress() as progress:
        progress.stage("ppo", 3)
        for done in (1, 2, 3):
            progress.update(done, 3, {"reward": 0.25, "kl": 1.5, "length": 40.0})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.partition("] ")[2][:40] for line in shown.err.splitlines()] == [
        "ppo",
        "ppo: 1/3  reward 0.25  KL 1.50  length 4",
        "ppo: 3/3  reward 0.25  KL 1.50  length 4",
    ]


def test_parts_of_a_stage_are_told_now_and_then_and_quick_ones_not_at_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("thumbwise.training.run.progress.time.monotonic", lambda: now)
    with RunProgress() as progress:
        progress.stage("gates")
        for done in range(1, 11):
            progress.part("replies read", done, 10)
        assert capsys.readouterr().err == "[    0 s] gates\n"
        for done in range(1, 11):
            now += 7.0
            progress.part("replies written", done, 10)
        told = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
        assert [line.partition("  ")[0] for line in told] == [
            f"gates, replies written: {done}/10" for done in (3, 6, 9)
        ]
        assert told[0].endswith("about 0.8 minutes left")
        progress.stage("ppo", 3)
        now += 100.0
        progress.part("replies read", 5, 10)
        progress.update(2, 3, {})
        assert [line.partition("] ")[2].strip() for line in capsys.readouterr().err.splitlines()] == ["ppo", "ppo: 2/3"]


def test_every_stage_of_a_round_that_takes_minutes_says_how_far_it_is(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, dict[str, list[tuple[int, int]]]] = {}

    def part(progress: RunProgress, what: str, done: int, total: int) -> None:
        told.setdefault(progress.name, {}).setdefault(what, []).append((done, total))

    monkeypatch.setattr(RunProgress, "part", part)
    snapshot = make_snapshot(40, corrections=12)
    train(tmp_path, model, FakeAssistant(snapshot), {"max_base_kl": 1e3}, sft_demonstrations=10, iterations=1)
    assert set(told["sft"]) == {"replies written", "updates"}
    assert set(told["reward model"]) == {
        "replies read",
        "folds of cross-validation",
        "models in order",
        "heads",
        "replies written",
    }
    assert set(told["replies of stable"]) == {"replies written"}
    assert set(told["gates"]) == {"replies written", "replies read", "replies compared"}
    for parts in told.values():
        for counts in parts.values():
            assert all(0 <= done <= total for done, total in counts)
    written = told["replies of stable"]["replies written"]
    assert len(written) > 10  # also while a batch is being written
    assert written[-1] == (4, 4)  # the chat replies


def test_the_time_left_is_counted_from_the_first_step_that_was_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("thumbwise.training.run.progress.time.monotonic", lambda: now)
    with RunProgress() as progress:
        progress.stage("training")
        now = 600.0  # getting ready says nothing about the steps
        progress.update(21, 25, {})
        assert "left" not in capsys.readouterr().err
        now = 660.0
        progress.update(22, 25, {})
        assert "about 3.0 minutes left" in capsys.readouterr().err
        progress.update(8, 48, {})  # another count
        now = 680.0
        progress.update(16, 48, {})
        assert "about 1.3 minutes left" in capsys.readouterr().err
