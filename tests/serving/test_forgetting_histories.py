"""Whatever several people said, in any order: one of them is forgotten, and nothing changes for the others."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from forgetful import agree, begin_run, files_with, opened
from stored import SAMPLING

from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.contracts import Message
from thumbwise.feedback import forget
from thumbwise.feedback.records import Asker, FeedbackRequest
from thumbwise.feedback.snapshot import take_snapshot
from thumbwise.names import BASE
from thumbwise.serving.forgetting import Forgetting


def history(parts: Forgetting, rng: random.Random, people: list[str]) -> None:
    """Chats, comparisons, votes, snapshots and runs in any order, with each person's mark in all that it says."""
    store = parts.store
    for step in range(60):
        user, deed = rng.choice(people), rng.randrange(10)
        mark, who = f"MARK{user}MARK {step} " * rng.choice([1, 20, 400]), Asker(user, user)
        question: list[Message] = [{"role": "user", "content": rng.choice([mark, "a question of all"])}]
        if deed < 6:
            chat = store.start_conversation(user, mark) if deed < 3 else None
            message = store.start_reply(who, question, BASE, SAMPLING, conversation_id=chat)
            state = rng.choice(["done", "done", "done", "stopped", "failed"])
            text = mark if state == "done" else rng.choice([mark, ""])
            store.finish_reply(
                message, state, text=text, finish_reason="stop", prompt_ids=[1], response_ids=[2], error=mark
            )  # fmt: skip
            if state == "done":
                for kind, value in (("comment", {"text": mark}), ("edit", {"text": mark}), ("thumb", "up")):
                    if rng.random() < 0.5:
                        request = FeedbackRequest(kind=kind, message_id=message, value=value)  # type: ignore[arg-type]
                        store.add_feedback(who, f"{rng.random()} {mark[:99]}", request)
        elif deed < 8:
            compared, drafts = store.start_comparison(who, question, [BASE, BASE], SAMPLING, "page")
            for draft in drafts:
                done = {"finish_reason": "stop", "prompt_ids": [1], "response_ids": [2]}
                store.finish_reply(draft, "done", text=mark, **done)
            request = FeedbackRequest(kind="pair", comparison_id=compared, value={"choice": "left"})
            store.add_feedback(who, f"{rng.random()} {mark[:99]}", request)
        elif deed == 8:
            take_snapshot(store, parts.home.snapshots)
        else:
            run_id, lease, folder = begin_run(parts)
            parts.versions.runs.end(run_id, lease, "failed", "")
            (folder / "error.log").unlink()


def of_others(parts: Forgetting, user: str) -> list[Any]:
    """What is stored of everybody but one, in the database and in snapshots."""
    tables = ("conversations", "replies", "comparisons", "feedback")
    rows = [
        row
        for table in tables
        for row in parts.store.rows(f"SELECT * FROM {table} ORDER BY id")
        if row["user_id"].partition("/")[0] not in (user, "usr_forgotten")
    ]
    asked = sorted({row["prompt_sha256"] for row in rows if "prompt_sha256" in row})
    prompts = parts.store.rows(
        "SELECT * FROM prompts WHERE sha256 IN (SELECT value FROM json_each(?))", [json.dumps(asked)]
    )
    lines = sorted(
        line
        for path in parts.home.snapshots.iterdir()
        for line in path.read_bytes().splitlines()
        if json.loads(line).get("user", user).partition("/")[0] != user
    )
    return [rows, sorted(map(str, prompts)), lines]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_was_said_one_is_forgotten_and_the_others_stay(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with opened(tmp_path) as parts:
        people = ["usr_a", "usr_a/below", "usr_b", "usr_c", "local"]
        agree(parts.store, "usr_a", "usr_b", "usr_c")
        history(parts, rng, people)
        if rng.random() < 0.5:  # some wishes before
            chats = parts.store.conversations("usr_b", 99)
            for chat, _ in chats[:1]:
                parts._forget("chat", "usr_b", chat)
            history(parts, rng, people)
        before = of_others(parts, "usr_a")
        done = parts.forget_person("usr_a", COMMAND_LINE)
        assert done.finished
        assert files_with(tmp_path, b"MARKusr_a") == []
        assert of_others(parts, "usr_a") == before
        assert parts.store.rows("PRAGMA foreign_key_check") == []
        assert forget.unfinished(parts.store) == []
        assert files_with(tmp_path, b"MARKusr_b") != []
