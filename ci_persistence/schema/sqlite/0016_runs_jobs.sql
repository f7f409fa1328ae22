-- 0: the controller runs no jobs itself, so those of the default pool wait for an agent as all others do.
ALTER TABLE controller ADD COLUMN runs_jobs INTEGER NOT NULL DEFAULT 1 CHECK (runs_jobs IN (0, 1));
