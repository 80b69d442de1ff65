"""Schema of the `feedback` migration set: append-only, numbered, never edited once released.

Times are UTC nanoseconds. Ids are ULIDs with a prefix that says what they name (msg_, cmp_, fb_, conv_).
Token ids are kept with every reply because training never re-encodes text. Left out: tables of accounts
and policies, which have migration sets of their own.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from thumbwise.feedback.records import NEW_BROWSER, PROGRAMS

migrations = Migrations("feedback")


_FIRST = """
-- A prompt is the whole message list, content-addressed: identical prompts share one row.
CREATE TABLE prompts (
    sha256 TEXT PRIMARY KEY,
    messages TEXT NOT NULL            -- canonical JSON [{"role","content"}]
) STRICT;

CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    title TEXT NOT NULL,              -- from the first prompt
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE comparisons (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    prompt_sha256 TEXT NOT NULL REFERENCES prompts(sha256),
    source TEXT NOT NULL,             -- who asked for it: page | api
    shown TEXT NOT NULL,              -- JSON list of reply ids in shown order, drawn by the server
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE replies (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,            -- the only user who may judge it
    prompt_sha256 TEXT NOT NULL REFERENCES prompts(sha256),
    conversation_id TEXT REFERENCES conversations(id),
    parent_id TEXT REFERENCES replies(id),           -- the reply before it in the conversation
    comparison_id TEXT REFERENCES comparisons(id),
    policy_version TEXT NOT NULL,     -- which version wrote it
    sampling TEXT NOT NULL,           -- JSON: temperature, top_p, max_tokens, seed, stop
    state TEXT NOT NULL CHECK (state IN ('streaming', 'done', 'stopped', 'failed')),
    text TEXT NOT NULL DEFAULT '',
    finish_reason TEXT,
    prompt_ids TEXT,                  -- JSON list of token ids, template included
    response_ids TEXT,                -- JSON list of token ids as sampled
    error TEXT,
    created_at INTEGER NOT NULL,
    finished_at INTEGER
) STRICT;
CREATE INDEX replies_conversation ON replies (conversation_id, created_at);
CREATE INDEX replies_streaming ON replies (state) WHERE state = 'streaming';

-- Append-only: a correction is a new row, and current_feedback shows the latest.
CREATE TABLE feedback (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    user_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    message_id TEXT REFERENCES replies(id),
    comparison_id TEXT REFERENCES comparisons(id),
    value TEXT NOT NULL,              -- JSON, validated by thumbwise.feedback.records
    idempotency_key TEXT NOT NULL,
    body_sha256 TEXT NOT NULL,        -- same key with another body is a conflict
    consent TEXT NOT NULL,            -- under which terms it was given: local
    created_at INTEGER NOT NULL,
    UNIQUE (user_id, idempotency_key),
    CHECK ((message_id IS NULL) <> (comparison_id IS NULL))
) STRICT;
CREATE INDEX feedback_message ON feedback (message_id, kind);
CREATE INDEX feedback_comparison ON feedback (comparison_id);

CREATE VIEW current_feedback AS
    SELECT * FROM feedback WHERE seq IN (
        SELECT max(seq) FROM feedback
        GROUP BY user_id, kind, message_id, comparison_id
    );
"""


@migrations()
def m001_first(db: Database) -> None:
    """Prompts, conversations, replies, comparisons and what people said about them."""
    db.executescript(_FIRST)


@migrations()
def m002_by_version(db: Database) -> None:
    """Find what a version said since a given time."""
    db.execute("CREATE INDEX replies_version ON replies (policy_version, created_at)")


@migrations()
def m003_by_comparison(db: Database) -> None:
    """Find a comparison's drafts, which each vote on it does."""
    db.execute("CREATE INDEX replies_comparison ON replies (comparison_id)")


@migrations()
def m004_current_by_target(db: Database) -> None:
    """The latest word of each user and kind on a reply, found by index. A comparison takes one vote and needs none.

    One view for both targets would compare with NULL, which finds every row of the other one again and again.
    """
    db.executescript("""
        DROP VIEW current_feedback;
        CREATE VIEW current_on_replies AS
            SELECT f.* FROM feedback f WHERE f.message_id IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM feedback g WHERE g.message_id = f.message_id AND g.kind = f.kind
                AND g.user_id = f.user_id AND g.seq > f.seq
            );
    """)


@migrations()
def m005_heads(db: Database) -> None:
    """Where a conversation ends and which was asked last, by order: a clock may be set back."""
    db.executescript("""
        -- The last reply that was begun; replies.created_at is no order. By rowid, the order of writing.
        ALTER TABLE conversations ADD COLUMN head TEXT REFERENCES replies(id);
        -- UTC nanoseconds of the last question, or just above the user's greatest where the clock says less.
        ALTER TABLE conversations ADD COLUMN asked_at INTEGER NOT NULL DEFAULT 0;
        UPDATE conversations SET
            head = (SELECT id FROM replies r WHERE r.conversation_id = conversations.id ORDER BY r.rowid DESC LIMIT 1),
            asked_at = coalesce(
                (SELECT max(created_at) FROM replies r WHERE r.conversation_id = conversations.id), created_at);
        CREATE INDEX conversations_asked ON conversations (user_id, asked_at);
    """)


@migrations()
def m006_by_user_and_prompt(db: Database) -> None:
    """Find what a user was told or compared, and who was asked a prompt."""
    db.executescript("""
        CREATE INDEX replies_user ON replies (user_id, created_at);
        CREATE INDEX replies_prompt ON replies (prompt_sha256, user_id);
        CREATE INDEX comparisons_user ON comparisons (user_id, created_at);
        CREATE INDEX comparisons_prompt ON comparisons (prompt_sha256);
    """)


BROWSERS_BEFORE = "browser:before"
"""The person of all browser rows from before browsers were told apart."""


_PAGES = {
    "comparisons": "user_id = 'local' AND source = 'page'",
    "replies": "user_id = 'local' AND (conversation_id IS NOT NULL"
    " OR comparison_id IN (SELECT id FROM comparisons WHERE source = 'page'))",
}
_PAGES["feedback"] = (
    "user_id = 'local' AND ("
    + " OR ".join(
        f"{column} IN (SELECT id FROM {table} WHERE {_PAGES[table]})"
        for column, table in (("message_id", "replies"), ("comparison_id", "comparisons"))
    )
    + ")"
)


@migrations()
def m010_people(db: Database) -> None:
    """Who counts as a person: a browser, a key, or all programs without one. `user_id` stays whose row it is.

    What most rows have is the column's default, so that a large database is not written anew.
    """
    keys = [row["name"] for row in db.query("SELECT name FROM api_keys")] if "api_keys" in db.table_names() else []
    for table, theirs in _PAGES.items():
        of_pages = next(iter(db.query(f"SELECT avg({theirs}) > 0.5 AS most FROM {table}")))["most"]
        default = BROWSERS_BEFORE if of_pages else PROGRAMS
        db.execute(f"ALTER TABLE {table} ADD COLUMN person TEXT NOT NULL DEFAULT '{default}'")
        person = f"CASE WHEN {theirs} THEN '{BROWSERS_BEFORE}' ELSE '{PROGRAMS}' END"
        db.execute(f"UPDATE {table} SET person = {person} WHERE person <> {person}")
        for name in keys:
            whose = "user_id = ? OR instr(user_id, ? || '/') = 1"
            db.execute(f"UPDATE {table} SET person = 'key:' || ? WHERE {whose}", [name] * 3)


@migrations()
def m011_own_words(db: Database) -> None:
    """Only who said something takes it back: browsers share their rows, so anybody could undo everybody's votes.

    What a new browser said, any browser may take back: in a day it is another person, and its word weighs little.
    """
    db.executescript(f"""
        DROP VIEW current_on_replies;
        CREATE VIEW current_on_replies AS
            SELECT f.* FROM feedback f WHERE f.message_id IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM feedback g WHERE g.message_id = f.message_id AND g.kind = f.kind
                AND g.user_id = f.user_id AND g.seq > f.seq
                AND (g.person = f.person OR f.person = '{NEW_BROWSER}' AND g.person LIKE 'browser:%')
            );
    """)


@migrations()
def m012_words_from_before(db: Database) -> None:
    """Any browser takes back what browsers said before they were told apart, too: nobody is left who said it."""
    db.executescript(f"""
        DROP VIEW current_on_replies;
        CREATE VIEW current_on_replies AS
            SELECT f.* FROM feedback f WHERE f.message_id IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM feedback g WHERE g.message_id = f.message_id AND g.kind = f.kind
                AND g.user_id = f.user_id AND g.seq > f.seq
                AND (g.person = f.person
                    OR f.person IN ('{NEW_BROWSER}', '{BROWSERS_BEFORE}') AND g.person LIKE 'browser:%')
            );
    """)


@migrations()
def m020_out_of_training(db: Database) -> None:
    """Keep a reply, its prompt and the votes on it out of snapshots (0): a client said so, or it is half a reply."""
    db.execute("ALTER TABLE replies ADD COLUMN training INTEGER NOT NULL DEFAULT 1")


@migrations()
def m040_consents(db: Database) -> None:
    """What people with an account allow: append-only, the last answer counts."""
    db.executescript("""
        CREATE TABLE consents (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            user_id TEXT NOT NULL,            -- an account
            keep_chats INTEGER NOT NULL,
            use_votes INTEGER NOT NULL,
            use_text INTEGER NOT NULL,
            terms TEXT NOT NULL,              -- the version of the text that was shown
            at INTEGER NOT NULL
        ) STRICT;
        CREATE INDEX consents_user ON consents (user_id, seq);
    """)


_FORGOTTEN = """
CREATE TABLE forgettings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('person', 'chat', 'vote')),
    user_id TEXT NOT NULL,            -- whose
    asked_at INTEGER NOT NULL,
    done_at INTEGER                   -- NULL: a file somewhere may still hold it
) STRICT;
CREATE INDEX forgettings_open ON forgettings (id) WHERE done_at IS NULL;
CREATE INDEX forgettings_user ON forgettings (user_id);
CREATE TABLE forgotten (
    item TEXT NOT NULL,               -- id of a reply, a comparison or feedback
    forgetting INTEGER NOT NULL REFERENCES forgettings(id),
    own INTEGER NOT NULL,             -- 0: somebody else's vote on it, whose row stays
    PRIMARY KEY (forgetting, item)
) STRICT, WITHOUT ROWID;
CREATE INDEX forgotten_item ON forgotten (item);
CREATE TABLE forgotten_prompts (      -- until it is done: needed to find their lines in old snapshots
    sha256 TEXT NOT NULL,
    forgetting INTEGER NOT NULL REFERENCES forgettings(id),
    PRIMARY KEY (forgetting, sha256)
) STRICT, WITHOUT ROWID;
CREATE TABLE redacted (               -- snapshots that held something forgotten
    snapshot_id TEXT NOT NULL,
    forgetting INTEGER NOT NULL REFERENCES forgettings(id),
    PRIMARY KEY (snapshot_id, forgetting)
) STRICT, WITHOUT ROWID;
"""


@migrations()
def m041_forgotten(db: Database) -> None:
    """What was forgotten: wishes, the ids that they cover, and the snapshots that held them. No text."""
    db.executescript(_FORGOTTEN)
