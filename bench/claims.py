"""How long claiming one job takes with a long queue, one process after the other and four at once."""

import multiprocessing
import sqlite3
import tempfile
import time
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench.report import Row
from ci_common.models import ControllerLease
from ci_persistence import sql_control
from ci_persistence.rows import to_text
from ci_persistence.sqlite_connection import connect, write_transaction
from tests.support.database import new_database

USERS = 50
CLAIMS = 500


def claim_latencies() -> list[Row]:
    """Return the time of a claim with 10 000 and 100 000 queued jobs, and claims per second by four processes."""
    with tempfile.TemporaryDirectory() as root:
        rows = [_alone(Path(root), queued) for queued in (10_000, 100_000)]
        return [*rows, _together(Path(root), processes=4)]


def _alone(root: Path, queued: int) -> Row:
    path, lease = _crowded(root / str(queued), queued)
    db = connect(path)
    samples = tuple(sorted(_one_claim(db, lease) for _ in range(CLAIMS)))
    db.close()
    p99 = samples[int(0.99 * len(samples))]
    return Row(f"one claim, {queued} queued of {USERS} users (p99 {p99:.1f})", "ms", samples)


def _one_claim(db: sqlite3.Connection, lease: ControllerLease) -> float:
    began = time.perf_counter()
    claimed = write_transaction(db, lambda db: sql_control.claim_jobs(db, lease, 1, datetime.now(UTC)))
    assert claimed, "the queue is long enough"
    return (time.perf_counter() - began) * 1000


def _together(root: Path, processes: int) -> Row:
    path, lease = _crowded(root / "together", 10_000)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(processes + 1)
    workers = [context.Process(target=_claimer, args=(path, lease, start)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    rate = processes * CLAIMS / (time.perf_counter() - began)
    return Row(f"claims per second, {processes} processes, full durability", "1/s", (rate,))


def _claimer(path: Path, lease: ControllerLease, start: Barrier) -> None:
    db = connect(path)
    start.wait()
    for _ in range(CLAIMS):
        _one_claim(db, lease)
    db.close()


def _crowded(root: Path, queued: int) -> tuple[Path, ControllerLease]:
    """A database with that many queued jobs of all users, and the right to claim them."""
    root.mkdir()
    path, now = new_database(root), to_text(datetime.now(UTC))
    db = connect(path)
    db.execute("BEGIN IMMEDIATE")
    db.executemany(
        "INSERT INTO users (id, name, email, email_folded, created_at, is_active, role) "
        "VALUES (:n, :n, :n, :n, :now, 1, 'user')",
        [{"n": f"user{number}", "now": now} for number in range(USERS)],
    )
    db.executemany(
        "INSERT INTO jobs (id, user_id, created_at, archive_ref, status, options, queued_since) "
        """VALUES (?, ?, ?, 'ref', 'queued', '{"pytest_args": [], "timeout_seconds": null}', ?)""",
        [(f"job{number:06}", f"user{number % USERS}", now, now) for number in range(queued)],
    )
    db.execute("COMMIT")
    lease = write_transaction(db, lambda db: sql_control.take_over(db, "bench", datetime.now(UTC)))
    db.close()
    return path, lease
