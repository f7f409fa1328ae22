"""What `ci-admin queue …` says to people. JSON beside it comes from the same fields."""

from collections.abc import Mapping, Sequence
from typing import Any

from ci_admin.render import NOTHING, iso, minute, second, table
from ci_common.dead_letters import DeadLetter, PastAttempt
from ci_common.terminal import one_line

_OPEN = ("queued", "claimed", "running")


def queue_stats(document: Mapping[str, Any]) -> str:
    """Return the statistics of `stats_document`: what is there now, then what ended."""
    oldest = f"The oldest queued job was submitted {_seconds(document['oldest_queued_seconds'])} ago."
    return "\n\n".join([_depths(document), oldest, _outcomes(document)])


def _depths(document: Mapping[str, Any]) -> str:
    parts = [("all", document)]
    parts += [(f"pool {name}", depth) for name, depth in document["by_pool"].items()]
    parts += [(f"priority {name}", depth) for name, depth in document["by_priority"].items()]
    return table(
        ("NOW", *(word.upper() for word in _OPEN)),
        [(name, *(str(depth[word]) for word in _OPEN)) for name, depth in parts],
    )


def _outcomes(document: Mapping[str, Any]) -> str:
    endings = ("completed", "failed", "cancelled", "dead_lettered")
    rows = [
        *((word, str(document[word])) for word in endings),
        ("average wait", _seconds(document["avg_wait_seconds"])),
        ("95 % waited at most", _seconds(document["p95_wait_seconds"])),
        ("average run", _seconds(document["avg_execution_seconds"])),
        ("95 % ran at most", _seconds(document["p95_execution_seconds"])),
        ("without a verdict", _percent(document["failure_rate"])),
        ("lost by infrastructure", _percent(document["infra_failure_rate"])),
        ("tests failed", _percent(document["tests_failed_rate"])),
    ]
    return table((f"LAST {document['window_seconds']} s", "VALUE"), rows)


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f} s"


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.1%}"


def dead_fields(dead: DeadLetter) -> dict[str, Any]:
    """Return the JSON of a dead-lettered job."""
    job = dead.job
    return {
        "job_id": job.id,
        "user_id": job.user_id,
        "email": dead.owner,
        "created_at": iso(job.created_at),
        "end_time": iso(job.end_time),
        "attempt": job.attempt,
        "reason": job.reason.value if job.reason else None,
        "message": job.message,
        "archive_pruned": dead.archive_pruned,
        "requeued_as": dead.requeued_as,
    }


def dead_with_history(dead: DeadLetter) -> dict[str, Any]:
    """Return the JSON of a dead-lettered job, its options and attempts included."""
    options = dead.job.options
    return {
        **dead_fields(dead),
        "pytest_args": list(options.pytest_args),
        "timeout": options.timeout_seconds,
        "fresh": options.fresh,
        "priority": options.priority.value,
        "max_attempts": options.max_attempts,
        "queue_timeout": options.queue_timeout_seconds,
        "attempts": [_attempt_fields(one) for one in dead.attempts],
    }


def dead_table(found: Sequence[DeadLetter]) -> str:
    """Return dead-lettered jobs, one per line."""
    return table(
        ("JOB", "USER", "ENDED", "ATTEMPTS", "REQUEUED", "MESSAGE"),
        [
            (
                dead.job.id,
                dead.owner,
                minute(dead.job.end_time),
                str(dead.job.attempt),
                dead.requeued_as or ("archive pruned" if dead.archive_pruned else NOTHING),
                dead.job.message or NOTHING,
            )
            for dead in found
        ],
    )


def dead_details(dead: DeadLetter) -> str:
    """Return all that is known of a dead-lettered job: one line for each attempt."""
    job = dead.job
    lines = [
        f"Job:       {one_line(job.id)}",
        f"User:      {one_line(dead.owner)}",
        f"Submitted: {minute(job.created_at)}",
        f"Ended:     {minute(job.end_time)}",
        f"Reason:    {job.reason or NOTHING}",
        f"Message:   {one_line(job.message or NOTHING)}",
        f"Archive:   {'pruned' if dead.archive_pruned else 'kept'}",
        f"Requeued:  {one_line(dead.requeued_as or NOTHING)}",
    ]
    return "\n".join([*lines, "", _attempt_table(dead.attempts)])


def requeued(again: Mapping[str, str]) -> str:
    """Return what is said of jobs that were queued again."""
    return "\n".join(f"✓ Job {one_line(job_id)} queued again as {as_id}" for job_id, as_id in again.items())


def _attempt_fields(attempt: PastAttempt) -> dict[str, Any]:
    return {
        "attempt": attempt.number,
        "holder": attempt.holder,
        "claimed_at": iso(attempt.claimed_at),
        "started_at": iso(attempt.started_at),
        "begun_at": iso(attempt.begun_at),
        "ended_at": iso(attempt.ended_at),
        "reason": attempt.reason.value if attempt.reason else None,
        "message": attempt.message,
    }


def _attempt_table(attempts: Sequence[PastAttempt]) -> str:
    return table(
        ("ATTEMPT", "CLAIMED", "STARTED", "ENDED", "CHARGED", "REASON", "MESSAGE"),
        [
            (
                str(one.number),
                second(one.claimed_at),
                second(one.started_at) if one.started_at else NOTHING,
                second(one.ended_at) if one.ended_at else NOTHING,
                "yes" if one.begun_at else "no",
                one.reason or NOTHING,
                one.message or NOTHING,
            )
            for one in attempts
        ],
    )
