"""SQL of what operators decided about pools: how many of their jobs may be under way. `sql_queue.CLAIM` minds it."""

from datetime import datetime

from ci_common.models import AuditAction, AuditEvent, PoolLimit
from ci_persistence.dialect import NO_CLAIM_MEANWHILE
from ci_persistence.sql_audit import append_audit
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_timeline import OPEN

_RUNNING = f"(SELECT count(*) FROM jobs WHERE jobs.pool = pools.name AND jobs.status IN {OPEN})"  # noqa: S608
_LIMITS = f"SELECT name, max_running, {_RUNNING} AS running FROM pools"  # noqa: S608  (constants of this package)


def limit_pool(
    db: Connection, pool: str, max_running: int | None, now: datetime, by: str
) -> PoolLimit | None:
    """The limit stands, once what is just being claimed is claimed."""
    db.execute(NO_CLAIM_MEANWHILE)
    if max_running is None:
        db.execute("DELETE FROM pools WHERE name = ?", (pool,))
    else:
        db.execute(
            "INSERT INTO pools (name, max_running) VALUES (:name, :limit) "
            "ON CONFLICT (name) DO UPDATE SET max_running = :limit",
            {"name": pool, "limit": max_running},
        )
    append_audit(db, AuditEvent(now, by, AuditAction.POOL_LIMIT, pool, {"max_running": max_running}))
    return next((limit for limit in pool_limits(db) if limit.pool == pool), None)


def pool_limits(db: Connection) -> list[PoolLimit]:
    """Return the limits in force, by pool."""
    return [PoolLimit(*row) for row in db.execute(f"{_LIMITS} ORDER BY name")]


def full_pools(db: Connection) -> tuple[PoolLimit, ...]:
    """Return those of them that keep jobs from being claimed."""
    return tuple(limit for limit in pool_limits(db) if limit.running >= limit.max_running)
