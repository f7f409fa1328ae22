-- Timestamps are ISO 8601 UTC text of fixed width, so that they sort as they stand; booleans are 0 and 1.

CREATE TABLE installation (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    instance_id TEXT NOT NULL
) STRICT;

-- The one controller. A writer of the control plane names epoch and holder.
CREATE TABLE controller (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    holder TEXT NOT NULL,
    heartbeat_at TEXT NOT NULL,
    note TEXT
) STRICT;

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    email TEXT NOT NULL,
    email_folded TEXT NOT NULL UNIQUE, -- addresses are compared without case
    created_at TEXT NOT NULL,
    is_active INTEGER NOT NULL CHECK (is_active IN (0, 1)),
    role TEXT NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    key_hash TEXT NOT NULL UNIQUE,
    prefix TEXT NOT NULL,
    scopes TEXT NOT NULL, -- sorted, separated by blanks
    created_at TEXT NOT NULL,
    expires_at TEXT,
    last_used_at TEXT,
    is_active INTEGER NOT NULL CHECK (is_active IN (0, 1))
) STRICT;

CREATE INDEX api_keys_by_user ON api_keys (user_id);

CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at TEXT NOT NULL,
    archive_ref TEXT NOT NULL,
    status TEXT NOT NULL,
    options TEXT NOT NULL, -- JSON
    attempt INTEGER NOT NULL DEFAULT 0,
    success INTEGER CHECK (success IN (0, 1)),
    exit_code INTEGER,
    reason TEXT,
    message TEXT,
    start_time TEXT,
    end_time TEXT,
    queued_since TEXT NOT NULL, -- what queue_timeout counts from
    not_before TEXT,
    cancel_requested_at TEXT,
    cancel_requested_by TEXT,
    image_id TEXT,
    log_size INTEGER,
    log_sha256 TEXT,
    idempotency_key TEXT,
    idempotency_fingerprint TEXT,
    UNIQUE (user_id, idempotency_key),
    CHECK ((success IS NULL) = (end_time IS NULL)), -- both are set exactly when the job is terminal
    CHECK ((success = 1) = (reason IS NULL AND end_time IS NOT NULL) OR success IS NULL)
) STRICT;

CREATE INDEX jobs_by_age ON jobs (created_at, id);
CREATE INDEX jobs_by_user ON jobs (user_id, created_at, id);
CREATE INDEX jobs_queued ON jobs (created_at, id) WHERE status = 'queued';
CREATE INDEX jobs_queued_since ON jobs (queued_since) WHERE status = 'queued';
CREATE INDEX jobs_by_archive ON jobs (archive_ref);

CREATE TABLE attempts (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    holder TEXT NOT NULL,
    token TEXT NOT NULL,
    container_id TEXT UNIQUE,
    image_id TEXT,
    claimed_at TEXT NOT NULL,
    started_at TEXT,
    begun_at TEXT, -- the user's own code began to run: the attempt is charged
    ended_at TEXT,
    stop_reason TEXT,
    stop_message TEXT,
    stop_at TEXT,
    exit_code INTEGER,
    reason TEXT,
    message TEXT,
    log_size INTEGER,
    log_sha256 TEXT,
    log_truncated INTEGER CHECK (log_truncated IN (0, 1)),
    PRIMARY KEY (job_id, number)
) STRICT;

CREATE UNIQUE INDEX attempts_open ON attempts (job_id) WHERE ended_at IS NULL; -- one at a time

CREATE TABLE job_events (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    type TEXT NOT NULL,
    timestamp TEXT NOT NULL,
    data TEXT NOT NULL, -- JSON
    PRIMARY KEY (job_id, position)
) STRICT, WITHOUT ROWID;
