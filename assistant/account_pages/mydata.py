"""The rows of the lists on `/me`, in words. Nothing here reads the database, except what learned from votes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from thumbwise.account_pages.learned import used_in
from thumbwise.pages.view import excerpt

if TYPE_CHECKING:
    from thumbwise.accounts.keys import Key
    from thumbwise.accounts.sessions import Session
    from thumbwise.feedback.mine import Chat, Vote
    from thumbwise.serving.assistant import Assistant

_CHOSE = {
    "left": "You preferred draft 1", "right": "You preferred draft 2", "tie": "You found both drafts about the same",
    "both_bad": "You found both drafts bad", "skip": "You skipped this comparison",
}  # fmt: skip


def when(ns: int) -> str:
    """A time as people read it."""
    return f"{datetime.fromtimestamp(ns / 1e9, UTC):%Y-%m-%d %H:%M}"


def chat_rows(chats: Sequence[Chat]) -> list[dict[str, Any]]:
    """The rows of the list of chats."""
    return [
        {"id": chat.id, "title": chat.title.strip() or "Untitled", "when": when(chat.asked_at), "replies": chat.replies}
        for chat in chats
    ]


def vote_rows(assistant: Assistant, votes: Sequence[Vote], may_change: bool) -> list[dict[str, Any]]:
    """The rows of the list of votes. In `local` browsers share their rows, and votes are changed in the chat."""
    used = used_in(assistant, [vote.id for vote in votes])
    return [_vote_row(vote, used.get(vote.id, []), may_change) for vote in votes]


def _vote_row(vote: Vote, used: list[str], may_change: bool) -> dict[str, Any]:
    name = vote.user_id.partition("/")[2]
    link = f"?c={vote.conversation_id}" if vote.conversation_id else ""
    if vote.comparison_id and not name:
        link = f"compare?c={vote.comparison_id}"
    return {
        "id": vote.id, "what": _said(vote), "question": excerpt(vote.question, 90), "when": when(vote.created_at),
        "used": ", ".join(used), "link": link, "name": name, "may_change": may_change,
        "other": {"up": "down", "down": "up"}.get(vote.value.get("thumb", ""), ""),
        "on_comparison": vote.comparison_id is not None,
    }  # fmt: skip


def _said(vote: Vote) -> str:
    value = vote.value
    if vote.kind == "thumb":
        return "You liked a reply" if value["thumb"] == "up" else "You disliked a reply"
    if vote.kind == "pair":
        much = value["choice"] in ("left", "right") and value["strength"] == 2
        return _CHOSE[value["choice"]] + (" by far" if much else "")
    if vote.kind == "rank":
        return "You found no draft usable" if value["none_usable"] else "You ranked the drafts of a comparison"
    if vote.kind == "likert":
        return f"You rated a reply {value['overall']} of 7"
    if vote.kind == "flag":
        return f"You reported a reply: {excerpt(value['reason'], 120)}"
    return f"You {'corrected a reply' if vote.kind == 'edit' else 'commented'}: {excerpt(value.get('text', ''), 120)}"


def key_rows(keys: Sequence[Key]) -> list[dict[str, Any]]:
    """The rows of the list of API keys that are not revoked."""
    return [
        {
            "id": key.id, "name": key.name, "prefix": key.prefix, "scopes": ", ".join(key.scopes),
            "made": key.created_at[:10], "used": (key.used_at or "")[:16].replace("T", " "),
            "expires": (key.expires_at or "")[:10], "expired": key.expired,
        }
        for key in keys
        if key.revoked_at is None
    ]  # fmt: skip


def session_rows(sessions: Sequence[Session], mine: str) -> list[dict[str, Any]]:
    """The rows of the list of logins, the one of this request first."""
    rows = [
        {"here": session.id == mine, "begun": when(session.created_at), "used": when(session.used_at)}
        for session in sorted(sessions, key=lambda session: -session.used_at)
    ]
    return sorted(rows, key=lambda row: not row["here"])
