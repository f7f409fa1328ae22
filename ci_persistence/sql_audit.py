"""SQL about the audit trail. Each function runs inside a transaction that its caller opened."""

from datetime import datetime

from ci_common.crash_points import crash_point
from ci_common.models import AuditEvent
from ci_persistence.rows import audit_event_from, data_text, to_text
from ci_persistence.sql_connection import Connection


def append_audit(db: Connection, event: AuditEvent) -> None:
    """The event stands in the trail, if and only if the transaction of what it tells of is committed."""
    db.execute(
        "INSERT INTO audit_events (at, actor, action, subject, request_id, details) VALUES (?, ?, ?, ?, ?, ?)",
        (
            to_text(event.at),
            event.actor,
            event.action,
            event.subject,
            event.request_id,
            data_text(event.details),
        ),
    )
    crash_point("during_audited_write")


def list_audit(db: Connection, since: datetime | None) -> list[AuditEvent]:
    """Return the trail from that time on, or all of it, oldest first."""
    rows = db.execute(
        "SELECT * FROM audit_events WHERE at >= ? ORDER BY at, id", (to_text(since) if since else "",)
    )
    return [audit_event_from(row) for row in rows]
