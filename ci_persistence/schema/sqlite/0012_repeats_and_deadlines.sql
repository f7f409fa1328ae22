-- The job whose archive and options a later one took over: dead letters that are requeued are new jobs.
ALTER TABLE jobs ADD COLUMN repeat_of TEXT; -- no foreign key, since a job may be pruned before the one that repeats it

CREATE INDEX jobs_by_repeated ON jobs (repeat_of) WHERE repeat_of IS NOT NULL;
CREATE INDEX jobs_dead ON jobs (end_time, id) WHERE status = 'dead_lettered';

-- How long a queued job may wait whose submitter said so; the controller's own limit holds for all.
ALTER TABLE jobs ADD COLUMN queue_deadline TEXT;

CREATE INDEX jobs_queue_deadline ON jobs (queue_deadline) WHERE status = 'queued' AND queue_deadline IS NOT NULL;
