-- Classes of urgency: a queued job of a better one comes before all others, whoever takes turns with whom.
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 2 CHECK (priority BETWEEN 0 AND 3); -- 0 is critical
ALTER TABLE jobs ADD COLUMN pool TEXT NOT NULL DEFAULT 'default'; -- of the agents that may run it
ALTER TABLE users ADD COLUMN max_priority INTEGER NOT NULL DEFAULT 2 CHECK (max_priority BETWEEN 0 AND 3);

DROP INDEX jobs_queued_by_user;
CREATE INDEX jobs_queued_by_user ON jobs (user_id, priority, created_at, id) WHERE status = 'queued';
