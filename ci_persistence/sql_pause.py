"""SQL of pausing the queue: the row whose presence lets `sql_queue.STANDINGS` find nothing."""

from datetime import datetime

from ci_common.models import AuditAction, AuditEvent, QueuePause
from ci_persistence.dialect import NO_CLAIM_MEANWHILE
from ci_persistence.rows import deadline_text, from_text, options_from, to_text
from ci_persistence.sql_audit import append_audit
from ci_persistence.sql_connection import Connection

_SUBJECT = "queue"


def queue_pause(db: Connection) -> QueuePause | None:
    """Return the pause in force."""
    row = db.execute("SELECT at, by, reason FROM queue_pause").fetchone()
    return None if row is None else QueuePause(from_text(row["at"]), row["by"], row["reason"])


def pause_queue(db: Connection, reason: str | None, now: datetime, by: str) -> QueuePause:
    """The queue is paused, once what is just being claimed is claimed; an earlier pause stands."""
    db.execute(NO_CLAIM_MEANWHILE)
    earlier = queue_pause(db)
    if earlier is not None:
        return earlier
    db.execute("INSERT INTO queue_pause (id, at, by, reason) VALUES (1, ?, ?, ?)", (to_text(now), by, reason))
    append_audit(db, AuditEvent(now, by, AuditAction.QUEUE_PAUSE, _SUBJECT, {"reason": reason}))
    return QueuePause(now, by, reason)


def resume_queue(db: Connection, now: datetime, by: str) -> bool:
    """The queue goes on, and nobody waited too long for having waited for that."""
    if not db.execute("DELETE FROM queue_pause").rowcount:
        return False
    db.execute("UPDATE jobs SET queued_since = ? WHERE status = 'queued'", (to_text(now),))
    db.executemany("UPDATE jobs SET queue_deadline = ? WHERE id = ?", _new_deadlines(db, now))
    append_audit(db, AuditEvent(now, by, AuditAction.QUEUE_RESUME, _SUBJECT))
    return True


def _new_deadlines(db: Connection, now: datetime) -> list[tuple[str | None, str]]:
    query = (
        "SELECT id, options, priority, pool FROM jobs WHERE status = 'queued' AND queue_deadline IS NOT NULL"
    )
    return [
        (deadline_text(options_from(row["options"], row["priority"], row["pool"]), now), row["id"])
        for row in db.execute(query)
    ]
