"""The tables of versions, the pointer and training runs: append-only and numbered, in the migration set `policies`."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlite_utils import Database, Migrations

from thumbwise.names import BASE

migrations = Migrations("policies")


_VERSIONS = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,   -- the n of policy-<n>-…, never reused
    snapshot_id TEXT NOT NULL,
    lease TEXT NOT NULL,              -- secret of the job that holds it
    lease_until REAL NOT NULL,        -- UTC seconds; renewed by heartbeats
    outcome TEXT,                     -- NULL while it runs
    reason TEXT NOT NULL DEFAULT '',
    started_at INTEGER NOT NULL,
    ended_at INTEGER
) STRICT;
CREATE TABLE policies (
    version TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,
    run_id TEXT REFERENCES runs(id),
    parent TEXT,                      -- what its training began from (of older builds: stable then)
    state TEXT NOT NULL CHECK (state IN
        ('staged', 'loaded', 'probed', 'canary', 'stable', 'retired', 'rejected')),
    algorithm TEXT NOT NULL,
    created_at TEXT NOT NULL,         -- ISO 8601, UTC
    data_sha256 TEXT NOT NULL,        -- snapshot it learned from
    n_labels INTEGER NOT NULL,
    metrics TEXT NOT NULL,            -- JSON
    reason TEXT NOT NULL DEFAULT ''   -- why rejected or retired
) STRICT;
CREATE TABLE pointer (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    stable TEXT NOT NULL REFERENCES policies(version),
    generation INTEGER NOT NULL
) STRICT;
CREATE TABLE pointer_log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    action TEXT NOT NULL CHECK (action IN ('promote', 'rollback')),
    old TEXT NOT NULL,
    new TEXT NOT NULL,
    reason TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;
"""


@migrations()
def m001_versions(db: Database) -> None:
    """Versions, the pointer with its log, and the runs that make versions."""
    db.executescript(_VERSIONS)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    base = {"version": BASE, "number": 0, "parent": None, "state": "stable", "algorithm": "base", "created_at": made}
    db.table("policies").insert(base | {"data_sha256": "", "n_labels": 0, "metrics": "{}"})
    db.table("pointer").insert({"id": 1, "stable": BASE, "generation": 0})


@migrations()
def m002_canary(db: Database) -> None:
    """A second version beside the stable one, for a share of people."""
    db.executescript("""
        ALTER TABLE pointer ADD COLUMN canary TEXT REFERENCES policies(version);
        ALTER TABLE pointer ADD COLUMN share REAL NOT NULL DEFAULT 0;
        ALTER TABLE pointer ADD COLUMN rollout TEXT NOT NULL DEFAULT '';     -- drawn anew for every canary
        ALTER TABLE pointer ADD COLUMN since INTEGER NOT NULL DEFAULT 0;     -- when it began
        CREATE TABLE moves (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            action TEXT NOT NULL CHECK (action IN ('promote', 'rollback', 'canary', 'withdraw')),
            old TEXT NOT NULL,
            new TEXT NOT NULL,
            reason TEXT NOT NULL,
            at INTEGER NOT NULL
        ) STRICT;
        INSERT INTO moves SELECT * FROM pointer_log;
        DROP TABLE pointer_log;
        ALTER TABLE moves RENAME TO pointer_log;
    """)


@migrations()
def m003_base(db: Database) -> None:
    """Which base model BASE is."""
    db.executescript("""
        CREATE TABLE base (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            digest TEXT NOT NULL,             -- SHA-256 over its files
            name TEXT NOT NULL
        ) STRICT;
    """)


@migrations()
def m004_ended(db: Database) -> None:
    """Runs whose lease ran out ended then."""
    ended = "outcome IS NOT NULL AND ended_at IS NULL"
    db.execute(f"UPDATE runs SET ended_at = CAST(lease_until * 1e9 AS INTEGER) WHERE {ended}")


@migrations()
def m010_from_where(db: Database) -> None:
    """From which row on a canary, or a version that became stable, is judged: a clock may be set back."""
    db.executescript("""
        ALTER TABLE pointer ADD COLUMN from_reply INTEGER NOT NULL DEFAULT 0;  -- rowid before a canary's first reply
        ALTER TABLE pointer ADD COLUMN from_vote INTEGER NOT NULL DEFAULT 0;   -- seq before its first vote
        ALTER TABLE pointer ADD COLUMN swapped_at INTEGER;  -- seq when stable was promoted; NULL after a rollback
        UPDATE pointer SET
            from_reply = (SELECT coalesce(max(rowid), 0) FROM replies WHERE created_at < since),
            from_vote = (SELECT coalesce(max(seq), 0) FROM feedback WHERE created_at < since);
    """)


@migrations()
def m020_actor(db: Database) -> None:
    """Who moved the pointer; of older moves nobody knows."""
    db.executescript("ALTER TABLE pointer_log ADD COLUMN actor TEXT NOT NULL DEFAULT '';")


@migrations()
def m030_lineage(db: Database) -> None:
    """What each run learned from. Ids and weights only."""
    db.executescript("""
        CREATE TABLE lineage (
            run_id TEXT NOT NULL REFERENCES runs(id),
            feedback_id TEXT NOT NULL,    -- feedback(id); of a prompt, the id of the reply whose prompt it is
            kind TEXT NOT NULL CHECK (kind IN ('vote', 'demonstration', 'prompt')),
            weight REAL NOT NULL,         -- its final weight; 0: it was looked at and had no part
            PRIMARY KEY (run_id, feedback_id, kind)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX lineage_item ON lineage (feedback_id);
        ALTER TABLE runs ADD COLUMN learned INTEGER;  -- items in lineage; NULL until the run has sent all of them
    """)
