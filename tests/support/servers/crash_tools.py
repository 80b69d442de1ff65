"""For tests of what a crash leaves behind: a server that is killed and started again, a disk that fills up, and
adapters as a trainer hands them over.

The server is `thumbwise serve --port 0` in a process of its own, so that -9 ends what it would end on a real
machine. A fault (`THUMBWISE_FAULT`, see `thumbwise.faults`) ends it at a named place instead.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from thumbwise.contracts import Prompt
from thumbwise.errors import ThumbwiseError
from thumbwise.faults import VARIABLE
from thumbwise.home import Home, running_url
from thumbwise.settings.training import TrainSettings
from thumbwise.training.run.candidate import Candidate, adapter_files, make_candidate, make_probes
from thumbwise.training.run.client import OpsClient, Run

COMMAND = Path(sys.executable).with_name("thumbwise")
PAGE = 4096
TINY_HOME = """
model = "{model}"
engine_url = "{engine}"
max_tokens = 16
chat_max_tokens = 24
[engine]
dtype = "float32"
enforce_eager = true
max_model_len = 4096
max_lora_rank = 8
"""
SERVE_WITHOUT_END = """
import sys, time
from thumbwise.base_model import prepare as module
from thumbwise.cli.main import main

def prepare(home, model, say):
    print("preparing", flush=True)
    time.sleep(600)

module.prepare = prepare  # before the assistant, and Gradio with it, is imported
main(["serve", "--port", "0", *sys.argv[1:]])
"""
"""A program: `thumbwise serve` that says "preparing" and prepares its model for ten minutes."""


def tiny_home(folder: Path, model: Path, engine: str = "") -> Home:
    """A home for the two-layer model; `engine` is a vLLM that already runs (none: one of its own is started)."""
    home = Home.find(folder)
    home.config.write_text(TINY_HOME.format(model=model, engine=engine))
    return home


def rows(home: Home, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    """What the database holds, also beside the process that writes it: a connection that cannot write does no harm."""
    with closing(sqlite3.connect(f"file:{home.database}?mode=ro", uri=True)) as db:
        return db.execute(sql, params).fetchall()


def stored_votes(home: Home) -> dict[str, str]:
    """Feedback id by idempotency key; each key is there once, and the file is sound."""
    assert rows(home, "PRAGMA integrity_check") == [("ok",)]
    found = rows(home, "SELECT idempotency_key, id FROM feedback")
    assert len({key for key, _ in found}) == len({name for _, name in found}) == len(found)
    return dict(found)


def one_sentence(text: str) -> str:
    """Return `text`, which must be something that a person can read."""
    assert text.endswith((".", "!", "?")), text
    assert "\n" not in text, text
    assert not re.search(r"Traceback|stack trace|Error\(|Errno|object at 0x", text), text
    assert len(text) < 400, text
    return text


def said(answer: httpx.Response) -> str:
    """The sentence of a refusal."""
    return one_sentence(answer.json()["error"]["message"])


class Server:
    """One home's `thumbwise serve`, which may die."""

    def __init__(self, home: Home, **environment: str) -> None:
        self.home = home
        self.command: list[str | Path] = [COMMAND]
        self.log = home.root.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("THUMBWISE_")}
        # One thread, on any core, as the shared engine: see conftest.
        threads = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        self.environment = kept | threads | {"THUMBWISE_HOME": str(home.root)} | environment

    def again(self, fault: str = "") -> None:
        """Kill it, if it runs, and start it; returns when it is ready. The port is another one each time."""
        self.kill()
        cut = self.home.database.exists() and rows(self.home, "SELECT id FROM replies WHERE state = 'streaming'")
        self.launch(fault)
        self.wait(200)
        for (name,) in cut or ():
            assert rows(self.home, "SELECT state FROM replies WHERE id = ?", name) == [("failed",)]

    def launch(self, fault: str = "") -> None:
        """Kill it, if it runs, and start it; returns at once."""
        self.kill()
        self.log.write_bytes(b"")
        environment = self.environment | ({VARIABLE: fault} if fault else {})
        with self.log.open("ab") as log:
            command = [*self.command, "serve", "--port", "0"]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it with -9; nothing that it would still do is done."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process, self.url = None, ""

    @contextmanager
    def dying(self) -> Iterator[None]:
        """The call in this block gets no answer, because the server is killed at a fault point."""
        with pytest.raises((httpx.HTTPError, ThumbwiseError)) as cut:
            yield
        assert getattr(cut.value, "status", 503) == 503, cut.value
        assert self.process is not None
        assert self.process.wait(60) == -signal.SIGKILL

    def ended(self) -> str | None:
        """Wait until it is ready (None) or has ended; returns the last line that it said then."""
        assert self.process is not None
        while self.process.poll() is None:
            self.url = running_url(self.home) or ""
            with suppress(httpx.HTTPError):
                if self.url and httpx.get(f"{self.url}/health/ready", timeout=30).status_code == 200:
                    return None
            time.sleep(0.05)
        return self.log.read_text().splitlines()[-1]

    def wait(self, status: int, seconds: float = 240) -> dict[str, Any]:
        """Return what /health/ready says once it answers with `status`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            self.url = running_url(self.home) or ""
            with suppress(httpx.HTTPError):
                if self.url and (answer := httpx.get(f"{self.url}/health/ready", timeout=30)).status_code == status:
                    return dict(answer.json())
            time.sleep(0.05)
        raise AssertionError(f"not {status} after {seconds} s: {self.log.read_text()[-4000:]}")

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=120)

    def ask(self, text: str = "Tell me a story.", **body: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]} | body)

    def compare(self, text: str = "Tell me a story.") -> httpx.Response:
        return self.post("/v1/comparisons", {"messages": [{"role": "user", "content": text}]})

    def vote(self, key: str, body: dict[str, Any]) -> httpx.Response:
        return self.post("/v1/feedback", body, **{"Idempotency-Key": key})

    def ops(self) -> OpsClient:
        return OpsClient(self.url, self.home.job_token())

    @contextmanager
    def run(self, outcome: str = "rejected") -> Iterator[tuple[OpsClient, Run]]:
        """A training run, which is over with the block."""
        with self.ops() as ops:
            run = ops.begin()
            try:
                yield ops, run
            finally:
                ops.finish(run, outcome, "")

    def states(self) -> dict[str, str]:
        """What `policies list` shows: the state of each version but the base."""
        with self.ops() as ops:
            return {row["version"]: row["state"] for row in ops._call("GET", "/policies").json() if row["number"]}

    def snapshot(self) -> str:
        """A fresh snapshot, as the job would read it."""
        with self.ops() as ops:
            return ops.snapshot(ops.take_snapshot()).decode()


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The events of a streamed reply; [DONE] is {"done": True}."""
    for line in lines:
        if line.startswith("data: "):
            yield {"done": True} if line == "data: [DONE]" else json.loads(line[6:])


