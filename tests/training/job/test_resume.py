"""A run that was cut off at any stage is resumed, and ends with the same adapter, bit for bit."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_world
from safetensors.torch import load_file
from tiny_model import make_tiny_model
from training_world import CHAT, SMALL, FakeAssistant, make_snapshot, train

from thumbwise import faults
from thumbwise.contracts import FitReport, RunContext, Sample
from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.training.evaluation.replies import mean_length
from thumbwise.training.job.round import Round
from thumbwise.training.run.checkpoints import Checkpoints, _pack
from thumbwise.training.run.folders import TrainResult, read_json, read_record, working, write_json

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
PLACES = (
    "registered", "snapshot", "reward_model", "checkpoint_half#2", "iteration#1", "iteration#2", "gates", "candidate",
    "published", "handed_over", "finished",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`fault("place#2")` asks for a kill there; here the kill is an exit that nothing catches."""

    def killed(pid: int, signal: int) -> None:
        raise SystemExit(signal)

    def ask(where: str | None) -> None:
        faults._passed.clear()
        if where is None:
            monkeypatch.delenv(faults.VARIABLE)
        else:
            monkeypatch.setenv(faults.VARIABLE, where)

    monkeypatch.setattr(faults.os, "kill", killed)
    return ask


def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / "runs" / "run-1"


