-- The same tables and columns as in SQLite, in the same stored form, so that one set of statements and one reading of
-- rows serves both: times are ISO 8601 UTC text of fixed width, booleans are 0 and 1, what is JSON is text.
-- Text is compared byte by byte (COLLATE "C"), whatever language the database was created for.

CREATE TABLE installation (
    id integer PRIMARY KEY CHECK (id = 1),
    instance_id text COLLATE "C" NOT NULL
);

-- The one controller. A writer of the control plane names epoch and holder.
CREATE TABLE controller (
    id integer PRIMARY KEY CHECK (id = 1),
    epoch bigint NOT NULL,
    holder text COLLATE "C" NOT NULL,
    heartbeat_at text COLLATE "C" NOT NULL,
    note text COLLATE "C",
    released_at text COLLATE "C", -- set by one that ended of its own accord: whoever waits need not wait for its silence
    runs_on text COLLATE "C", -- the engine whose containers are its own; null: it runs no jobs itself, or could not tell
    runs_jobs integer NOT NULL DEFAULT 1 CHECK (runs_jobs IN (0, 1)) -- 0: agents alone do
) WITH (fillfactor = 50); -- written every few seconds: room for the next versions of the row beside it

-- While its row stands, nothing is claimed.
CREATE TABLE queue_pause (
    id integer PRIMARY KEY CHECK (id = 1),
    at text COLLATE "C" NOT NULL,
    by text COLLATE "C" NOT NULL, -- "operator (<login name>)"
    reason text COLLATE "C"
);

CREATE TABLE users (
    id text COLLATE "C" PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    email text COLLATE "C" NOT NULL,
    email_folded text COLLATE "C" NOT NULL UNIQUE, -- addresses are compared without case
    created_at text COLLATE "C" NOT NULL,
    is_active integer NOT NULL CHECK (is_active IN (0, 1)),
    role text COLLATE "C" NOT NULL,
    last_claim bigint NOT NULL DEFAULT 0, -- whose job was claimed longest ago comes first, counted in claims
    forgettings bigint NOT NULL DEFAULT 0, -- how often contents of the user's files came to count as missing
    max_priority integer NOT NULL DEFAULT 2 CHECK (max_priority BETWEEN 0 AND 3), -- 0 is critical
    max_running integer CHECK (max_running > 0) -- jobs that are claimed or running at the same time; null: any number
);

CREATE INDEX users_by_last_claim ON users (last_claim);

CREATE TABLE api_keys (
    id text COLLATE "C" PRIMARY KEY,
    user_id text COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name text COLLATE "C" NOT NULL,
    key_hash text COLLATE "C" NOT NULL UNIQUE,
    prefix text COLLATE "C" NOT NULL,
    scopes text COLLATE "C" NOT NULL, -- sorted, separated by blanks
    created_at text COLLATE "C" NOT NULL,
    expires_at text COLLATE "C",
    last_used_at text COLLATE "C",
    is_active integer NOT NULL CHECK (is_active IN (0, 1))
);

CREATE INDEX api_keys_by_user ON api_keys (user_id);
-- Keys are looked up by their public part; the hash is compared afterwards, in constant time.
CREATE UNIQUE INDEX api_keys_by_prefix ON api_keys (prefix);

-- Runners on other hosts, each known by the key it registered with. A row stays when its agent is gone: attempts name it.
CREATE TABLE agents (
    id text COLLATE "C" PRIMARY KEY REFERENCES api_keys (id) ON DELETE CASCADE,
    name text COLLATE "C" NOT NULL,
    pool text COLLATE "C" NOT NULL,
    slots integer NOT NULL CHECK (slots > 0),
    labels text COLLATE "C" NOT NULL, -- separated by blanks
    version text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL CHECK (state IN ('active', 'draining', 'removed')),
    epoch bigint NOT NULL DEFAULT 1, -- rises with each registration
    beats bigint NOT NULL DEFAULT 0, -- rises with each heartbeat: leases are judged by it, since clocks step
    registered_at text COLLATE "C" NOT NULL,
    last_heartbeat text COLLATE "C" NOT NULL,
    note text COLLATE "C",
    disk_free bigint,
    jobs_completed bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50); -- written every few seconds, as the controller's row

