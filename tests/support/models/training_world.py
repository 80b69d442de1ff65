"""A training job on a two-layer model, against a stand-in for the assistant's ops API: for tests of the job."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from python_multipart import FormParser

from thumbwise.base_model.prepare import PreparedModel
from thumbwise.home import Home
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.settings.gates import GateSettings
from thumbwise.settings.training import TrainSettings
from thumbwise.training.job.job import run_training
from thumbwise.training.run.folders import TrainResult

SMALL = {
    "dtype": "float32", "min_votes": 20, "iterations": 2, "episodes": 8, "minibatches": 2, "micro_batch": 8,
    "lora_rank": 8, "rm_heads": 2, "rm_folds": 2, "learning_rate": 1e-3,
}  # fmt: skip
CHAT = 12
"""Tokens of a chat reply; a draft has 8."""
LENIENT = {
    "prompts": 8, "samples": 3, "chat_prompts": 4, "chat_samples": 1, "min_accuracy": 0.0, "min_win_rate": 0.0,
    "max_finish_loss": 1.0, "max_repetition_gain": 1.0, "min_length": 0.0, "max_length": 1e3,
}  # fmt: skip


def _line(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields}, sort_keys=True, separators=(",", ":"))


def make_snapshot(
    votes: int, ties: int = 3, letter: int = 70, thumbs: bool = True, corrections: int = 0
) -> bytes:  # fmt: skip
    """Votes that like replies with many tokens under `letter`; ids are random, prompts repeat four times.

    Corrected replies all say the same.
    """
    import random

    rng = random.Random(7)
    lines = []

    def reply(name: str, share: float) -> dict[str, Any]:
        ids = [rng.randrange(5, letter) if rng.random() < share else rng.randrange(letter, 300) for _ in range(8)]
        return {
            "id": name, "text": "x", "prompt_ids": [1, 9, 20, 30], "response_ids": ids, "finish_reason": "length",
            "policy_version": "policy-0000", "sampling": {"temperature": 0.7, "max_tokens": 8},
        }  # fmt: skip

    for n in range(votes + ties):
        prompt = [{"role": "user", "content": f"Say something about number {n // 4}."}]
        group = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()
        shares = [0.9, 0.1] if rng.random() < 0.5 else [0.1, 0.9]
        choice = "tie" if n >= votes else ("left" if shares[0] > shares[1] else "right")
        sides = {"left": reply(f"l{n}", shares[0]), "right": reply(f"r{n}", shares[1])}
        common = {"user": f"u{n % 7}", "group": group, "prompt": prompt}
        lines.append(_line("comparison", id=f"v{n}", choice=choice, strength=1, **sides, **common))
        if n % 4 == 0:
            lines.append(_line("prompt", id=f"p{n}", user=f"u{n % 7}", group=group, prompt=prompt))
            lines.append(
                _line("thumb", id=f"t{n}", user="u1", group=group, prompt=prompt, up=True, reply=reply(f"q{n}", 0.9))
            )
    for n in range(corrections):
        prompt = [{"role": "user", "content": f"Say something about number {n}."}]
        common = {"user": f"u{n % 7}", "group": f"c{n}", "prompt": prompt}
        lines.append(_line("demonstration", id=f"d{n}", text="The capital of France is Paris.", **common))
    lines.append(_line("comment", id="c", user="u", group="g", prompt=[], text="nice", reply=reply("z", 0.5)))
    return "".join(line + "\n" for line in lines).encode()


@dataclass
class FakeAssistant:
    """The ops API, kept in a few lists; `answer` is an httpx transport handler."""

    snapshot: bytes
    digest: str = "base"
    number: int = 1
    stable: str = "policy-0000"
    busy: bool = False
    promotion: int = 200
    policies: dict[str, dict[str, bytes]] = field(default_factory=dict)
    promoted: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    finished: list[dict[str, Any]] = field(default_factory=list)
    beats: int = 0
    max_tokens: int = 8
    lease_seconds: float = 120.0
    lease_lost: bool = False
    lease: int = 1
    log: list[str] = field(default_factory=list)
    begin_at_base: bool = False
    learned: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)
    whole: bool = False

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization") != "Bearer secret":
            return self._error(401, "No.")
        path = request.url.path.removeprefix("/ops/api")
        if request.method == "POST" and path == "/runs":
            return self._begin()
        if request.method == "POST" and path.endswith("/resume"):
            return self._resume(path.split("/")[2])
        if request.method == "POST" and path == "/snapshots":
            return httpx.Response(201, json={"snapshot_id": hashlib.sha256(self.snapshot).hexdigest()})
        if path.startswith("/snapshots/"):
            return httpx.Response(200, content=self.snapshot)
        if request.method == "PUT":
            return self._receive(path.rpartition("/")[2], request)
        if "/files/" in path:
            _, _, version, _, name = path.split("/")
            return httpx.Response(200, content=self.policies[version][name])
        return self._write(path, json.loads(request.content))

    def _write(self, path: str, body: dict[str, Any]) -> httpx.Response:
        if body["lease"] != f"lease-{self.lease}":
            return self._error(409, "This run's lease is not valid any more.")
        if path.endswith("/heartbeat"):
            self.beats += 1
            return self._error(409, "This run's lease is not valid any more.") if self.lease_lost else self._ok({})
        if path.endswith("/finish"):
            self.finished.append(body)
        elif path.endswith("/lineage"):
            told = self.learned.setdefault(path.split("/")[2], {})
            told |= {(id_, kind): weight for id_, kind, weight in body["items"]}
            self.whole = body["total"] == len(told)
        elif path.endswith("/promote"):
            if self.promotion != 200:
                return self._error(self.promotion, "It answers like the base model.")
            self.promoted.append({"version": path.split("/")[2], **body})
            return self._ok({"state": "stable"})
        elif path.endswith("/reject"):
            self.rejected.append({"version": path.split("/")[2], **body})
        return self._ok({})

    def _begin(self) -> httpx.Response:
        if self.busy:
            return self._error(409, "Training run r0 is under way: wait for it to end, or stop it.")
        run = {
            "run_id": f"run-{self.number}", "number": self.number, "lease": f"lease-{self.lease}",
            "lease_seconds": self.lease_seconds,
            "snapshot_id": hashlib.sha256(self.snapshot).hexdigest(), "stable": self.stable, "model": "tiny",
            "base_digest": self.digest, "max_tokens": self.max_tokens, "temperature": 0.7,
            "begin_at_base": self.begin_at_base,
        }  # fmt: skip
        return httpx.Response(201, json=run)

    def _resume(self, run_id: str) -> httpx.Response:
        done = [f for f in self.finished if f["outcome"] != "failed"]
        if done:
            version = next(iter(self.policies), None)
            return self._ok({"lease": None, "version": version, **{k: done[0][k] for k in ("outcome", "reason")}})
        assert run_id == f"run-{self.number}"
        self.lease += 1
        return self._ok({"lease": f"lease-{self.lease}", "version": None, "outcome": None, "reason": ""})

    def _receive(self, version: str, request: httpx.Request) -> httpx.Response:
        assert request.headers["x-thumbwise-lease"] == f"lease-{self.lease}"
        assert self.whole, "nothing is published before the run has said what it learned from"
        found: dict[str, bytes] = {}
        names: list[str] = []

        def on_file(file: Any) -> None:
            names.append(file.field_name.decode())
            file.file_object.seek(0)
            found[file.file_name.decode()] = file.file_object.read()

        boundary = re.search("boundary=(.*)", request.headers["content-type"])
        assert boundary is not None
        parser = FormParser("multipart/form-data", None, on_file, boundary=boundary[1].encode())
        parser.write(request.content)
        parser.finalize()
        assert sorted(names) == ["adapter_config", "adapter_model", "manifest"]
        self.policies[version] = found
        return httpx.Response(201, json={"version": version, "state": "staged"})

    @staticmethod
    def _ok(body: dict[str, Any]) -> httpx.Response:
        return httpx.Response(200, json=body)

    @staticmethod
    def _error(status: int, message: str) -> httpx.Response:
        return httpx.Response(status, json={"error": {"message": message}})


def train(
    tmp_path: Path, model: Path, assistant: FakeAssistant, gates: dict[str, Any] | None = None, *,
    algorithm: str = "ppo", resume: bool = False, new_votes: bool = False, curves: bool = False,
    template: dict[str, Any] | None = None, reward: str = "bradley_terry", **changes: Any,
) -> TrainResult:  # fmt: skip
    """One round on the home `tmp_path`/home, with the settings of SMALL and LENIENT changed.

    Without `curves` no picture is drawn, which takes as long as a round on a two-layer model does.
    """
    home = Home.find(tmp_path / "home")
    limits = GateSettings(**{**LENIENT, **(gates or {})})
    settings = Settings(
        reward=reward,
        train=TrainSettings(**{**SMALL, **changes}),
        gates=limits,
        chat_max_tokens=CHAT,
        chat_template_kwargs=template or {},
    )
    with nullcontext() if curves else patch("thumbwise.training.job.handover.draw_curves", lambda rows, path: None):
        return run_training(
            home,
            settings,
            "http://assistant",
            "secret",
            algorithm,
            resume=resume,
            new_votes=new_votes,
            plugins=PluginManager(home).load(),
            transport=httpx.MockTransport(assistant.answer),
            prepare_model=lambda home, name: PreparedModel(model, "base", "tiny"),
        )
