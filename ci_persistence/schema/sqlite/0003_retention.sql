-- What was pruned of a job is marked here before its files go; and what people count on outlives the jobs counted.

ALTER TABLE jobs ADD COLUMN archive_pruned_at TEXT;
ALTER TABLE jobs ADD COLUMN log_pruned_at TEXT;

CREATE INDEX jobs_by_end ON jobs (end_time, id) WHERE end_time IS NOT NULL;

-- Written by the transaction that ends a job. The outcome is a reason, or 'passed'.
CREATE TABLE daily_totals (
    day TEXT NOT NULL, -- UTC, of the job's end
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    outcome TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    PRIMARY KEY (day, user_id, outcome)
) STRICT, WITHOUT ROWID;

INSERT INTO daily_totals (day, user_id, outcome, jobs)
SELECT substr(end_time, 1, 10), user_id, coalesce(reason, 'passed'), count(*)
FROM jobs WHERE end_time IS NOT NULL GROUP BY 1, 2, 3;
