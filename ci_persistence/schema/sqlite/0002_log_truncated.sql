-- What a job's owner should know of the log beside its size and hash; and a count of one user's queue that is quick.

ALTER TABLE jobs ADD COLUMN log_truncated INTEGER CHECK (log_truncated IN (0, 1));

UPDATE jobs SET log_truncated = (
    SELECT log_truncated FROM attempts WHERE job_id = jobs.id AND number = jobs.attempt
) WHERE end_time IS NOT NULL;

CREATE INDEX jobs_queued_by_user ON jobs (user_id) WHERE status = 'queued';
