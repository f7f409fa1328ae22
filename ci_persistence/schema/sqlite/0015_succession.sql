-- Set by a controller that ended of its own accord: whoever waits need not wait for its silence.
ALTER TABLE controller ADD COLUMN released_at TEXT;
-- The engine whose containers are the controller's; null: it runs no jobs itself, or could not tell.
ALTER TABLE controller ADD COLUMN runs_on TEXT;
