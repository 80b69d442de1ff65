"""The feedback database: replies, comparisons and votes, each acknowledged after COMMIT.

How things are written is in `writer.py`. All methods are synchronous and thread-safe; async callers go through
`asyncio.to_thread`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sqlite_utils import Database

from thumbwise.contracts import Message
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.feedback.migrations import migrations
from thumbwise.feedback.records import (
    Asker,
    FeedbackRequest,
    Reply,
    ReplyState,
    StoredComparison,
    canonical,
    new_id,
    now_ns,
    prompt_sha256,
    sha256,
)
from thumbwise.feedback.writer import Writer

_END = (
    "UPDATE replies SET state=?, text=?, finish_reason=?, prompt_ids=?, response_ids=?, error=?, finished_at=?"
    " WHERE id=? AND state='streaming'"
)
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

    # -- conversations and replies -------------------------------------------------------------------

    def add_prompt(self, db: Database, messages: Sequence[Message]) -> str:
        """Store a prompt inside a transaction and return its address."""
        address = prompt_sha256(messages)
        db.execute(
            "INSERT INTO prompts (sha256, messages) VALUES (?, ?) ON CONFLICT DO NOTHING",
            [address, canonical(list(messages))],
        )
        return address

    def start_conversation(self, user_id: str, title: str) -> str:
        """Make an empty conversation and return its id."""
        row = {"id": new_id("conv"), "user_id": user_id, "title": title[:80], "created_at": now_ns()}
        with self.write() as db:
            db.table("conversations").insert(row)
        return str(row["id"])

    def start_reply(
        self,
        asker: Asker,
        messages: Sequence[Message],
        policy_version: str,
        sampling: dict[str, Any],
        *,
        conversation_id: str | None = None,
        parent_id: str | None = None,
    ) -> str:
        """Commit a reply's row (state `streaming`) before its first chunk; returns the message id."""

        def work(db: Database) -> str:
            return self._insert_reply(
                db,
                user_id=asker.user,
                person=asker.counted,
                prompt_sha256=self.add_prompt(db, messages),
                policy_version=policy_version,
                sampling=canonical(sampling),
                conversation_id=conversation_id,
                parent_id=parent_id,
            )

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
    ) -> None:
        """Commit a reply's text and end its streaming; a reply that has ended is never changed again.

        An end other than `done` that cannot be written now is written with the next transaction that succeeds.
        """
        ids = [json.dumps(list(prompt_ids)), json.dumps(list(response_ids))]
        values = [state, text, finish_reason, *ids, error, now_ns(), message_id]

        def work(db: Database) -> None:
            db.execute(_END, values)
            fault_point("reply_ended")

        try:
            self.share(work)
        except ThumbwiseError:
            if state != "done":  # who asked for one that is done is told so, and it then ends as failed
                self.owe(message_id, work)
            raise

    def fail_unfinished(self) -> int:
        """Turn rows left `streaming` by a crash into `failed`; returns how many. Called once at start."""
        with self.write() as db:
            return int(
                db.execute(
                    "UPDATE replies SET state='failed', error='cut off by a restart', finished_at=?"
                    " WHERE state='streaming'",
                    [now_ns()],
                ).rowcount
            )

    def reply(self, message_id: str, user_id: str) -> Reply:
        """Return one reply that this user was given; raises NotFound for anybody else's."""
        found = self.rows(_REPLY + " WHERE r.id = ? AND r.user_id = ?", [message_id, user_id])
        if not found:
            raise NotFound(f"There is no message {message_id[:64]!r} of yours. Use an id that a reply carried.")
        return _reply(found[0])

    def conversation(self, conversation_id: str, user_id: str) -> list[Reply]:
        """Return the path of replies that ends in the conversation's newest, oldest first."""
        found = self.rows(
            _REPLY + " WHERE r.conversation_id = ? AND r.user_id = ? ORDER BY r.created_at, r.id",
            [conversation_id, user_id],
        )
        by_id = {row["id"]: row for row in found}
        path: list[Reply] = []
        at = found[-1]["id"] if found else None
        while at is not None and at in by_id:
            path.append(_reply(by_id[at]))
            at = by_id[at]["parent_id"]
        return path[::-1]

    def conversations(self, user_id: str, limit: int) -> list[tuple[str, str]]:
        """Return (id, title) of the user's conversations, the one with the newest question first."""
        found = self.rows(
            "SELECT id, title FROM conversations c WHERE user_id = ? ORDER BY coalesce("
            "(SELECT max(created_at) FROM replies WHERE conversation_id = c.id), created_at) DESC, id DESC LIMIT ?",
            [user_id, limit],
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
            address = self.add_prompt(db, messages)
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
        """Store one vote; returns (feedback id, whether it is new). Durable when this returns.

        The same key and body give the same id again; the same key with another body is a Conflict. A
        comparison takes one vote, because versions are revealed after it.
        """
        value = request.checked()
        body = sha256(canonical([request.kind, request.message_id, request.comparison_id, value]))
        if not 1 <= len(key) <= 200:
            raise ThumbwiseError("Idempotency-Key must have 1 to 200 characters: send a fresh UUID per vote.")

        def work(db: Database) -> tuple[str, bool]:
            used = list(
                db.query(
                    "SELECT id, body_sha256 FROM feedback WHERE user_id=? AND idempotency_key=?",
                    [asker.user, key],
                )
            )
            if used:
                if used[0]["body_sha256"] != body:
                    raise Conflict("This Idempotency-Key was used for another vote: send a fresh one.")
                return str(used[0]["id"]), False
            self._check_target(asker.user, request, value)
            feedback_id = new_id("fb")
            db.table("feedback").insert(
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
            return feedback_id, True

        feedback_id, new = self.share(work)
        if new:
            fault_point("vote_committed")
        return feedback_id, new

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
        """Number of feedback rows by kind, and of untied pair votes as `untied_pairs`."""
        counts = {
            row["kind"]: int(row["n"]) for row in self.rows("SELECT kind, count(*) AS n FROM feedback GROUP BY kind")
        }
        untied = self.rows(
            "SELECT count(*) AS n FROM feedback WHERE kind='pair'"
            " AND json_extract(value, '$.choice') IN ('left', 'right')"
        )
        return counts | {"untied_pairs": int(untied[0]["n"])}


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