def served(uds: Path) -> dict[str, str]:
    """The names that the vLLM at `uds` serves, with the folders that they were loaded from."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(uds)), base_url="http://engine") as http:
        return {card["id"]: card["root"] for card in http.get("/v1/models").json()["data"]}


# --- adapters -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """An adapter before it is named: its files, and probes computed from its weights."""

    files: dict[str, bytes]
    probes: list[dict[str, Any]]

    def candidate(self, run: Run, **facts: Any) -> Candidate:
        """Name it for a run; `facts` change what its manifest says."""
        usual = {
            "parent": run.stable, "base_digest": run.base_digest, "snapshot_id": run.snapshot_id, "n_labels": 0,
            "algorithm": "ppo", "metrics": {}, "probes": self.probes,
        }  # fmt: skip
        return make_candidate(run.number, self.files, usual | facts, [])


def trained(model: Path, adapter: Path, rank: int = 8, dtype: str = "float32") -> Trained:
    """An adapter folder as if it had been trained: read by the trainer's code, with the trainer's probes."""
    from thumbwise.training.backbone.backbone import POLICY, Backbone

    backbone = Backbone(model, TrainSettings(dtype=dtype, lora_rank=rank, lora_alpha=rank))  # type: ignore[arg-type]
    backbone.load_adapter(POLICY, adapter)
    asked = ("Tell me a story.", "What is the capital of France?", "How do I boil an egg?", "Is that all?")
    prompts = [Prompt(messages=({"role": "user", "content": text},), group=text) for text in asked]
    return Trained(adapter_files(backbone, model.name), make_probes(backbone, prompts))


# --- a disk that fills up ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallDisk:
    """A small file system of its own."""

    root: Path

    @property
    def _filler(self) -> Path:
        return self.root / "filler"

    def fill(self, room: int = 0) -> None:
        """Leave `room` bytes, rounded up to whole pages."""
        pages = -(-room // PAGE)
        with suppress(OSError), self._filler.open("ab") as file:
            while True:
                file.write(bytes(PAGE))
                file.flush()
        os.truncate(self._filler, self._filler.stat().st_size // PAGE * PAGE - pages * PAGE)

    def make_room(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount one over `folder`; skips the test where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(
            f"a small file system cannot be mounted here ({done.stderr.strip()}): see its twin with fault points"
        )
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily: the shared vLLM keeps the files of the adapters that it has loaded mapped.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