def test_a_run_killed_at_every_stage_in_turn_ends_with_the_adapter_of_one_that_was_not(
    tmp_path: Path, model: Path, fault: Any
) -> None:
    whole = train(tmp_path / "whole", model, FakeAssistant(make_snapshot(40)), iterations=4)
    assistant, resume = FakeAssistant(make_snapshot(40)), False
    for place in PLACES:
        fault(place)
        with pytest.raises(SystemExit):
            train(tmp_path, model, assistant, iterations=4, resume=resume)
        resume = True
    fault(None)
    result = train(tmp_path, model, assistant, iterations=4, resume=True)
    assert (result.outcome, result.version) == ("promoted", whole.version)
    assert json.loads((run_folder(tmp_path) / "result.json").read_text())["version"] == whole.version
    rows = [json.loads(line) for line in (run_folder(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    before = (tmp_path / "whole" / "home" / "runs" / "run-1" / "metrics.jsonl").read_text().splitlines()
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert [row["kl"] for row in rows] == [json.loads(line)["kl"] for line in before]
    assert {p["version"] for p in assistant.promoted} == {whole.version}
    assert assistant.lease == len(PLACES)  # every time a fresh one, but where the assistant knew the end


@pytest.mark.parametrize("place", ["sft", "iteration#1"])
def test_a_run_that_began_with_sft_goes_on_from_the_reference_that_it_left(
    tmp_path: Path, model: Path, fault: Any, place: str
) -> None:
    snapshot, changes = make_snapshot(40, corrections=12), {"sft_demonstrations": 10, "sft_learning_rate": 1e-2}
    whole = train(tmp_path / "whole", model, FakeAssistant(snapshot), **changes)
    assistant = FakeAssistant(snapshot)
    fault(place)
    with pytest.raises(SystemExit):
        train(tmp_path, model, assistant, **changes)
    fault(None)
    assert train(tmp_path, model, assistant, resume=True).version == whole.version
    assert json.loads((run_folder(tmp_path) / "sft.json").read_text())["epoch"] > 0


@pytest.mark.parametrize("place", ["reward_model", "sft", "iteration#1", "gates"])
def test_a_round_that_began_from_stable_goes_on_from_it(tmp_path: Path, model: Path, fault: Any, place: str) -> None:
    corrections = 12 if place == "sft" else 0
    changes = {"begin": "stable", "sft_demonstrations": 10, "sft_learning_rate": 1e-2}
    first = FakeAssistant(make_snapshot(40))
    stable = str(train(tmp_path / "first", model, first, learning_rate=1e-2).version)

    def second() -> FakeAssistant:
        return FakeAssistant(make_snapshot(44, corrections=corrections), stable=stable, policies=dict(first.policies))

    whole = train(tmp_path / "whole", model, second(), **changes)
    assistant = second()
    fault(place)
    with pytest.raises(SystemExit):
        train(tmp_path, model, assistant, **changes)
    fault(None)
    assert whole.version is not None
    assert train(tmp_path, model, assistant, resume=True).version == whole.version


@pytest.mark.parametrize("algorithm", ["ppo", "best_of_n", "dpo", "kto", "rloo"])
def test_every_algorithm_goes_on_from_its_checkpoint(tmp_path: Path, model: Path, fault: Any, algorithm: str) -> None:
    whole = train(tmp_path / "whole", model, FakeAssistant(make_snapshot(40)), algorithm=algorithm, iterations=3)
    assistant = FakeAssistant(make_snapshot(40))
    fault("iteration#2")
    with pytest.raises(SystemExit):
        train(tmp_path, model, assistant, algorithm=algorithm, iterations=3)
    fault(None)
    # the name and the settings now given do not count: a run goes on as it began
    result = train(tmp_path, model, assistant, algorithm="auto", resume=True, iterations=9, seed=5)
    assert result.version == whole.version


def test_a_run_that_the_kl_budget_ended_ends_alike_when_resumed(tmp_path: Path, model: Path, fault: Any) -> None:
    changes = {"kl_budget": 0.007, "learning_rate": 3e-2, "iterations": 6, "warmup": 0, "kl_coefficient": 0.0}
    whole = train(tmp_path / "whole", model, FakeAssistant(make_snapshot(40)), **changes)
    assistant = FakeAssistant(make_snapshot(40))
    fault("gates")
    with pytest.raises(SystemExit):
        train(tmp_path, model, assistant, **changes)
    fault(None)
    result = train(tmp_path, model, assistant, resume=True)
    assert (result.version, result.metrics["stopped"]) == (whole.version, "stopped:kl")


def test_where_the_gates_refuse_the_last_policy_an_earlier_one_goes_on_resumed_or_not(
    tmp_path: Path, model: Path, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = itertools.cycle([1.1, 1.1, 0.1, 0.1])  # of drafts and chat, by the last policy, then by the earlier one

    def kl(context: RunContext, samples: list[Sample], adapter: str) -> float:
        return next(seen) * mean_length(samples)

    monkeypatch.setattr("thumbwise.training.evaluation.evaluate.kl_to_reference", kl)
    monkeypatch.setattr("thumbwise.training.job.job.tidy", lambda folder: None)
    changes = {"iterations": 4, "kl_budget": 1.2}
    gates = {"max_kl": 0.2}
    whole = train(tmp_path / "whole", model, FakeAssistant(make_snapshot(60)), gates, **changes)
    assert (whole.outcome, whole.metrics["stopped"]) == ("promoted", "stopped:gates")
    assert whole.version is not None
    folder = run_folder(tmp_path / "whole")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    number = max(n for n, row in enumerate(rows) if n and row["kl_token"] <= 0.9)
    earlier = Checkpoints(folder / "checkpoints").load(number)["policy"]
    published = load_file(folder / whole.version / "adapter_model.safetensors")
    assert len(earlier) == len(published)
    for name, weight in earlier.items():
        assert torch.equal(weight, published[f"base_model.model.{name.replace('.policy.', '.')}"])
    assistant = FakeAssistant(make_snapshot(60))
    fault("gates")
    with pytest.raises(SystemExit):
        train(tmp_path, model, assistant, gates, **changes)
    fault(None)
    assert train(tmp_path, model, assistant, resume=True).version == whole.version
    assert len(list((run_folder(tmp_path) / "checkpoints").iterdir())) == 2  # the last two, of which it is one


@pytest.mark.parametrize("place", ["checkpoint_half#2", "candidate"])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, model: Path, fault: Any, place: str
) -> None:
    whole = train(tmp_path / "whole", model, FakeAssistant(make_snapshot(40)))
    assistant = FakeAssistant(make_snapshot(40))
    fault(f"{place}=full")
    result = train(tmp_path, model, assistant)
    assert result.outcome == "failed"
    assert result.reason == "The disk is full. Make room, then `thumbwise train --resume` goes on where it stopped."
    checkpoints = Checkpoints(run_folder(tmp_path) / "checkpoints")
    assert all(checkpoints.load(number) for number in checkpoints.numbers())
    assert assistant.policies == {}
    fault(None)
    assert train(tmp_path, model, assistant, resume=True).version == whole.version


def test_a_job_that_wakes_up_after_it_was_resumed_publishes_nothing(tmp_path: Path, model: Path, fault: Any) -> None:
    assistant = FakeAssistant(make_snapshot(40))
    fault("candidate")
    with pytest.raises(SystemExit):
        train(tmp_path, model, assistant)
    fault(None)
    assistant.lease += 1  # somebody resumed it elsewhere
    record = read_record(run_folder(tmp_path))
    assert record.given.lease == "lease-1"
    import httpx

    from thumbwise.training.run.client import OpsClient

    with OpsClient("http://assistant", "secret", httpx.MockTransport(assistant.answer)) as client:
        with pytest.raises(Conflict, match="not valid any more"):
            client.promote(record.given, "policy-0001-000000000000", "policy-0000")


def test_a_run_is_worked_on_by_one_process_at_a_time(tmp_path: Path, model: Path, fault: Any) -> None:
    assistant = FakeAssistant(make_snapshot(40))
    fault("snapshot")
    with pytest.raises(SystemExit):
        train(tmp_path, model, assistant)
    fault(None)
    with working(run_folder(tmp_path)), pytest.raises(Conflict, match="Another process is working on run run-1"):
        train(tmp_path, model, assistant, resume=True)
    assert assistant.lease == 1


def test_there_must_be_something_to_go_on_with(tmp_path: Path, model: Path) -> None:
    assistant = FakeAssistant(make_snapshot(40))
    with pytest.raises(ThumbwiseError, match="There is no run to resume: start one with `thumbwise train`"):
        train(tmp_path, model, assistant, resume=True)
    assert train(tmp_path, model, assistant).outcome == "promoted"
    with pytest.raises(ThumbwiseError, match=r"run-1, has ended \(promoted\)"):
        train(tmp_path, model, assistant, resume=True)


def test_a_run_goes_on_with_what_it_began_with_whatever_the_settings_say_since(
    tmp_path: Path, model: Path, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = FakeAssistant(make_snapshot(40))
    fault("registered")
    with pytest.raises(SystemExit):
        train(tmp_path, model, assistant, new_votes=True)
    fault(None)
    rounds: list[Round] = []
    monkeypatch.setattr(Round, "run", lambda self: rounds.append(self) or TrainResult("promoted", "", "run-1"))
    monkeypatch.setattr(training_world, "CHAT", 1)
    train(tmp_path, model, assistant, algorithm="no-such", resume=True, lora_rank=64, rollouts="no-such")
    (gone_on,) = rounds
    assert (gone_on.settings.chat_max_tokens, gone_on.settings.train.lora_rank) == (CHAT, SMALL["lora_rank"])
    assert (gone_on.new_votes, gone_on.algorithm) == (True, "ppo")


def test_an_older_runs_record_that_cannot_be_read_stands_in_nobodys_way(
    tmp_path: Path, model: Path, fault: Any
) -> None:
    old = tmp_path / "home" / "runs" / "run-0"
    old.mkdir(parents=True)
    (old / "run.json").write_text(json.dumps({"given": {"number": 0}, "train": {"gone": 1}}))
    fault("gates")
    with pytest.raises(SystemExit):
        train(tmp_path, model, assistant := FakeAssistant(make_snapshot(40)))
    fault(None)
    assert train(tmp_path, model, assistant, resume=True).outcome == "promoted"


def test_what_numpy_counted_is_kept_as_a_number(tmp_path: Path) -> None:
    write_json(tmp_path / "fit.json", asdict(FitReport(np.float32(0.5), np.int64(7), {"ties": np.bool_(False)})))
    assert read_json(tmp_path / "fit.json") == {
        "accuracy": 0.5, "n": 7, "details": {"ties": False}, "error": None,
        "foretold": None, "foretold_votes": 0, "foretold_error": 0.5, "weights": {},
    }  # fmt: skip


def test_a_record_of_another_version_is_one_sentence(tmp_path: Path, model: Path, fault: Any) -> None:
    fault("snapshot")
    with pytest.raises(SystemExit):
        train(tmp_path, model, FakeAssistant(make_snapshot(40)))
    path = run_folder(tmp_path) / "run.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row | {"train": row["train"] | {"no_such_setting": 1}}))
    with pytest.raises(ThumbwiseError, match="another version of Thumbwise"):
        read_record(path.parent)
    older = {name: value for name, value in row["train"].items() if name != "begin"}
    path.write_text(json.dumps(row | {"train": older}))
    with pytest.raises(ThumbwiseError, match=r"another version of Thumbwise \(it lacks begin\): start a new run"):
        read_record(path.parent)
    path.write_text("{")
    with pytest.raises(ThumbwiseError, match="another version of Thumbwise"):
        read_record(path.parent)


# --- checkpoints ---------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    first: dict[str, torch.Tensor] = {}
    second: dict[str, torch.Tensor] = {}
    alike = _pack(a, first, "") == _pack(b, second, "")
    return alike and all(first[k].dtype == second[k].dtype and torch.equal(first[k], second[k]) for k in first)


def state() -> dict[str, Any]:
    weight = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, betas=(0.9, 0.95))
    weight.sum().backward()
    optimizer.step()
    half = torch.randn(5).to(torch.bfloat16)
    return {"weight": weight, "half": half, "optimizer": optimizer.state_dict(), "kl": 0.1 + 0.2, "none": None}


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    kept, before = Checkpoints(tmp_path / "c"), state()
    kept.save(7, before)
    after = kept.load(7)
    assert same(before, after)
    assert list(after["optimizer"]["state"]) == [0]
    assert after["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.95)
    assert not same(before, state())


def test_the_last_two_are_kept_and_half_a_one_is_never_seen(tmp_path: Path, fault: Any) -> None:
    kept = Checkpoints(tmp_path / "c")
    for number in range(4):
        kept.save(number, state())
    assert kept.numbers() == [2, 3]
    fault("checkpoint_half")
    with pytest.raises(SystemExit):
        kept.save(4, state())
    assert kept.numbers() == [2, 3]
    fault(None)
    kept.save(4, state())
    assert kept.numbers() == [3, 4]


def test_a_damaged_checkpoint_is_refused_and_what_cannot_be_kept_too(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "c")
    kept.save(1, state())
    path = tmp_path / "c" / "checkpoint-000001" / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ThumbwiseError, match="is damaged"):
        kept.load(1)
    with pytest.raises(TypeError, match="state_dict holds a set at /a/0"):
        kept.save(2, {"a": [{1}]})


def test_a_fault_is_struck_at_its_place_and_passing_only(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fault("here#2")
    faults.fault_point("there")
    faults.fault_point("here")
    with pytest.raises(SystemExit):
        faults.fault_point("here")
    faults.fault_point("here")
    fault("here=full")
    with pytest.raises(OSError, match="No space left") as caught:
        faults.fault_point("here")
    assert faults.disk_is_full(caught.value)
    assert not faults.disk_is_full(OSError(5, "I/O"))


def test_besides_the_last_two_checkpoints_those_that_are_asked_for_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    state = {"policy": {"w": torch.zeros(2)}, "kl_coefficient": 0.1}
    for number in range(1, 7):
        checkpoints.save(number, state, [1, 3] if number > 2 else [1])
    assert checkpoints.numbers() == [1, 3, 5, 6]
