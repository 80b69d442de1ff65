"""The feedback database: replies, comparisons and votes, each acknowledged after COMMIT.

How rows are written is in `writer.py`. All methods are thread-safe and block. Async callers use `run`.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sqlite_utils import Database

from thumbwise.contracts import Message
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.feedback.migrations import migrations
from thumbwise.feedback.prompts import add_prompt, shorten
from thumbwise.feedback.records import (
    Asker,
    FeedbackRequest,
    Reply,
    ReplyState,
    StoredComparison,
    canonical,
    new_id,
    now_ns,
    sha256,
)
from thumbwise.feedback.writer import Writer

_END = (
    "UPDATE replies SET state=?, text=?, finish_reason=?, prompt_ids=?, response_ids=?, error=?, finished_at=?"
    " WHERE id=? AND state='streaming'"
)
_ASKED = """
    UPDATE conversations SET head = :head, asked_at = max(:now, 1 + (
        SELECT max(asked_at) FROM conversations o WHERE o.user_id = conversations.user_id)) WHERE id = :id
"""
"""Conversations are listed by `asked_at`. If the clock was set back, a new question still comes first."""
COUNTS = """
    SELECT kind, kind = 'pair' AND json_extract(value, '$.choice') IN ('left', 'right') AS untied,
        count(*) AS n, max(seq) AS last FROM feedback GROUP BY 1, 2
"""
_REPLY = """
    SELECT r.*, p.messages, (
        SELECT json_extract(value, '$.thumb') FROM feedback f
        WHERE f.message_id = r.id AND f.kind = 'thumb' ORDER BY seq DESC LIMIT 1) AS thumb
    FROM replies r JOIN prompts p ON p.sha256 = r.prompt_sha256
