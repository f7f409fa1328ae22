-- How many jobs of a user may be claimed or running at the same time; null: any number.
ALTER TABLE users ADD COLUMN max_running INTEGER CHECK (max_running > 0);
