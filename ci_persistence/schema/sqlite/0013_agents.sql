-- Runners on other hosts, each known by the key it registered with. A row stays when its agent is gone: attempts name it.
CREATE TABLE agents (
    id TEXT PRIMARY KEY REFERENCES api_keys (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    pool TEXT NOT NULL,
    slots INTEGER NOT NULL CHECK (slots > 0),
    labels TEXT NOT NULL, -- separated by blanks
    version TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'draining', 'removed')),
    epoch INTEGER NOT NULL DEFAULT 1, -- rises with each registration
    beats INTEGER NOT NULL DEFAULT 0, -- rises with each heartbeat: leases are judged by it, since clocks step
    registered_at TEXT NOT NULL,
    last_heartbeat TEXT NOT NULL,
    note TEXT,
    disk_free INTEGER,
    jobs_completed INTEGER NOT NULL DEFAULT 0
) STRICT;

ALTER TABLE attempts ADD COLUMN agent_id TEXT REFERENCES agents (id); -- who holds it; null: the controller

-- A claim is of one pool.
DROP INDEX jobs_queued_by_user;
CREATE INDEX jobs_queued_by_user ON jobs (user_id, pool, priority, created_at, id) WHERE status = 'queued';
