"""What a round tells the assistant that it learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_model import make_tiny_model
from training_world import FakeAssistant, make_snapshot, train

from thumbwise.training.run.client import BATCH, OpsClient, Run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def test_a_round_says_which_votes_corrections_and_prompts_it_learned_from(tmp_path: Path, model: Path) -> None:
    """Prompts that are held out for the gates taught nothing."""
    assistant = FakeAssistant(make_snapshot(60, corrections=8))
    result = train(tmp_path, model, assistant, sft_demonstrations=8, packaged_prompts=True)
    assert result.outcome == "promoted", result.reason
    told = assistant.learned["run-1"]
    votes = {id_: weight for (id_, kind), weight in told.items() if kind == "vote"}
    assert sorted(votes) == sorted([f"v{n}" for n in range(63)] + [f"t{n}" for n in range(0, 63, 4)])
    assert votes["v0"] == 1.0
    assert {id_ for id_, kind in told if kind == "demonstration"} == {f"d{n}" for n in range(8)}
    prompts = {id_ for id_, kind in told if kind == "prompt"}
    assert prompts < {f"p{n}" for n in range(0, 63, 4)}
    assert prompts
    kept = json.loads((tmp_path / "home" / "runs" / "run-1" / "lineage.json").read_text())
    assert {(id_, kind): weight for id_, kind, weight in kept} == told


def test_a_large_lineage_is_sent_in_batches_and_only_the_last_one_has_the_total() -> None:
    sent: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={})

    items = [(f"fb_{n}", "vote", 1.0) for n in range(2 * BATCH + 1)]
    run = Run("run-1", 1, "lease", "", "", "", "", 8, 1.0, 60)
    with OpsClient("http://assistant", "secret", httpx.MockTransport(answer)) as client:
        client.tell_lineage(run, items)
        client.tell_lineage(run, [])
    assert [(len(body["items"]), body["total"]) for body in sent] == [
        (BATCH, None), (BATCH, None), (1, 2 * BATCH + 1), (0, 0),
    ]  # fmt: skip