"""


class Store(Writer):
    """The one writer. Open it only while holding the home's lock."""

    def __init__(self, path: Path) -> None:
        """Open (or make) the database at `path` and bring its schema up to date."""
        super().__init__(path)
        self.migrate(migrations)
        self.exporting = threading.Lock()
        """Held while a snapshot is written, and while what was forgotten is taken out of snapshots."""
        self._counting = threading.Lock()
        self._counts: Counter[str] | None = None
        self._counted = 0  # the newest vote that was read for them

    # -- conversations and replies -------------------------------------------------------------------

    def start_conversation(self, user_id: str, title: str) -> str:
        """Make an empty conversation and return its id."""
        conversation_id = new_id("conv")

        def work(db: Database) -> str:
            row = {"id": conversation_id, "user_id": user_id, "title": title[:80], "created_at": now_ns()}
            db.table("conversations").insert(row)
            db.execute(_ASKED, {"id": conversation_id, "head": None, "now": row["created_at"]})
            return conversation_id

        return self.share(work)

    def start_reply(
        self,
        asker: Asker,
        messages: Sequence[Message],
        policy_version: str,
        sampling: dict[str, Any],
        *,
        conversation_id: str | None = None,
        parent_id: str | None = None,
        training: bool = True,
    ) -> str:
        """Commit a reply's row (state `streaming`) before its first chunk; returns the message id.

        Without `training` neither its prompt nor what is said about it gets into a snapshot.
        """

        def work(db: Database) -> str:
            message_id = self._insert_reply(
                db,
                user_id=asker.user,
                person=asker.counted,
                prompt_sha256=add_prompt(db, messages),
                policy_version=policy_version,
                sampling=canonical(sampling),
                conversation_id=conversation_id,
                parent_id=parent_id,
                training=int(training),
            )
            if conversation_id is not None:
                db.execute(_ASKED, {"id": conversation_id, "head": message_id, "now": now_ns()})
            return message_id

        message_id = self.share(work)
        fault_point("reply_begun")
        return message_id

    @staticmethod
    def _insert_reply(db: Database, **row: Any) -> str:
        message_id = new_id("msg")
        db.table("replies").insert({"id": message_id, "state": "streaming", "created_at": now_ns(), **row})
        return message_id

    def finish_reply(
        self,
        message_id: str,
        state: ReplyState,
        *,
        text: str,
        finish_reason: str | None,
        prompt_ids: Sequence[int] = (),
        response_ids: Sequence[int] = (),
        error: str | None = None,
        wait: bool = True,
    ) -> None:
        """Commit a reply's text and end its streaming; a reply that has ended is never changed again.

        Where nobody will `wait` for it this returns at once. It is then written soon, all such ends in one COMMIT, or
        with the next transaction that succeeds. Half characters, which no file can hold, become question marks.
        """
        ids = [json.dumps(list(prompt_ids)), json.dumps(list(response_ids))]
        values = [state, _whole(text), finish_reason, *ids, error and _whole(error), now_ns(), message_id]

        def work(db: Database) -> None:
            ended = db.execute(_END, values).rowcount
            if ended and state != "done" and not text:
                shorten(db, message_id)
            fault_point("reply_ended")

        if wait:
            self.share(work)
        else:
            self.later(message_id, work)

    def fail_unfinished(self) -> int:
        """Turn rows left `streaming` by a crash into `failed`; returns how many. Called once at start."""
        with self.write() as db:
            return int(
                db.execute(
                    "UPDATE replies SET state='failed', error=?, finished_at=? WHERE state='streaming'",
                    ["The assistant was stopped while it wrote this: ask again.", now_ns()],
                ).rowcount
            )

    def reply(self, message_id: str, user_id: str) -> Reply:
        """Return one reply that this user was given; raises NotFound for anybody else's."""
        found = self.rows(_REPLY + " WHERE r.id = ? AND r.user_id = ?", [message_id, user_id])
        if not found:
            raise NotFound(f"There is no message {message_id[:64]!r} of yours. Use an id that a reply carried.")
        return _reply(found[0])

    def conversation(self, conversation_id: str, user_id: str) -> list[Reply]:
        """Return the path of replies that ends in the conversation's last one, oldest first.

        The last one is the one begun last (its `head`), whatever the clock said.
        """
        whose = [conversation_id, user_id]
        with self.lock:  # both of one moment
            found = self.rows("SELECT head FROM conversations WHERE id = ? AND user_id = ?", whose)
            # The plus keeps SQLite from the index of users, one of whom may have most of all replies.
            rows = self.rows(_REPLY + " WHERE r.conversation_id = ? AND +r.user_id = ?", whose)
        by_id = {row["id"]: row for row in rows}
        path: list[Reply] = []
        at = found[0]["head"] if found else None
        while at is not None and at in by_id:
            path.append(_reply(by_id[at]))
            at = by_id[at]["parent_id"]
        return path[::-1]

    def conversations(self, user_id: str, limit: int) -> list[tuple[str, str]]:
        """Return (id, title) of the user's conversations, the one with the newest question first."""
        found = self.rows(
            "SELECT id, title FROM conversations WHERE user_id = ? ORDER BY asked_at DESC LIMIT ?", [user_id, limit]
        )
        return [(row["id"], row["title"]) for row in found]

    def owns_conversation(self, conversation_id: str, user_id: str) -> bool:
        """Whether the conversation exists and is this user's."""
        return bool(self.rows("SELECT 1 FROM conversations WHERE id=? AND user_id=?", [conversation_id, user_id]))

    # -- comparisons ---------------------------------------------------------------------------------

    def start_comparison(
        self,
        asker: Asker,
        messages: Sequence[Message],
        shown_versions: Sequence[str],
        sampling: dict[str, Any],
        source: str,
    ) -> tuple[str, list[str]]:
        """Commit a comparison and its draft rows, in the order they are shown.

        Returns (comparison id, draft ids). The caller draws the order; this makes it the record.
        """
        comparison_id = new_id("cmp")
        with self.write() as db:
            address = add_prompt(db, messages)
            db.table("comparisons").insert(
                {
                    "id": comparison_id,
                    "user_id": asker.user,
                    "person": asker.counted,
                    "prompt_sha256": address,
                    "source": source,
                    "shown": "[]",
                    "created_at": now_ns(),
                }
            )
            drafts = [
                self._insert_reply(
                    db,
                    user_id=asker.user,
                    person=asker.counted,
                    prompt_sha256=address,
                    policy_version=version,
                    sampling=canonical(sampling),
                    comparison_id=comparison_id,
                )
                for version in shown_versions
            ]
            db.execute("UPDATE comparisons SET shown=? WHERE id=?", [json.dumps(drafts), comparison_id])
        return comparison_id, drafts

    def comparison(self, comparison_id: str, user_id: str) -> StoredComparison:
        """Return one comparison of this user with its drafts in shown order; raises NotFound."""
        found = self.rows(
            "SELECT c.*, p.messages FROM comparisons c JOIN prompts p ON p.sha256 = c.prompt_sha256"
            " WHERE c.id = ? AND c.user_id = ?",
            [comparison_id, user_id],
        )
        if not found:
            raise NotFound(f"There is no comparison {comparison_id[:64]!r} of yours. Ask for one at /v1/comparisons.")
        shown = json.loads(found[0]["shown"])
        drafts = {row["id"]: _reply(row) for row in self.rows(_REPLY + " WHERE r.comparison_id=?", [comparison_id])}
        votes = self.rows(
            "SELECT kind, value FROM feedback WHERE comparison_id = ? ORDER BY seq LIMIT 1", [comparison_id]
        )
        choice = json.loads(votes[0]["value"]).get("choice", "ranked") if votes else None
        return StoredComparison(
            id=comparison_id,
            user_id=user_id,
            prompt=tuple(json.loads(found[0]["messages"])),
            drafts=tuple(drafts[draft] for draft in shown),
            choice=choice,
        )

    # -- feedback ------------------------------------------------------------------------------------

    def add_feedback(self, asker: Asker, key: str, request: FeedbackRequest) -> tuple[str, bool]:
        """Store one piece of feedback; returns (feedback id, whether it is new). Durable when this returns.

        The same key and body give the same id again; the same key with another body is a Conflict. A
        comparison takes one vote, because versions are revealed after it.
        """
        value = request.checked()
        body = sha256(canonical([request.kind, request.message_id, request.comparison_id, value]))
        if not 1 <= len(key) <= 200:
            raise ThumbwiseError("Idempotency-Key must have 1 to 200 characters: send a fresh UUID per vote.")

        def work(db: Database) -> tuple[str, int]:
            used = list(
                db.query(
                    "SELECT id, body_sha256 FROM feedback WHERE user_id=? AND idempotency_key=?",
                    [asker.user, key],
                )
            )
            if used:
                if used[0]["body_sha256"] != body:
                    raise Conflict("This Idempotency-Key was used for another vote: send a fresh one.")
                return str(used[0]["id"]), 0
            self._check_target(asker.user, request, value)
            feedback_id = new_id("fb")
            row = db.table("feedback").insert(
                {
                    "id": feedback_id,
                    "user_id": asker.user,
                    "person": asker.counted,
                    "kind": request.kind,
                    "message_id": request.message_id,
                    "comparison_id": request.comparison_id,
                    "value": canonical(value),
                    "idempotency_key": key,
                    "body_sha256": body,
                    "consent": "local",
                    "created_at": now_ns(),
                }
            )
            fault_point("vote_written")
            return feedback_id, int(row.last_rowid or 0)

        feedback_id, seq = self.share(work)
        if seq:
            fault_point("vote_committed")
            self._count(seq, request.kind, value)
        return feedback_id, bool(seq)

    def _check_target(self, user_id: str, request: FeedbackRequest, value: dict[str, Any]) -> None:
        if request.message_id is not None:
            reply = self.reply(request.message_id, user_id)
            if reply.comparison_id is not None:
                raise Conflict("Drafts of a comparison are judged together: vote on the comparison.")
            if reply.state == "streaming":
                raise Conflict("This reply is still being written: vote when it has finished.")
            if reply.state == "failed":
                raise Conflict("This reply failed and cannot be judged: ask again.")
            return
        comparison = self.comparison(str(request.comparison_id), user_id)
        if comparison.choice is not None:
            raise Conflict("This comparison already has its vote.")
        if any(draft.state != "done" for draft in comparison.drafts):
            raise Conflict("Not all drafts are finished: vote when they are, or ask for a new comparison.")
        if request.kind == "pair" and len(comparison.drafts) != 2:
            raise ThumbwiseError("A comparison of more than two drafts takes a rank, not a pair.")
        ranked = {draft for tier in value.get("tiers", []) for draft in tier}
        if ranked and ranked != {draft.id for draft in comparison.drafts}:
            raise ThumbwiseError("A rank must name every draft of the comparison exactly once.")

    def counts(self) -> dict[str, int]:
        """Number of feedback rows by kind, and of untied pair votes as `untied_pairs`.

        Read once, then kept in memory: a page asks after each vote.
        """
        with self._counting:
            if self._counts is None:
                self._counts = Counter(untied_pairs=0)
                with self.reading() as db:
                    for row in db.query(COUNTS):
                        self._counts[row["kind"]] += row["n"]
                        self._counts["untied_pairs"] += row["n"] * bool(row["untied"])
                        self._counted = max(self._counted, row["last"])
            return dict(self._counts)

    def recount(self) -> None:
        """Read the counts again next time: votes were forgotten."""
        with self._counting:
            self._counts = None

    def _count(self, seq: int, kind: str, value: dict[str, Any]) -> None:
        """Count a vote that was committed, unless `counts` has read it already."""
        with self._counting:
            if self._counts is not None and seq > self._counted:
                self._counts[kind] += 1
                self._counts["untied_pairs"] += kind == "pair" and value["choice"] in ("left", "right")


def _whole(text: str) -> str:
    return text.encode(errors="replace").decode()


def _reply(row: dict[str, Any]) -> Reply:
    return Reply(
        id=row["id"],
        user_id=row["user_id"],
        prompt=tuple(json.loads(row["messages"])),
        conversation_id=row["conversation_id"],
        parent_id=row["parent_id"],
        comparison_id=row["comparison_id"],
        policy_version=row["policy_version"],
        state=row["state"],
        text=row["text"],
        finish_reason=row["finish_reason"],
        error=row["error"],
        thumb=row["thumb"] if row["thumb"] in ("up", "down") else None,
        cut=_cut(row) if row["finish_reason"] == "length" else "",
    )


def _cut(row: dict[str, Any]) -> Literal["length", "context"]:
    """Whether a reply that broke off has as many tokens as were asked for, or the context ended before."""
    written, sampling = json.loads(row["response_ids"] or "[]"), json.loads(row["sampling"])
    return "length" if len(written) >= int(sampling.get("max_tokens", 0)) else "context"
