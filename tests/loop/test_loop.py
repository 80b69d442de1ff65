"""The whole loop on a real vLLM with the two-layer model: votes, training, gates, swap, rollback.

The job runs as an operator runs it (`thumbwise train`), while clients hold streams open across the flip.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import Live, serving, wait_ready
from simulated_people import PROMPTS, prefers_vowels, vote
from tiny_model import ROUND

from thumbwise.engine.external import ExternalEngine
from thumbwise.home import Home
from thumbwise.serving.schedule import Schedule

pytestmark = pytest.mark.engine

COMMAND = Path(sys.executable).with_name("thumbwise")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_engine: Any) -> Iterator[Live]:
    home = Home.find(tmp_path_factory.mktemp("loop"))
    home.config.write_text(f'model = "{tiny_model}"\nmax_tokens = 24\n{ROUND}')
    with serving(home, lambda: ExternalEngine(f"unix:{tiny_engine.uds}")) as live:
        wait_ready(live)
        yield live


def thumbwise(live: Live, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"THUMBWISE_HOME": str(live.assistant.home.root), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=500)


def ask(live: Live, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me a story."}]
    answer = httpx.post(f"{live.url}/v1/chat/completions", json={"messages": messages} | body, timeout=120)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


class Readers(threading.Thread):
    """Keeps `streams` long replies open until told to stop; what each reader saw is in `seen`."""

    def __init__(self, live: Live, streams: int) -> None:
        super().__init__(daemon=True)
        self.live, self.streams = live, streams
        self.enough = threading.Event()
        self.seen: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._all())
        except Exception as error:  # in a thread it would be lost
            self.error = error

    async def _all(self) -> None:
        async with httpx.AsyncClient(base_url=self.live.url, timeout=120) as http:
            await asyncio.gather(*(self._reader(http) for _ in range(self.streams)))

    async def _reader(self, http: httpx.AsyncClient) -> None:
        body = {"messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 600, "stream": True}
        while not self.enough.is_set():
            reply: dict[str, Any] = {"from": time.time(), "versions": set(), "done": False}
            async with http.stream("POST", "/v1/chat/completions", json=body) as stream:
                async for line in stream.aiter_lines():
                    if line == "data: [DONE]":
                        reply["done"] = True
                    elif line.startswith("data: "):
                        event = json.loads(line[6:])
                        reply["versions"].add(event.get("model") or event["error"]["message"])
            self.seen.append(reply | {"to": time.time()})


def test_votes_become_a_version_that_answers_while_open_streams_finish_on_the_old_one(live: Live) -> None:
    before = ask(live)
    given = asyncio.run(vote(live.url, prefers_vowels, 120, PROMPTS))
    assert given["choices"]["left"] + given["choices"]["right"] >= 120

    readers = Readers(live, streams=4)
    environment = os.environ | {"THUMBWISE_HOME": str(live.assistant.home.root), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([COMMAND, "train", "--json"], env=environment, **pipes) as job:
        said = []
        for line in job.stderr or ():
            said.append(line)
            if "gates" in line and not readers.is_alive():
                readers.start()  # not before: on two cores, readers and training would wait for each other
        last = (job.stdout.read() if job.stdout else "").splitlines()[-1]
    after = ask(live)
    time.sleep(1)
    readers.enough.set()
    readers.join(timeout=120)
    assert readers.error is None, readers.error
    assert job.returncode == 0, said
    assert "promoted" in last, (last, said)

    version = after["thumbwise"]["policy_version"]
    assert before["thumbwise"]["policy_version"] == "policy-0000"
    assert version.startswith("policy-0001-")
    log = live.assistant.versions.log()
    assert [(row["old"], row["new"]) for row in log] == [("policy-0000", version)]

    flipped = log[0]["at"] / 1e9
    assert all(reply["done"] and len(reply["versions"]) == 1 for reply in readers.seen), readers.seen
    across = [reply for reply in readers.seen if reply["from"] < flipped < reply["to"]]
    assert len(across) >= 3, (flipped, readers.seen)
    assert all(reply["versions"] == {"policy-0000"} for reply in readers.seen if reply["from"] < flipped - 0.5)
    assert all(reply["versions"] == {version} for reply in readers.seen if reply["from"] > flipped)


def test_the_new_version_is_listed_with_what_made_it(live: Live) -> None:
    rows = json.loads(thumbwise(live, "policies", "list", "--json").stdout)
    assert [row["state"] for row in rows] == ["retired", "stable"]
    assert rows[1]["n_labels"] >= 120
    assert rows[1]["parent"] == "policy-0000"
    manifest = json.loads(thumbwise(live, "policies", "show", rows[1]["version"]).stdout)
    assert all(gate["passed"] for gate in manifest["gates"])
    assert len(manifest["data_sha256"]) == 64


def test_a_comparison_may_now_show_two_versions(live: Live) -> None:
    body = {"messages": [{"role": "user", "content": "Well?"}], "max_tokens": 4}
    for _ in range(12):
        assert httpx.post(f"{live.url}/v1/comparisons", json=body, timeout=60).status_code == 200
    pairs = live.assistant.store.rows(
        "SELECT count(DISTINCT policy_version) AS n FROM replies WHERE comparison_id IS NOT NULL GROUP BY comparison_id"
    )
    assert {pair["n"] for pair in pairs} == {1, 2}


def test_how_people_took_each_version_is_counted(live: Live) -> None:
    stable = ask(live)["thumbwise"]["policy_version"]
    rows = {row["version"]: row for row in json.loads(thumbwise(live, "policies", "people", "--json").stdout)}
    assert rows.keys() == {"policy-0000", stable}
    assert all(row["done"] >= 1 and row["tokens"] >= 1 for row in rows.values())


def test_a_named_version_answers_beside_the_stable_one(live: Live) -> None:
    assert ask(live, model="policy-0000", max_tokens=4)["thumbwise"]["policy_version"] == "policy-0000"


def test_rollback_takes_effect_with_the_next_message(live: Live) -> None:
    said = thumbwise(live, "policies", "rollback", "--reason", "a drill")
    assert said.returncode == 0, said.stderr
    assert ask(live, max_tokens=4)["thumbwise"]["policy_version"] == "policy-0000"
    new = live.assistant.versions.all()[1].version
    assert thumbwise(live, "policies", "promote", new).returncode == 0
    assert ask(live, max_tokens=4)["thumbwise"]["policy_version"] == new


def test_a_job_killed_at_one_stage_after_another_ends_with_the_digest_of_one_that_was_not(live: Live) -> None:
    """In processes of their own, killed (-9) at fault points; votes and stable are the same, so is the adapter."""
    whole = thumbwise(live, "train", "--algorithm", "ppo", "--json")
    assert whole.returncode == 0, whole.stderr
    thumbwise(live, "policies", "rollback")  # a round also goes by how often the stable version's replies end
    arguments = ["train", "--algorithm", "ppo"]
    for place in ("snapshot", "iteration#2", "published", "handed_over"):
        killed = thumbwise(live, *arguments, THUMBWISE_FAULT=place)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        arguments = ["train", "--resume"]
    done = thumbwise(live, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(said.stdout.splitlines()[-1]) for said in (whole, done))
    assert (first["outcome"], second["outcome"]) == ("promoted", "promoted")
    assert first["version"].startswith("policy-0002-")
    assert second["version"].startswith("policy-0003-")  # a kill used up no number
    assert first["version"].rpartition("-")[2] == second["version"].rpartition("-")[2]
    runs = live.assistant.store.rows("SELECT number, outcome FROM runs ORDER BY number")
    assert [row["outcome"] for row in runs] == ["promoted"] * 3
    assert "has ended (promoted)" in thumbwise(live, "train", "--resume").stderr


def test_the_built_in_schedule_runs_the_job_as_a_child_and_keeps_what_it_said(live: Live) -> None:
    assistant = live.assistant
    schedule = Schedule(assistant.home, 3600.0, assistant.versions.runs, lambda: assistant.status().ready)
    assert schedule.due(time.time() + 3600) == ["train", "--new-votes"]
    asyncio.run(schedule._train(["train", "--dry-run"]))
    assert schedule.log.read_text().splitlines()[-1].startswith("dry run: 1")
    assert schedule.due(time.time()) is None


def test_too_little_data_is_one_sentence_and_no_error(live: Live, tmp_path: Path, tiny_engine: Any) -> None:
    home = Home.find(tmp_path)
    home.config.write_text(f'model = "{live.assistant.settings.model}"\nmax_tokens = 24\n{ROUND}')
    with serving(home, lambda: ExternalEngine(f"unix:{tiny_engine.uds}")) as empty:
        wait_ready(empty)
        said = thumbwise(empty, "train")
    assert said.returncode == 0
    assert "training begins at 40" in said.stdout.splitlines()[-1]
    assert "Traceback" not in said.stderr


def test_without_an_assistant_training_is_refused_in_one_sentence(tmp_path: Path) -> None:
    environment = os.environ | {"THUMBWISE_HOME": str(tmp_path)}
    said = subprocess.run([COMMAND, "train"], env=environment, capture_output=True, text=True, timeout=100)
    assert said.returncode == 1
    assert "thumbwise serve" in said.stderr
    assert "Traceback" not in said.stderr
