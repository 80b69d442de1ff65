"""What the benchmarks share: a stopped one goes on from its parts, one result stays, processes are told apart."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import kept
from chaos_parts.processes import name_in

from thumbwise.system import children

ARGS = argparse.Namespace(quick=False, votes=600)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    monkeypatch.setattr(kept.signal, "signal", lambda *_: None)
    return tmp_path


def test_a_stopped_measurement_makes_only_the_parts_that_it_lacks(results: Path) -> None:
    made: list[str] = []

    def measure(fails: bool) -> dict[str, Any]:
        def make(name: str) -> str:
            if name == "two" and fails:
                raise KeyboardInterrupt
            made.append(name)
            return name.upper()

        found = [kept.part("bench", ARGS, name, lambda name=name: make(name))[0] for name in ("one", "two")]
        return {"figures": found, "bars": [kept.bar("parts", len(found), ">=", 2)]}

    with pytest.raises(KeyboardInterrupt):
        kept.report("bench", ARGS, lambda: measure(fails=True))
    for _ in range(2):  # the second time it is read
        with pytest.raises(SystemExit) as ended:
            kept.report("bench", ARGS, lambda: measure(fails=False))
        assert ended.value.code == 0
    assert made == ["one", "two"]
    (path,) = results.iterdir()  # its parts are gone
    assert json.loads(path.read_text())["figures"] == ["ONE", "TWO"]


def test_a_new_result_takes_the_place_of_older_codes_but_not_of_other_arguments_or_formats(results: Path) -> None:
    new = kept.path_of("bench", ARGS, kept.TRAINING)
    stem = new.name.rpartition("-")[0]
    others = {f"{stem}-old.json": kept.number_format(), f"{stem}-far.json": "another", "bench-000000-old.json": "any"}
    for name, number_format in others.items():
        (results / name).write_text(json.dumps({"number format": number_format}))
    with pytest.raises(SystemExit):
        kept.report("bench", ARGS, lambda: {"bars": []})
    assert {path.name for path in results.iterdir()} == {new.name, f"{stem}-far.json", "bench-000000-old.json"}


def test_the_processes_of_a_vllm_are_told_apart_by_their_command_lines() -> None:
    server = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--enable-lora"]
    lines = [" ".join(command) for command in (children.launched(server), server, ["VLLM::EngineCore"])]
    assert [name_in(line) for line in lines] == ["launcher", "server", "core"]
