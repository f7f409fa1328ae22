-- While its row stands, nothing is claimed.
CREATE TABLE queue_pause (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at TEXT NOT NULL,
    by TEXT NOT NULL, -- "operator (<login name>)"
    reason TEXT
) STRICT;
