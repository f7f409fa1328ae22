"""What must hold of every job, at any moment and at its end, read past our own code."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from ci_persistence.log_frames import zstd
from tests.support.chaos.plant import SLOTS, Crew, Plant, Submitted
from tests.support.chaos.workload import MAX_ATTEMPTS, MEMORY, PASSED, payload
from tests.support.process_usage import UsageHistory

LOOK_SECONDS: Final = 3.0
_FINAL: Final = "('completed', 'failed', 'cancelled', 'dead_lettered')"
_ROW: Final = (
    "SELECT status, success, reason, attempt, log_size, log_sha256, log_truncated, log_pruned_at, created_at,"
    " end_time, message FROM jobs WHERE id = ? AND end_time IS NOT NULL"
)


def judge_all(plant: Plant) -> None:
    """Every job that has ended since the last time was compared with what was known of it before it ran."""
    for job in plant.ledger.open():
        if rows := plant.system.query(_ROW, job.job_id):
            job.ending = rows[0]
            for flaw in _flaws(plant, job, *rows[0]):
                plant.book.problem(f"job {job.number} {job.kind.name} of {job.user} ({job.job_id}): {flaw}")
            plant.book.write(f"job {job.number} {job.kind.name} ended: {rows[0][0]} {rows[0][2]}")


def _flaws(
    plant: Plant,
    job: Submitted,
    status: str,
    success: int,
    reason: str | None,
    attempt: int,
    log_size: int | None,
    log_sha256: str | None,
    log_truncated: int | None,
    log_pruned_at: str | None,
    created_at: str,
    end_time: str,
    message: str | None,
) -> Iterable[str]:
    outcome = reason or PASSED
    plant.ledger.count(f"ended: {outcome}")
    as_meant = outcome in job.kind.outcomes
    if not as_meant and not _may_end_so(plant, job, status, outcome, created_at, end_time):
        yield f"{status} with {outcome} in attempt {attempt}, {job.kills} containers of it killed: {message}"
    if bool(success) != (outcome == PASSED):
        yield f"success is {success} with {outcome}"
    [(ends,)] = plant.system.query(
        f"SELECT count(*) FROM job_events WHERE job_id = ? AND type IN {_FINAL}", job.job_id
    )
    if ends != 1:
        yield f"{ends} terminal events"
    yield from _charges(plant, job)
    if log_pruned_at:
        yield "its log was pruned before it could be looked at"
    elif log_size is not None:
        whole = as_meant and job.kind.whole and outcome != "cancelled"
        yield from _log_flaws(
            plant, job, attempt, (log_size, log_sha256), whole, truncated=bool(log_truncated)
        )
    elif status == "completed":
        yield "completed without a sealed log"


def _may_end_so(
    plant: Plant, job: Submitted, status: str, outcome: str, created_at: str, end_time: str
) -> bool:
    if outcome == "cancelled":  # by the operator, who locked its owner out
        return any(
            user == job.user and created_at <= until and end_time >= since
            for user, since, until in plant.absences
        )
    return status == "dead_lettered" and job.kills >= MAX_ATTEMPTS


def _charges(plant: Plant, job: Submitted) -> Iterable[str]:
    """Infrastructure that is gone for a while costs nothing: only who kills a container takes an attempt."""
    [(lost,)] = plant.system.query(
        "SELECT count(*) FROM attempts WHERE job_id = ? AND begun_at IS NOT NULL AND reason = 'infra'",
        job.job_id,
    )
    if lost:
        plant.ledger.count("attempts lost to our kills")
    if lost > job.kills:
        found = plant.system.query(
            "SELECT number, message FROM attempts WHERE job_id = ? AND reason = 'infra'", job.job_id
        )
        yield f"{lost} attempts charged although {job.kills} containers were killed: {found}"


def _log_flaws(
    plant: Plant,
    job: Submitted,
    attempt: int,
    sealed: tuple[int, str | None],
    whole: bool,
    *,
    truncated: bool,
) -> Iterable[str]:
    log = _stored(plant.data / "logs" / job.job_id / f"{attempt}.log")
    if (len(log), hashlib.sha256(log).hexdigest()) != sealed and (sealed[0] or log):
        yield f"the file of {len(log)} bytes is not what was sealed: {sealed}"
    written = payload(job.number, job.kind.kibibytes)
    if truncated:
        plant.ledger.count("logs that say they may lack something")
    elif whole and log.count(written) != 1:
        yield f"what its test wrote is {log.count(written)} times in its log"
    elif whole:
        plant.ledger.count("logs with every byte")


def _stored(path: Path) -> bytes:
    """Return the text of a log, in whichever form it lies there."""
    put_away = path.with_name(path.name + ".zst")
    if path.exists() or not put_away.exists():
        return path.read_bytes() if path.exists() else b""
    return zstd.decompress(put_away.read_bytes())


# -- from outside, while everything runs -------------------------------------------------------------------


def look_again_and_again(plant: Plant, crew: Crew, usage: UsageHistory) -> None:
    """Every few seconds: what has ended is judged, what must never be is looked for, what processes hold is noted."""
    while not crew.off.wait(LOOK_SECONDS):
        judge_all(plant)
        for flaw in broken_invariants(plant):
            plant.book.problem(flaw)
        note_usage(plant, usage)


def note_usage(plant: Plant, usage: UsageHistory) -> None:
    usage.look("controller", plant.controller.process.pid)
    for index, server in enumerate(plant.servers):
        usage.look(f"server {index + 1}", server.process.pid)


def broken_invariants(plant: Plant) -> Iterable[str]:
    """Yield what is wrong at this moment."""
    twice = plant.system.query(
        f"SELECT job_id, count(*) FROM job_events WHERE type IN {_FINAL} GROUP BY 1 HAVING count(*) > 1"
    )
    if twice:
        yield f"more than one terminal event: {twice}"
    running = plant.containers()
    jobs = [job for _, job, _ in running]
    if len(set(jobs)) < len(jobs):
        yield f"two containers of one job run: {running}"
    if len(running) > SLOTS:
        yield f"{len(running)} containers run in {SLOTS} slots: {running}"
    yield from _unlimited(plant, [container for container, _, _ in running])


def _unlimited(plant: Plant, containers: list[str]) -> Iterable[str]:
    for container in containers:
        try:
            said = plant.system.docker("inspect", "--format", "{{json .HostConfig}}", container)
        except AssertionError:  # it is gone
            continue
        limits = json.loads(said)
        if limits["Memory"] != MEMORY or not limits["PidsLimit"] or limits["Privileged"]:
            yield f"container {container} has other limits: {limits['Memory']}, {limits['PidsLimit']}"


# -- at the end ------------------------------------------------------------------------------------------


def unchanged(plant: Plant) -> Iterable[str]:
    """Yield every job whose ending is another one now than when it was judged; pruned ones have none."""
    for job in plant.ledger.jobs.values():
        rows = plant.system.query(_ROW, job.job_id)
        if job.ending and rows and _verdict(rows[0]) != _verdict(job.ending):
            yield f"job {job.job_id} was {job.ending} and is {rows[0]}"


def _verdict(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return row[:7] + row[8:]  # without the time of the prune


def miscounted(plant: Plant) -> Iterable[str]:
    """Yield what is wrong with the totals, which outlive every prune: each job must have ended exactly once."""
    [(ended,)] = plant.system.query("SELECT coalesce(sum(jobs), 0) FROM daily_totals")
    acknowledged = len(plant.ledger.jobs)
    if not acknowledged <= ended <= acknowledged + plant.ledger.unacknowledged:
        yield (
            f"{acknowledged} jobs were acknowledged, {plant.ledger.unacknowledged} submissions failed in `ci`,"
            f" and {ended} jobs ended"
        )


def surprises(plant: Plant) -> Iterable[str]:
    """Yield every log of a service that has a traceback: faults are expected, and have a sentence of their own."""
    for daemon in plant.system.daemons:
        with daemon.log.open(errors="replace") as lines:
            if found := next((line for line in lines if "Traceback" in line), None):
                yield f"{daemon.log.name}: {found[:2000]}"


def damage(database: str) -> Iterable[str]:
    """Yield what SQLite finds wrong with a database."""
    connection = sqlite3.connect(database)
    try:
        found = connection.execute("PRAGMA integrity_check").fetchall()
        if found != [("ok",)]:
            yield f"{database}: {found}"
    finally:
        connection.close()
