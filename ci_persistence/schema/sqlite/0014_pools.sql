-- What operators decided about pools of agents; a pool without a row has no limit.
CREATE TABLE pools (
    name TEXT PRIMARY KEY,
    max_running INTEGER NOT NULL CHECK (max_running > 0) -- jobs that are claimed or running at the same time
) STRICT;
CREATE INDEX jobs_open_by_pool ON jobs (pool) WHERE status IN ('claimed', 'running');
