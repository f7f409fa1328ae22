-- How often contents of the user's files came to count as missing: what was learnt of where they lie holds while it is
-- the same.
ALTER TABLE users ADD COLUMN forgettings INTEGER NOT NULL DEFAULT 0;