-- What operators decided about pools of agents; a pool without a row has no limit.
CREATE TABLE pools (
    name text COLLATE "C" PRIMARY KEY,
    max_running integer NOT NULL CHECK (max_running > 0) -- jobs that are claimed or running at the same time
);

CREATE TABLE jobs (
    id text COLLATE "C" PRIMARY KEY,
    user_id text COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at text COLLATE "C" NOT NULL,
    archive_ref text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    options text COLLATE "C" NOT NULL, -- JSON
    attempt integer NOT NULL DEFAULT 0,
    success integer CHECK (success IN (0, 1)),
    exit_code bigint,
    reason text COLLATE "C",
    message text COLLATE "C",
    start_time text COLLATE "C",
    end_time text COLLATE "C",
    queued_since text COLLATE "C" NOT NULL, -- what queue_timeout counts from
    not_before text COLLATE "C",
    cancel_requested_at text COLLATE "C",
    cancel_requested_by text COLLATE "C",
    image_id text COLLATE "C",
    image_cached integer CHECK (image_cached IN (0, 1)),
    log_size bigint,
    log_sha256 text COLLATE "C",
    log_truncated integer CHECK (log_truncated IN (0, 1)),
    idempotency_key text COLLATE "C",
    idempotency_fingerprint text COLLATE "C",
    archive_pruned_at text COLLATE "C",
    log_pruned_at text COLLATE "C",
    priority integer NOT NULL DEFAULT 2 CHECK (priority BETWEEN 0 AND 3), -- 0 is critical
    pool text COLLATE "C" NOT NULL DEFAULT 'default', -- of the agents that may run it
    queue_deadline text COLLATE "C", -- where the submitter said how long it may wait; the controller's limit holds for all
    repeat_of text COLLATE "C", -- no foreign key, since a job may be pruned before the one that repeats it
    UNIQUE (user_id, idempotency_key),
    CHECK ((success IS NULL) = (end_time IS NULL)), -- both are set exactly when the job is terminal
    CHECK ((success = 1) = (reason IS NULL AND end_time IS NOT NULL) OR success IS NULL)
);

CREATE INDEX jobs_by_age ON jobs (created_at, id);
CREATE INDEX jobs_by_user ON jobs (user_id, created_at, id);
CREATE INDEX jobs_by_archive ON jobs (archive_ref);
CREATE INDEX jobs_by_end ON jobs (end_time, id) WHERE end_time IS NOT NULL;
-- A queue fills faster than statistics follow. To a planner that has heard of nothing queued, any index of what is queued
-- finds the one job of an id, or of a user, in no time. So each index names the column that a statement must name to use it.
CREATE INDEX jobs_queued ON jobs (created_at, id) WHERE status = 'queued' AND created_at IS NOT NULL;
CREATE INDEX jobs_queued_since ON jobs (queued_since) WHERE status = 'queued' AND queued_since IS NOT NULL;
CREATE INDEX jobs_queued_by_user ON jobs (user_id, pool, priority, created_at, id)
    WHERE status = 'queued' AND user_id IS NOT NULL;
CREATE INDEX jobs_queue_deadline ON jobs (queue_deadline) WHERE status = 'queued' AND queue_deadline IS NOT NULL;
CREATE INDEX jobs_by_repeated ON jobs (repeat_of) WHERE repeat_of IS NOT NULL;
CREATE INDEX jobs_dead ON jobs (end_time, id) WHERE status = 'dead_lettered';
CREATE INDEX jobs_open_by_user ON jobs (user_id) WHERE status IN ('claimed', 'running') AND user_id IS NOT NULL;
CREATE INDEX jobs_open_by_pool ON jobs (pool) WHERE status IN ('claimed', 'running') AND pool IS NOT NULL;

