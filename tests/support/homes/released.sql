-- The database as the program of commit f921e9e wrote it: before accounts, with the migration sets of that time.
-- Made once by that program's own Store, Versions and Keys, and written out with sqlite3's iterdump. In it: two chats of
-- two browsers with a thumb each, a comparison with a vote, the key `bot` that spoke for itself and for `bot/carl`, the
-- revoked key `old`, and a program without a key that named `dora`. The key's text is tw-of-the-released-database.
BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
) STRICT;
INSERT INTO "_sqlite_migrations" VALUES(1,'feedback','m001_first','2026-12-01 01:19:56.497297+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'feedback','m002_by_version','2026-12-01 01:19:56.506024+00:00');
INSERT INTO "_sqlite_migrations" VALUES(3,'feedback','m003_by_comparison','2026-12-01 01:19:56.513660+00:00');
INSERT INTO "_sqlite_migrations" VALUES(4,'feedback','m004_current_by_target','2026-12-01 01:19:56.526220+00:00');
INSERT INTO "_sqlite_migrations" VALUES(5,'feedback','m005_heads','2026-12-01 01:19:56.534915+00:00');
INSERT INTO "_sqlite_migrations" VALUES(6,'feedback','m006_by_user_and_prompt','2026-12-01 01:19:56.538066+00:00');
INSERT INTO "_sqlite_migrations" VALUES(7,'feedback','m010_people','2026-12-01 01:19:56.546672+00:00');
INSERT INTO "_sqlite_migrations" VALUES(8,'feedback','m011_own_words','2026-12-01 01:19:56.551152+00:00');
INSERT INTO "_sqlite_migrations" VALUES(9,'feedback','m012_words_from_before','2026-12-01 01:19:56.558563+00:00');
INSERT INTO "_sqlite_migrations" VALUES(10,'feedback','m020_out_of_training','2026-12-01 01:19:56.563918+00:00');
INSERT INTO "_sqlite_migrations" VALUES(11,'policies','m001_versions','2026-12-01 01:19:56.576463+00:00');
INSERT INTO "_sqlite_migrations" VALUES(12,'policies','m002_canary','2026-12-01 01:19:56.591985+00:00');
INSERT INTO "_sqlite_migrations" VALUES(13,'policies','m003_base','2026-12-01 01:19:56.606144+00:00');
INSERT INTO "_sqlite_migrations" VALUES(14,'policies','m004_ended','2026-12-01 01:19:56.613776+00:00');
INSERT INTO "_sqlite_migrations" VALUES(15,'policies','m010_from_where','2026-12-01 01:19:56.626738+00:00');
INSERT INTO "_sqlite_migrations" VALUES(16,'policies','m020_actor','2026-12-01 01:19:56.638198+00:00');
INSERT INTO "_sqlite_migrations" VALUES(17,'accounts','m001_api_keys','2026-12-01 01:19:56.643988+00:00');
CREATE TABLE api_keys (
            name TEXT PRIMARY KEY,
            sha256 TEXT NOT NULL UNIQUE,
            scopes TEXT NOT NULL,             -- JSON list
            created_at TEXT NOT NULL,         -- ISO 8601, UTC
            revoked_at TEXT
        ) STRICT;
INSERT INTO "api_keys" VALUES('bot','174a8b66e672529bc9d2b4b38e263b6fe60301882acc335685aacefab0fa9606','["chat", "feedback"]','2026-12-01T01:19:56+00:00',NULL);
INSERT INTO "api_keys" VALUES('old','777c855e00d521a71b564183063f94ac10c3b29ef1b265b2e4c4f524a06887c9','["chat", "feedback"]','2026-12-01T01:19:56+00:00','2026-12-01T01:19:56+00:00');
CREATE TABLE base (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            digest TEXT NOT NULL,             -- SHA-256 over its files
            name TEXT NOT NULL
        ) STRICT;
CREATE TABLE comparisons (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    prompt_sha256 TEXT NOT NULL REFERENCES prompts(sha256),
    source TEXT NOT NULL,             -- who asked for it: page | api
    shown TEXT NOT NULL,              -- JSON list of reply ids in shown order, drawn by the server
    created_at INTEGER NOT NULL
, person TEXT NOT NULL DEFAULT 'programs') STRICT;
INSERT INTO "comparisons" VALUES('cmp_01M8QJZR97J6203DNB2GDZWKW0','local','bfbfe4b83c5941e8deb119081c282846f4cf2e5e6db077252a4840bd99c6d51c','page','["msg_01M8QJZR984CK6RQX9Q5RNGD4J", "msg_01M8QJZR984CK6RQX9Q5RNGD4K"]',1796087996711917680,'browser:ann');
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    title TEXT NOT NULL,              -- from the first prompt
    created_at INTEGER NOT NULL
, head TEXT REFERENCES replies(id), asked_at INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO "conversations" VALUES('conv_01M8QJZR7H9784RR38TG1ZDN0E','local','Is the sea deep?',1796087996658048583,'msg_01M8QJZR7QPYNHMBX3YCTYDASP',1796087996664197669);
INSERT INTO "conversations" VALUES('conv_01M8QJZR8DZY5TCS5EVF9BJ91X','local','Is the sky high?',1796087996685931652,'msg_01M8QJZR8NWE11VCQ3XSRG9YXA',1796087996694149365);
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
    created_at INTEGER NOT NULL, person TEXT NOT NULL DEFAULT 'programs',
    UNIQUE (user_id, idempotency_key),
    CHECK ((message_id IS NULL) <> (comparison_id IS NULL))
) STRICT;
INSERT INTO "feedback" VALUES(1,'fb_01M8QJZR8A2X5MS6Z35HXC6KPV','local','thumb','msg_01M8QJZR7QPYNHMBX3YCTYDASP',NULL,'{"thumb":"up"}','thumb-1','f325c13014108416c988f808439dc44e3abd5d77a857dec1e80f7211942f909e','local',1796087996682491518,'browser:ann');
INSERT INTO "feedback" VALUES(2,'fb_01M8QJZR92FDSXH9WSK98ZT9RE','local','thumb','msg_01M8QJZR8NWE11VCQ3XSRG9YXA',NULL,'{"thumb":"up"}','thumb-2','4fa82cedb1acdb8e9a3baaed44a83af7299ede889d1b5d880730e2813bf2582e','local',1796087996706315220,'browser:bob');
INSERT INTO "feedback" VALUES(3,'fb_01M8QJZR9JFVPPPC3R2HQG4T97','local','pair',NULL,'cmp_01M8QJZR97J6203DNB2GDZWKW0','{"choice":"left","strength":1}','pair-1','0201b7bd614ab61449f991fd806b31235971f22f089dcc0366f9bf4ac3951b3c','local',1796087996722762684,'browser:ann');
INSERT INTO "feedback" VALUES(4,'fb_01M8QJZRAYRTBEG4SKX2CQW4FN','bot','thumb','msg_01M8QJZRAP3EEY51EQNBXF44YF',NULL,'{"thumb":"down"}','k-1','44d8521d017d6a40f732846c8564c6d43a58f0610b627a6acac44baf37bfecce','local',1796087996766155777,'key:bot');
INSERT INTO "feedback" VALUES(5,'fb_01M8QJZRBJJ80KP8ZBP4CTMA00','bot/carl','thumb','msg_01M8QJZRBAAGBNQZHNMNXZMSN1',NULL,'{"thumb":"down"}','k-1','4f6c9d169796c94336e3e9b7e34a7153b50b63e4b15a7cd9ea8935a2eefd4b5c','local',1796087996786543371,'key:bot');
CREATE TABLE pointer (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    stable TEXT NOT NULL REFERENCES policies(version),
    generation INTEGER NOT NULL
, canary TEXT REFERENCES policies(version), share REAL NOT NULL DEFAULT 0, rollout TEXT NOT NULL DEFAULT '', since INTEGER NOT NULL DEFAULT 0, from_reply INTEGER NOT NULL DEFAULT 0, from_vote INTEGER NOT NULL DEFAULT 0, swapped_at INTEGER) STRICT;
INSERT INTO "pointer" VALUES(1,'policy-0000',0,NULL,0.0,'',0,0,0,NULL);
CREATE TABLE "pointer_log" (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            action TEXT NOT NULL CHECK (action IN ('promote', 'rollback', 'canary', 'withdraw')),
            old TEXT NOT NULL,
            new TEXT NOT NULL,
            reason TEXT NOT NULL,
            at INTEGER NOT NULL
        , actor TEXT NOT NULL DEFAULT '') STRICT;
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
INSERT INTO "policies" VALUES('policy-0000',0,NULL,NULL,'stable','base','2026-12-01T01:19:56+00:00','',0,'{}','');
CREATE TABLE prompts (
    sha256 TEXT PRIMARY KEY,
    messages TEXT NOT NULL            -- canonical JSON [{"role","content"}]
) STRICT;
INSERT INTO "prompts" VALUES('71aa198feab4879f58790d4f20e42e29d0e576155ebc1dbd7b3fb55ca247a503','[{"content":"Is the sea deep?","role":"user"}]');
INSERT INTO "prompts" VALUES('4435ff65800406c49515fc392aec1f8249b7b4fc0e4db5308b59c58dbfa81f1c','[{"content":"Is the sky high?","role":"user"}]');
INSERT INTO "prompts" VALUES('bfbfe4b83c5941e8deb119081c282846f4cf2e5e6db077252a4840bd99c6d51c','[{"content":"Say hello.","role":"user"}]');
INSERT INTO "prompts" VALUES('933fc06ea13e8e2de88468cf5ba3facd7e3baef9cb3d90435189dd0a746c5ac1','[{"content":"I am bot.","role":"user"}]');
INSERT INTO "prompts" VALUES('26e8d7b4aff0fcdc39b65ef8e822818525147becb88cc0fe8b10e1e1f64b759d','[{"content":"I am bot/carl.","role":"user"}]');
INSERT INTO "prompts" VALUES('4d7a3c65dd6d179c5e54431ddbf0e78538f081e05555cd6a8ea7661e0fe44f39','[{"content":"I have no key.","role":"user"}]');
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
, person TEXT NOT NULL DEFAULT 'programs', training INTEGER NOT NULL DEFAULT 1) STRICT;
INSERT INTO "replies" VALUES('msg_01M8QJZR7QPYNHMBX3YCTYDASP','local','71aa198feab4879f58790d4f20e42e29d0e576155ebc1dbd7b3fb55ca247a503','conv_01M8QJZR7H9784RR38TG1ZDN0E',NULL,NULL,'base','{"max_tokens":8,"temperature":0.7}','done','Very.','stop','[1, 2]','[3, 4]',NULL,1796087996664025242,1796087996673886688,'browser:ann',1);
INSERT INTO "replies" VALUES('msg_01M8QJZR8NWE11VCQ3XSRG9YXA','local','4435ff65800406c49515fc392aec1f8249b7b4fc0e4db5308b59c58dbfa81f1c','conv_01M8QJZR8DZY5TCS5EVF9BJ91X',NULL,NULL,'base','{"max_tokens":8,"temperature":0.7}','done','Yes.','stop','[1, 2]','[3, 4]',NULL,1796087996694033212,1796087996697537852,'browser:bob',1);
INSERT INTO "replies" VALUES('msg_01M8QJZR984CK6RQX9Q5RNGD4J','local','bfbfe4b83c5941e8deb119081c282846f4cf2e5e6db077252a4840bd99c6d51c',NULL,NULL,'cmp_01M8QJZR97J6203DNB2GDZWKW0','base','{"max_tokens":8,"temperature":0.7}','done','Hello.','stop','[1]','[5]',NULL,1796087996712108715,1796087996713826198,'browser:ann',1);
INSERT INTO "replies" VALUES('msg_01M8QJZR984CK6RQX9Q5RNGD4K','local','bfbfe4b83c5941e8deb119081c282846f4cf2e5e6db077252a4840bd99c6d51c',NULL,NULL,'cmp_01M8QJZR97J6203DNB2GDZWKW0','base','{"max_tokens":8,"temperature":0.7}','done','Hi.','stop','[1]','[5]',NULL,1796087996712256065,1796087996721844453,'browser:ann',1);
INSERT INTO "replies" VALUES('msg_01M8QJZRAP3EEY51EQNBXF44YF','bot','933fc06ea13e8e2de88468cf5ba3facd7e3baef9cb3d90435189dd0a746c5ac1',NULL,NULL,NULL,'base','{"max_tokens":8,"temperature":0.7}','done','Good.','stop','[1, 2]','[3, 4]',NULL,1796087996758095599,1796087996763957447,'key:bot',1);
INSERT INTO "replies" VALUES('msg_01M8QJZRBAAGBNQZHNMNXZMSN1','bot/carl','26e8d7b4aff0fcdc39b65ef8e822818525147becb88cc0fe8b10e1e1f64b759d',NULL,NULL,NULL,'base','{"max_tokens":8,"temperature":0.7}','done','Good.','stop','[1, 2]','[3, 4]',NULL,1796087996778128213,1796087996785834483,'key:bot',1);
INSERT INTO "replies" VALUES('msg_01M8QJZRBJJ80KP8ZBP4CTMA01','dora','4d7a3c65dd6d179c5e54431ddbf0e78538f081e05555cd6a8ea7661e0fe44f39',NULL,NULL,NULL,'base','{"max_tokens":8,"temperature":0.7}','done','Never mind.','stop','[1, 2]','[3, 4]',NULL,1796087996787023908,1796087996797669364,'programs',1);
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
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX replies_conversation ON replies (conversation_id, created_at);
CREATE INDEX replies_streaming ON replies (state) WHERE state = 'streaming';
CREATE INDEX feedback_message ON feedback (message_id, kind);
CREATE INDEX feedback_comparison ON feedback (comparison_id);
CREATE INDEX replies_version ON replies (policy_version, created_at);
CREATE INDEX replies_comparison ON replies (comparison_id);
CREATE INDEX conversations_asked ON conversations (user_id, asked_at);
CREATE INDEX replies_user ON replies (user_id, created_at);
CREATE INDEX replies_prompt ON replies (prompt_sha256, user_id);
CREATE INDEX comparisons_user ON comparisons (user_id, created_at);
CREATE INDEX comparisons_prompt ON comparisons (prompt_sha256);
CREATE VIEW current_on_replies AS
            SELECT f.* FROM feedback f WHERE f.message_id IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM feedback g WHERE g.message_id = f.message_id AND g.kind = f.kind
                AND g.user_id = f.user_id AND g.seq > f.seq
                AND (g.person = f.person
                    OR f.person IN ('browser:new', 'browser:before') AND g.person LIKE 'browser:%')
            );
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('pointer_log',0);
INSERT INTO "sqlite_sequence" VALUES('feedback',5);
COMMIT;
