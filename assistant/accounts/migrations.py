"""Schema of the `accounts` migration set: people, how they log in, keys, and the audit log. Append-only, numbered.

Times are UTC nanoseconds, in `api_keys` ISO 8601. Of secrets (session, link, key) only the SHA-256 is stored. They are
random, so a slow hash is not needed; passwords get argon2.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

migrations = Migrations("accounts")


@migrations()
def m001_api_keys(db: Database) -> None:
    """Keys by the hash of their text."""
    db.executescript("""
        CREATE TABLE api_keys (
            name TEXT PRIMARY KEY,
            sha256 TEXT NOT NULL UNIQUE,
            scopes TEXT NOT NULL,             -- JSON list
            created_at TEXT NOT NULL,         -- ISO 8601, UTC
            revoked_at TEXT
        ) STRICT;
    """)


_PEOPLE = """
CREATE TABLE users (
    id TEXT PRIMARY KEY,              -- usr_…; owns rows of the feedback tables
    name TEXT NOT NULL UNIQUE,        -- normalized: what is typed at the login
    role TEXT NOT NULL CHECK (role IN ('user', 'reviewer', 'operator')),
    state TEXT NOT NULL CHECK (state IN ('pending', 'active', 'disabled', 'deleted')),
    password TEXT,                    -- argon2 hash; NULL: no login with a password
    created_at INTEGER NOT NULL,
    seen_at INTEGER
) STRICT;
CREATE TABLE identities (
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    user_id TEXT NOT NULL REFERENCES users(id),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (issuer, subject)
) STRICT;
CREATE INDEX identities_user ON identities (user_id);
CREATE TABLE sessions (
    sha256 TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users(id),
    created_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_user ON sessions (user_id);
CREATE TABLE links (
    sha256 TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('setup', 'invite', 'reset')),
    role TEXT NOT NULL,               -- of the account that it makes
    user_id TEXT REFERENCES users(id),   -- whose password it resets
    made_by TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at INTEGER
) STRICT;
-- Append-only: triggers refuse to change or remove a row.
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,              -- account id, or command line, job, local, nobody
    via TEXT NOT NULL,                -- session, proxy, key, token, …
    address TEXT NOT NULL,
    action TEXT NOT NULL,             -- user.create, login.failed, …
    target TEXT NOT NULL,
    detail TEXT NOT NULL              -- JSON; no secret and no text of a chat
) STRICT;
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
    BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
    BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;
"""


@migrations()
def m002_people(db: Database) -> None:
    """Accounts, sessions, one-time links, identities at providers, and the audit log."""
    db.executescript(_PEOPLE)


@migrations()
def m010_logins(db: Database) -> None:
    """Find the logins of the last months, which tell from which addresses an account was used."""
    db.execute("CREATE INDEX audit_action ON audit (action, at)")


_OWNED_KEYS = """
ALTER TABLE api_keys RENAME TO api_keys_before;
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,              -- key_…
    name TEXT NOT NULL,
    user_id TEXT REFERENCES users(id),   -- the owner; NULL: made in `local`
    prefix TEXT NOT NULL,             -- how its text begins; empty: not known
    sha256 TEXT NOT NULL UNIQUE,
    scopes TEXT NOT NULL,             -- JSON list
    created_at TEXT NOT NULL,         -- ISO 8601, UTC, as are the others
    expires_at TEXT,
    used_at TEXT,
    revoked_at TEXT
) STRICT;
INSERT INTO api_keys (id, name, prefix, sha256, scopes, created_at, revoked_at)
    SELECT 'key_' || name, name, '', sha256, scopes, created_at, revoked_at FROM api_keys_before;
DROP TABLE api_keys_before;
-- In `local` the name is in the rows that a key causes, so it is never given out again.
CREATE UNIQUE INDEX api_keys_local ON api_keys (name) WHERE user_id IS NULL;
CREATE UNIQUE INDEX api_keys_owned ON api_keys (user_id, name) WHERE user_id IS NOT NULL AND revoked_at IS NULL;
CREATE TRIGGER api_keys_die AFTER UPDATE OF state ON users WHEN NEW.state = 'deleted'
    BEGIN DELETE FROM api_keys WHERE user_id = NEW.id; END;
"""


@migrations()
def m020_keys_of_people(db: Database) -> None:
    """Keys belong to an account, several each; they die with it."""
    db.executescript(_OWNED_KEYS)
