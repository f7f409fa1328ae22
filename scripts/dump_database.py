"""Prints a small database of an older schema as SQL, for the upgrade tests: `dump_database.py 2 > …/0002.sql`.

Made once per released schema and then never again: what it prints stands for databases that people have.
"""

import sqlite3
import sys

from ci_persistence.migrations import available_migrations

_AT = "2026-01-02T03:04:0{}.000000Z"

# What every schema since the first can hold: a job in each state, keys, attempts, timelines.
_ROWS = (
    "INSERT INTO installation VALUES (1, '11111111-2222-4333-8444-555555555555')",
    f"INSERT INTO controller (id, epoch, holder, heartbeat_at) VALUES (1, 7, 'box:42', '{_AT.format(9)}')",
    f"INSERT INTO users (id, name, email, email_folded, created_at, is_active, role) VALUES "
    f"('u-ada', 'Ada é', 'Ada@example.org', 'ada@example.org', '{_AT.format(0)}', 1, 'admin'), "
    f"('u-bob', 'Bob', 'bob@example.org', 'bob@example.org', '{_AT.format(0)}', 0, 'user')",
    "INSERT INTO api_keys (id, user_id, name, key_hash, prefix, scopes, created_at, expires_at, last_used_at, "
    "is_active) "
    f"VALUES ('k-1', 'u-ada', 'laptop', '{'ab' * 32}', 'ci_AAAAAAAA', 'read submit', '{_AT.format(0)}', NULL, "
    f"'{_AT.format(8)}', 1)",
)
_JOBS = (
    # id, status, attempt, success, exit_code, reason, ended
    ("j-queued", "queued", 0, None, None, None, False),
    ("j-running", "running", 1, None, None, None, False),
    ("j-passed", "completed", 1, 1, 0, None, True),
    ("j-failed", "completed", 2, 0, 1, "tests_failed", True),
    ("j-timeout", "failed", 1, 0, None, "timeout", True),
    ("j-cancelled", "cancelled", 0, 0, None, "cancelled", True),
    ("j-dead", "dead_lettered", 3, 0, None, "infra", True),
)


def database_of(schema: int) -> sqlite3.Connection:
    """Return a database in memory with that schema and a row of everything it knows."""
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL) STRICT")
    for number, text in available_migrations().items():
        if number <= schema:
            db.executescript(text)
            db.execute("INSERT INTO schema_version VALUES (?, ?)", (number, _AT.format(number)))
    for statement in _ROWS:
        db.execute(statement)
    for place, job in enumerate(_JOBS):
        _insert_job(db, place, *job)
    db.commit()
    return db


def _insert_job(
    db: sqlite3.Connection,
    place: int,
    job_id: str,
    status: str,
    attempt: int,
    success: int | None,
    exit_code: int | None,
    reason: str | None,
    ended: bool,
) -> None:
    at, end = _AT.format(place), _AT.format(9) if ended else None
    size, digest = (42, "cd" * 32) if ended and attempt else (None, None)
    db.execute(
        "INSERT INTO jobs (id, user_id, created_at, archive_ref, status, options, attempt, success, exit_code, reason, "
        "end_time, queued_since, log_size, log_sha256, idempotency_key, idempotency_fingerprint) "
        "VALUES (?, 'u-ada', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'fp')",
        (job_id, at, f"{place:032x}.zip", status, '{"pytest_args": ["-q"], "timeout_seconds": null}', attempt, success,
         exit_code, reason, end, at, size, digest, f"key-{job_id}"),
    )  # fmt: skip
    for number in range(1, attempt + 1):
        open_ = number == attempt and not ended
        db.execute(
            "INSERT INTO attempts (job_id, number, holder, token, container_id, claimed_at, started_at, begun_at, "
            "ended_at, log_size, log_sha256, log_truncated) VALUES (?, ?, 'box:42', ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (job_id, number, f"token-{job_id}-{number}", f"c-{job_id}-{number}", at, at, at,
             None if open_ else _AT.format(9), None if open_ else 42, None if open_ else "cd" * 32),
        )  # fmt: skip
    for position, kind in enumerate(("submitted", status)):
        db.execute(
            "INSERT INTO job_events VALUES (?, ?, ?, ?, ?)", (job_id, position, kind, at, '{"attempt": 1}')
        )


if __name__ == "__main__":
    sys.stdout.write("\n".join(database_of(int(sys.argv[1])).iterdump()) + "\n")
