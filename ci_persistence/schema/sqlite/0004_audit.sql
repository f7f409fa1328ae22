-- Who did what to users, keys, jobs and the database; written by the transaction that did it.
CREATE TABLE audit_events (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    actor TEXT NOT NULL, -- an e-mail address, or "operator (<login name>)"
    action TEXT NOT NULL, -- user.create, key.revoke, job.cancel …
    subject TEXT NOT NULL, -- the id of what it was done to; no foreign key, since rows outlive what they tell of
    request_id TEXT, -- of the HTTP request; null where a command did it
    details TEXT NOT NULL -- JSON object, never a secret
) STRICT;

CREATE INDEX audit_events_by_time ON audit_events (at, id);

-- Keys are looked up by their public part; the hash is compared afterwards, in constant time.
CREATE UNIQUE INDEX api_keys_by_prefix ON api_keys (prefix);
