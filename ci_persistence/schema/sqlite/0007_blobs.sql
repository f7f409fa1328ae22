-- Contents of files that users sent apart from their trees. What one request brought lies in one file, its pack; the
-- name is made for its row, so that pruning an old one never hits a fresh upload of the same contents.

CREATE TABLE packs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL UNIQUE, -- of the file
    size INTEGER NOT NULL, -- bytes that it takes: of the file, and of the rows about it
    created_at TEXT NOT NULL,
    used_at TEXT NOT NULL -- when a job was last submitted that needs something of it
) STRICT;

CREATE INDEX packs_by_user ON packs (user_id);

CREATE TABLE blobs (
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    sha256 BLOB NOT NULL, -- of the contents themselves
    pack_id INTEGER NOT NULL REFERENCES packs (id) ON DELETE CASCADE,
    offset INTEGER NOT NULL,
    stored INTEGER NOT NULL, -- bytes in the pack
    size INTEGER NOT NULL, -- bytes of the contents
    encoding INTEGER NOT NULL, -- 0: as they are, 1: zlib
    PRIMARY KEY (user_id, sha256)
) STRICT, WITHOUT ROWID;

CREATE INDEX blobs_by_pack ON blobs (pack_id);

-- While such a row stands its pack cannot go; it goes with the job, or when the job's archive is marked as pruned.
CREATE TABLE job_packs (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    pack_id INTEGER NOT NULL REFERENCES packs (id),
    PRIMARY KEY (job_id, pack_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX job_packs_by_pack ON job_packs (pack_id);