CREATE TABLE attempts (
    job_id text COLLATE "C" NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number integer NOT NULL,
    holder text COLLATE "C" NOT NULL,
    token text COLLATE "C" NOT NULL,
    container_id text COLLATE "C" UNIQUE,
    image_id text COLLATE "C",
    image_cached integer CHECK (image_cached IN (0, 1)),
    claimed_at text COLLATE "C" NOT NULL,
    started_at text COLLATE "C",
    begun_at text COLLATE "C", -- the user's own code began to run: the attempt is charged
    ended_at text COLLATE "C",
    stop_reason text COLLATE "C",
    stop_message text COLLATE "C",
    stop_at text COLLATE "C",
    exit_code bigint,
    reason text COLLATE "C",
    message text COLLATE "C",
    log_size bigint,
    log_sha256 text COLLATE "C",
    log_truncated integer CHECK (log_truncated IN (0, 1)),
    agent_id text COLLATE "C" REFERENCES agents (id), -- who holds it; null: the controller
    PRIMARY KEY (job_id, number)
);

CREATE UNIQUE INDEX attempts_open ON attempts (job_id) WHERE ended_at IS NULL; -- one at a time
CREATE INDEX attempts_by_image ON attempts (image_id, started_at, ended_at) WHERE image_id IS NOT NULL;

CREATE TABLE job_events (
    job_id text COLLATE "C" NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    position integer NOT NULL,
    type text COLLATE "C" NOT NULL,
    timestamp text COLLATE "C" NOT NULL,
    data text COLLATE "C" NOT NULL, -- JSON
    PRIMARY KEY (job_id, position)
);

-- Written by the transaction that ends a job. The outcome is a reason, or 'passed'.
CREATE TABLE daily_totals (
    day text COLLATE "C" NOT NULL, -- UTC, of the job's end
    user_id text COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    outcome text COLLATE "C" NOT NULL,
    jobs bigint NOT NULL,
    PRIMARY KEY (day, user_id, outcome)
);

-- Who did what to users, keys, jobs and the database; written by the transaction that did it.
CREATE TABLE audit_events (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    at text COLLATE "C" NOT NULL,
    actor text COLLATE "C" NOT NULL, -- an e-mail address, or "operator (<login name>)"
    action text COLLATE "C" NOT NULL, -- user.create, key.revoke, job.cancel …
    subject text COLLATE "C" NOT NULL, -- the id of what it was done to; no foreign key, since rows outlive what they tell of
    request_id text COLLATE "C", -- of the HTTP request; null where a command did it
    details text COLLATE "C" NOT NULL -- JSON object, never a secret
);

CREATE INDEX audit_events_by_time ON audit_events (at, id);

-- Contents of files that users sent apart from their trees. What one request brought lies in one file, its pack; the
-- name is made for its row, so that pruning an old one never hits a fresh upload of the same contents.
CREATE TABLE packs (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, -- never used again
    user_id text COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name text COLLATE "C" NOT NULL UNIQUE, -- of the file
    size bigint NOT NULL, -- bytes that it takes: of the file, and of the rows about it
    created_at text COLLATE "C" NOT NULL,
    used_at text COLLATE "C" NOT NULL -- when a job was last submitted that needs something of it
);

CREATE INDEX packs_by_user ON packs (user_id);

CREATE TABLE blobs (
    user_id text COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    sha256 bytea NOT NULL, -- of the contents themselves
    pack_id bigint NOT NULL REFERENCES packs (id) ON DELETE CASCADE,
    "offset" bigint NOT NULL,
    stored bigint NOT NULL, -- bytes in the pack
    size bigint NOT NULL, -- bytes of the contents
    encoding integer NOT NULL, -- 0: as they are, 1: zlib
    PRIMARY KEY (user_id, sha256)
);

CREATE INDEX blobs_by_pack ON blobs (pack_id);

-- While such a row stands its pack cannot go; it goes with the job, or when the job's archive is marked as pruned.
CREATE TABLE job_packs (
    job_id text COLLATE "C" NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    pack_id bigint NOT NULL REFERENCES packs (id),
    PRIMARY KEY (job_id, pack_id)
);

CREATE INDEX job_packs_by_pack ON job_packs (pack_id);
