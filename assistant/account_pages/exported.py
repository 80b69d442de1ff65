"""A person's data as a zip of JSON Lines, made while it is sent: neither memory nor disk holds the whole of it."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, cast

from starlette.responses import StreamingResponse

from thumbwise.account_pages.learned import used_in
from thumbwise.feedback import mine

if TYPE_CHECKING:
    from thumbwise.accounts.principal import Principal
    from thumbwise.serving.assistant import Assistant

Rows = list[dict[str, Any]]
_README = """\
Everything that Thumbwise stores of {name}, as of {now}.

Each file has one JSON object a line (JSON Lines, UTF-8).

  account.jsonl      the account, and its API keys without their text
  consents.jsonl     each answer to the questions about consent, oldest first
  chats.jsonl        conversations: id, title, begin
  replies.jsonl      each question with its reply. `chat` is the conversation; it is null for a program's request.
                     `user` is the account, or a name below one of its API keys. `version` wrote the reply.
  comparisons.jsonl  each comparison with its drafts in the order shown. Versions are named after the vote.
  votes.jsonl        each vote, oldest first. `reply` or `comparison` says on what; the last one of a kind counts.
                     `used_in` names the versions that learned from it.
  comments.jsonl     each comment, oldest first

Times are in UTC. Passwords, API keys and logins are stored as hashes and are not in here.
"""


class _Sink:
    """Takes what the zip writes, until it is sent. It cannot seek, so the zip is written front to back."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Take some bytes."""
        self.parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing: `taken` empties it."""

    def taken(self) -> bytes:
        """Return what has come since the last call."""
        data = b"".join(self.parts)
        self.parts.clear()
        return data


def download(assistant: Assistant, principal: Principal) -> StreamingResponse:
    """Return the answer that sends the zip."""
    name = f"thumbwise-{datetime.now(UTC):%Y-%m-%d}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(_zip(assistant, principal), media_type="application/zip", headers=headers)


async def _zip(assistant: Assistant, principal: Principal) -> AsyncIterator[bytes]:
    sink, run, lists = _Sink(), assistant.store.run, _lists(assistant, principal)
    with zipfile.ZipFile(cast(IO[bytes], sink), "w", zipfile.ZIP_DEFLATED) as archive:
        readme = _README.format(name=principal.name, now=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
        archive.writestr("README.txt", readme)
        for name, batches in lists:
            with archive.open(f"{name}.jsonl", "w") as file:
                while (batch := await run(next, batches, None)) is not None:
                    await asyncio.to_thread(_write, file, batch)  # a batch may be tens of megabytes
                    yield sink.taken()
    yield sink.taken()


def _write(file: IO[bytes], batch: Rows) -> None:
    file.write(b"".join(_line(row) for row in batch))


def _lists(assistant: Assistant, principal: Principal) -> Iterator[tuple[str, Iterator[Rows]]]:
    store, user = assistant.store, principal.asker.user
    yield "account", (_account(assistant, principal) for _ in range(1))  # read when it is asked for, in a thread
    yield "consents", (mine.consents(store, user) for _ in range(1))
    for name in mine.FILES:
        batches = mine.export(store, user, name)
        yield name, (_with_use(assistant, batches) if name in ("votes", "comments") else batches)


def _account(assistant: Assistant, principal: Principal) -> Rows:
    account = assistant.users.find(principal.account or "")
    if account is None:
        return [{"name": principal.name}]
    keys = [key.as_json() | {"type": "key"} for key in assistant.keys.of(account.id)]
    return [account.as_json() | {"type": "account"}, *keys]


def _with_use(assistant: Assistant, batches: Iterator[Rows]) -> Iterator[Rows]:
    """Add to each row which versions learned from it."""
    for batch in batches:
        used = used_in(assistant, [row["id"] for row in batch])
        yield [row | {"used_in": used.get(row["id"], [])} for row in batch]


def _line(row: dict[str, Any]) -> bytes:
    at = {key: _iso(value) for key, value in row.items() if key in _TIMES and value is not None}
    text = json.dumps(row | at, ensure_ascii=False)
    for end in _LINE_ENDS:
        text = text.replace(end, f"\\u{ord(end):04x}")
    return text.encode(errors="replace") + b"\n"


_LINE_ENDS = "\x85\u2028\u2029"
"""Some readers end a line at these, which JSON does not escape."""
_TIMES = ("created_at", "asked_at", "seen_at", "at")


def _iso(value: Any) -> Any:
    return datetime.fromtimestamp(value / 1e9, UTC).isoformat(timespec="seconds") if isinstance(value, int) else value
