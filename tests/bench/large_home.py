"""Generate a large home: years of talk in a minute, for measurements and tests of the store at scale.

    python tests/bench/large_home.py FOLDER [--replies 200000] [--votes 200000] [--seed 0]

It has chats of several turns, single API replies, comparisons of two and four drafts; thumbs (some changed, some taken
back), comments, corrections, pair and rank votes; one busy user, many others, seven versions. The schema is the one of
the first release's third migration, so each build that opens it afterwards brings it up to date as it would an old
home. Rows are written straight into the tables, without waiting for the disk.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from any_build import either
from sqlite_utils import Database

from thumbwise.contracts import Message
from thumbwise.feedback import migrations
from thumbwise.feedback.records import canonical, prompt_sha256, sha256
from thumbwise.home import Home

keys, of_versions = either("accounts.keys", "keys"), either("versions.migrations", "versions")

TEXT = (
    "the sky is blue because light of short waves is scattered by air more than that of long ones and what we see of it"
    " comes from all sides while the sun itself looks yellow so in the evening when its way through air is longest only"
    " red is left over which also answers your question about mountains snow bread music history planets and gardens"
)
WORDS = TEXT.split()
VERSIONS = ["policy-0000", *(f"policy-{n:04d}-{n:02x}" for n in range(1, 7))]
BEGAN = 1_700_000_000 * 10**9
STEP = 60 * 10**9
"""Between two replies."""
SAMPLING = canonical({"temperature": 0.7, "top_p": 1.0, "max_tokens": 512, "seed": None, "stop": []})
LATER = {"feedback": "m004", "policies": "m004", "accounts": "m002"}
"""The first migration of each set that is left to whoever opens the home."""
COLUMNS = {
    "prompts": "sha256, messages",
    "conversations": "id, user_id, title, created_at",
    "comparisons": "id, user_id, prompt_sha256, source, shown, created_at",
    "replies": "id, user_id, prompt_sha256, conversation_id, parent_id, comparison_id, policy_version, sampling, state,"
    " text, finish_reason, prompt_ids, response_ids, created_at, finished_at",
    "feedback": "id, user_id, kind, message_id, comparison_id, value, idempotency_key, body_sha256, consent,"
    " created_at",
}
BATCH = 20_000


class Crowd:
    """Draws what people say and what they think of it, and writes it."""

    def __init__(self, db: sqlite3.Connection, replies: int, votes: int, seed: int) -> None:
        self.db = db
        self.replies = replies
        self.votes = votes
        self.draw = random.Random(seed)
        self.waiting: dict[str, list[tuple[Any, ...]]] = {table: [] for table in COLUMNS}
        self.made: Counter[str] = Counter()
        self.judged: list[tuple[str, str]] = []  # replies that may get a thumb, with whose they are
        others = max(2, min(400, replies // 50))
        self.users = ["local"] * others + [f"app/{n}" for n in range(others // 2)] + [f"u{n}" for n in range(others)]

    def run(self) -> None:
        """Write everything, in one transaction."""
        while self.made["replies"] < self.replies:
            self.draw.choices((self.chat, self.compare, self.ask), (35, 30, 35))[0]()
        while self.made["feedback"] < self.votes:
            self.judge()
        for table in COLUMNS:
            self.flush(table)

    def flush(self, table: str) -> None:
        rows, columns = self.waiting[table], COLUMNS[table]
        places = ", ".join("?" * len(columns.split(",")))
        self.db.executemany(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({places})", rows)
        rows.clear()

    def add(self, table: str, *row: Any) -> None:
        self.waiting[table].append(row)
        self.made[table] += 1
        if len(self.waiting[table]) >= BATCH:
            self.flush(table)

    def say(self, most: int) -> str:
        return " ".join(self.draw.choices(WORDS, k=self.draw.randint(4, most)))

    def now(self) -> int:
        return BEGAN + (self.made["replies"] + self.made["feedback"]) * STEP

    def prompt(self, messages: list[Message]) -> str:
        address = prompt_sha256(messages)
        self.add("prompts", address, canonical(messages))
        return address

    def version(self, draft: bool) -> str:
        """Of the newest version then; of drafts every second is of the one before."""
        newest = min(len(VERSIONS) - 1, self.made["replies"] * len(VERSIONS) // self.replies)
        return VERSIONS[max(0, newest - (draft and self.draw.random() < 0.5))]

    def reply(
        self, user: str, messages: list[Message], *, talk: str = "", parent: str = "", comparison: str = ""
    ) -> tuple[str, str]:
        """One reply; returns its id and text."""
        message_id, text, at = f"msg_{self.made['replies']:026d}", self.say(100), self.now()
        asked = sum(len(message["content"]) for message in messages) // 5
        ids = [json.dumps(self.draw.choices(range(49_152), k=n)) for n in (asked + 12, len(text) // 5 + 1)]
        state = "done" if comparison else self.draw.choices(("done", "stopped", "failed"), (94, 4, 2))[0]
        end = self.draw.choices(("stop", "length"), (85, 15))[0] if state == "done" else state
        where = talk or None, parent or None, comparison or None, self.version(bool(comparison)), SAMPLING
        self.add("replies", message_id, user, self.prompt(messages), *where, state, text, end, *ids, at, at + STEP // 2)
        if state == "done" and not comparison:
            self.judged.append((message_id, user))
        return message_id, text

    def ask(self) -> None:
        """One question by the API."""
        self.reply(self.draw.choice(self.users), [{"role": "user", "content": self.say(60)}])

    def chat(self) -> None:
        """A conversation of some turns."""
        user, asked, talk = self.draw.choice(self.users), self.say(60), f"conv_{self.made['conversations']:026d}"
        self.add("conversations", talk, user, asked[:80], self.now())
        messages: list[Message] = []
        parent = ""
        for _ in range(self.draw.randint(1, 7)):
            messages = [*messages, {"role": "user", "content": asked}]
            parent, text = self.reply(user, messages, talk=talk, parent=parent)
            messages, asked = [*messages, {"role": "assistant", "content": text}], self.say(60)

    def compare(self) -> None:
        """A comparison, mostly with its vote."""
        user, name = self.draw.choice(self.users), f"cmp_{self.made['comparisons']:026d}"
        asked: list[Message] = [{"role": "user", "content": self.say(60)}]
        count = 4 if self.draw.random() < 0.1 else 2
        drafts = [self.reply(user, asked, comparison=name)[0] for _ in range(count)]
        self.add("comparisons", name, user, prompt_sha256(asked), "page", json.dumps(drafts), self.now())
        if self.draw.random() < 0.1 or self.made["feedback"] >= self.votes:
            return
        if count == 2:
            choice = self.draw.choices(("left", "right", "tie", "skip"), (40, 40, 15, 5))[0]
            self.vote(user, "pair", None, name, {"choice": choice, "strength": self.draw.randint(1, 2)})
        else:
            tiers = [[draft] for draft in self.draw.sample(drafts, count)]
            self.vote(user, "rank", None, name, {"tiers": tiers, "none_usable": False})

    def judge(self) -> None:
        """A thumb on some reply, which may be its second, a comment or a correction."""
        message, user = self.draw.choice(self.judged)
        kind = self.draw.choices(("thumb", "comment", "edit"), (85, 8, 7))[0]
        thumb = self.draw.choices(("up", "down", "clear"), (60, 35, 5))[0]
        self.vote(user, kind, message, None, {"thumb": thumb} if kind == "thumb" else {"text": self.say(60)})

    def vote(self, user: str, kind: str, message: str | None, comparison: str | None, value: dict[str, Any]) -> None:
        number, said = self.made["feedback"], canonical(value)
        row = f"fb_{number:026d}", user, kind, message, comparison, said, f"key-{number}", sha256(said), "local"
        self.add("feedback", *row, self.now())


def make(path: Path, replies: int, votes: int, seed: int = 0) -> None:
    """Write the database at `path`, as a build of the third migration would have left it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        db = Database(connection, strict=True)
        for pragma in ("journal_mode = WAL", "synchronous = OFF", "foreign_keys = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        for part in (migrations.migrations, of_versions.migrations, keys.migrations):
            part.apply(db, stop_before=[step.name for step in part.pending(db) if step.name >= LATER[part.name]])
        connection.execute("BEGIN")
        Crowd(connection, replies, votes, seed).run()
        connection.execute("COMMIT")
    path.chmod(0o600)


def main() -> None:
    """Make the home that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--replies", type=int, default=200_000)
    parser.add_argument("--votes", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    home, began = Home.find(args.folder), time.monotonic()
    if home.database.exists():
        sys.exit(f"{home.database} is there already: name another folder.")
    make(home.database, args.replies, args.votes, args.seed)
    print(f"{home.database}: {home.database.stat().st_size / 1e6:.0f} MB in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
