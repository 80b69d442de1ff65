"""Homes in which people said something, with runs and versions that learned from it, without an assistant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from stored import SAMPLING

from thumbwise.contracts import Message
from thumbwise.feedback.consent import Consents
from thumbwise.feedback.records import Asker, FeedbackRequest
from thumbwise.feedback.snapshot import take_snapshot
from thumbwise.feedback.store import Store
from thumbwise.home import Home
from thumbwise.names import BASE
from thumbwise.serving.forgetting import Forgetting
from thumbwise.versions.record import Versions


@contextmanager
def opened(root: Path) -> Iterator[Forgetting]:
    """A home without an assistant."""
    home = Home.find(root)
    with closing(Store(home.database)) as store:
        yield Forgetting(home, store, Versions(store))


def say(store: Store, user: str, text: str) -> list[str]:
    """A chat with a thumb and a correction, with `text` in all of it; the ids of the feedback."""
    who = Asker(user, user)
    chat = store.start_conversation(user, f"title {text}")
    question: list[Message] = [{"role": "user", "content": f"question {text}"}]
    message = store.start_reply(who, question, BASE, SAMPLING, conversation_id=chat)
    done = {"finish_reason": "stop", "prompt_ids": [1], "response_ids": [2]}
    store.finish_reply(message, "done", text=f"answer {text}", **done)
    votes = (("thumb", "up"), ("edit", {"text": f"better {text}"}))
    requests = [FeedbackRequest(kind=kind, message_id=message, value=value) for kind, value in votes]
    return [store.add_feedback(who, f"{text} {n}", request)[0] for n, request in enumerate(requests)]


def agree(store: Store, *users: str) -> None:
    for user in users:
        Consents(store).give(user, keep_chats=True, use_votes=True, use_text=True)


def begin_run(parts: Forgetting) -> tuple[str, str, Path]:
    """A run with its folder as a job leaves it: id, lease and folder."""
    home, runs = parts.home, parts.versions.runs
    snapshot_id = take_snapshot(parts.store, home.snapshots)
    run = runs.begin(snapshot_id, 60)
    folder = home.runs / run.id
    (folder / "checkpoints" / "checkpoint-000001").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-000001" / "tensors.safetensors").write_bytes(b"weights")
    (folder / "run.json").write_text(json.dumps({"given": {"snapshot_id": snapshot_id, "run_id": run.id}}))
    (folder / "snapshot.jsonl").write_bytes((home.snapshots / f"{snapshot_id}.jsonl").read_bytes())
    (folder / "error.log").write_text("KeyError: 'MARKANN'")
    (folder / "reward_model.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"kl": 1}\n')
    return run.id, run.lease, folder


def make_version(parts: Forgetting, run_id: str, parent: str, learned: dict[str, float] | None = None) -> str:
    """A version that a run made; `learned` is its lineage, None where none was recorded yet."""
    with parts.store.write() as db:
        (run,) = db.query("SELECT number, snapshot_id FROM runs WHERE id = ?", [run_id])
        for item, weight in (learned or {}).items():
            db.execute("INSERT INTO lineage VALUES (?, ?, 'vote', ?)", [run_id, item, weight])
        if learned is not None:
            db.execute("UPDATE runs SET learned = ? WHERE id = ?", [len(learned), run_id])
    name = f"policy-{run['number']:04d}-0123456789ab"
    manifest = {
        "version": name, "number": run["number"], "parent": parent, "algorithm": "ppo", "created_at": "",
        "snapshot_id": run["snapshot_id"], "n_labels": 1, "metrics": {},
    }  # fmt: skip
    parts.versions.stage(manifest, run_id)
    return name


def promote(parts: Forgetting, run_id: str, lease: str, version: str) -> None:
    parts.versions.move_pointer("promote", version, parts.versions.stable(), "passed")
    parts.versions.runs.end(run_id, lease, "promoted", "")


def files_with(root: Path, mark: bytes) -> list[str]:
    """The files below a folder whose bytes hold a mark."""
    found = (path for path in root.rglob("*") if path.is_file() and mark in path.read_bytes())
    return sorted(str(path.relative_to(root)) for path in found)
