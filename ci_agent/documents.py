"""What the server says of an attempt, as the core knows it. Pure; times are brought to our own clock."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from ci_common.job_terms import JobOptions, JobStatus, Priority, Reason
from ci_common.models import Attempt, Fence, Job, StopIntent


def skew(said: str, now: datetime) -> timedelta:
    """Return what is to be added to the server's times, so that they are ours."""
    return now - datetime.fromisoformat(said)


def attempt_of(document: Mapping[str, Any], skew: timedelta) -> Attempt:
    """Return the attempt that the document tells of."""

    def known(name: str) -> datetime:
        return datetime.fromisoformat(document[name]) + skew

    def time(name: str) -> datetime | None:
        return known(name) if document[name] else None

    options = JobOptions(
        pytest_args=tuple(document["pytest_args"]),
        timeout_seconds=document["timeout"],
        fresh=document["fresh"],
        priority=Priority(document["priority"]),
        pool=document["pool"],
    )
    job = Job(
        id=document["id"],
        user_id=document["owner"],
        created_at=known("created_at"),
        archive_ref="",  # the server's own business
        status=JobStatus(document["status"]),
        options=options,
        attempt=document["attempt"],
        cancel_requested_at=time("cancel_requested_at"),
        cancel_requested_by=document["cancel_requested_by"],
    )
    return Attempt(
        Fence(job.id, job.attempt, document["claim_token"]),
        job,
        known("claimed_at"),
        container_id=document["container_id"],
        image_id=document["image_id"],
        started_at=time("started_at"),
        begun_at=time("begun_at"),
        stop=stop_of(document["stop"], skew) if document["stop"] else None,
    )


def stop_of(document: Mapping[str, Any], skew: timedelta) -> StopIntent:
    """Return the decision to stop that the document tells of."""
    at = datetime.fromisoformat(document["at"]) + skew
    return StopIntent(Reason(document["reason"]), at, document["message"])
