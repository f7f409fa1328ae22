-- Claiming takes turns: whose job was claimed longest ago comes first, counted in claims and not by a clock.
ALTER TABLE users ADD COLUMN last_claim INTEGER NOT NULL DEFAULT 0;

CREATE INDEX users_by_last_claim ON users (last_claim);

DROP INDEX jobs_queued_by_user;
CREATE INDEX jobs_queued_by_user ON jobs (user_id, created_at, id) WHERE status = 'queued';
CREATE INDEX jobs_open_by_user ON jobs (user_id) WHERE status IN ('claimed', 'running');
