"""SQL of pruning: what there is to choose from, the marks that come before the files go, the rows that go last."""

from collections.abc import Collection, Sequence
from datetime import datetime

from ci_common.models import AuditAction, AuditedCancel, ControllerLease, FinishedJob
from ci_persistence.rows import from_text, to_text
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_control import holds

FINISHED = (
    "SELECT id, end_time, archive_ref, archive_pruned_at, log_pruned_at FROM jobs "
    "WHERE end_time IS NOT NULL ORDER BY end_time DESC, id DESC"
)
CANCELS = "SELECT id, at, actor FROM audit_events WHERE action = ? ORDER BY at DESC, id DESC"
ARCHIVES_IN_USE = "SELECT DISTINCT archive_ref FROM jobs WHERE archive_pruned_at IS NULL"


def finished_jobs(db: Connection) -> list[FinishedJob]:
    """Return what pruning must know of every terminal job, the one that ended last first."""
    return [
        FinishedJob(
            row["id"],
            from_text(row["end_time"]),
            row["archive_ref"],
            archive_pruned=row["archive_pruned_at"] is not None,
            log_pruned=row["log_pruned_at"] is not None,
        )
        for row in db.execute(FINISHED)
    ]


def mark_pruned(
    db: Connection,
    lease: ControllerLease | None,
    archives: Collection[str],
    logs: Collection[str],
    now: datetime,
) -> bool:
    """Archives and logs of those jobs are marked; False and nothing changed: the lease is stale."""
    if not _may(db, lease):
        return False
    for column, jobs in (("archive_pruned_at", archives), ("log_pruned_at", logs)):
        db.executemany(
            f"UPDATE jobs SET {column} = ? WHERE id = ? AND end_time IS NOT NULL AND {column} IS NULL",  # noqa: S608
            [(to_text(now), job_id) for job_id in jobs],
        )
    db.executemany(
        "DELETE FROM job_packs WHERE job_id IN "
        "(SELECT id FROM jobs WHERE id = ? AND archive_pruned_at IS NOT NULL)",
        [(job_id,) for job_id in archives],
    )
    return True


def remove_jobs(db: Connection, lease: ControllerLease | None, jobs: Sequence[str]) -> int:
    """Those jobs are gone with their attempts and timelines, where both marks stand; returns how many went."""
    if not _may(db, lease):
        return 0
    delete = (
        "DELETE FROM jobs WHERE id = ? AND end_time IS NOT NULL "
        "AND archive_pruned_at IS NOT NULL AND log_pruned_at IS NOT NULL"
    )
    return sum(db.execute(delete, (job_id,)).rowcount for job_id in jobs)


def audited_cancels(db: Connection) -> list[AuditedCancel]:
    """Return the cancels in the audit trail, the latest first."""
    rows = db.execute(CANCELS, (AuditAction.JOB_CANCEL,))
    return [AuditedCancel(row["id"], from_text(row["at"]), row["actor"]) for row in rows]


def remove_cancels(db: Connection, lease: ControllerLease | None, ids: Sequence[int]) -> int:
    """Those rows of the audit trail are gone, where they tell of cancels; returns how many went."""
    if not _may(db, lease):
        return 0
    delete = "DELETE FROM audit_events WHERE id = ? AND action = ?"
    return sum(db.execute(delete, (number, AuditAction.JOB_CANCEL)).rowcount for number in ids)


def existing_jobs(db: Connection, jobs: Collection[str]) -> set[str]:
    """Return those of the ids that are jobs."""
    query = "SELECT 1 FROM jobs WHERE id = ?"
    return {job_id for job_id in jobs if db.execute(query, (job_id,)).fetchone() is not None}


def archive_refs_in_use(db: Connection) -> set[str]:
    """Return the archive references of all jobs whose archive is not marked as pruned."""
    return {row["archive_ref"] for row in db.execute(ARCHIVES_IN_USE)}


def _may(db: Connection, lease: ControllerLease | None) -> bool:
    return lease is None or holds(db, lease)
