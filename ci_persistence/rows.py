"""Rows and models, one from the other: the only place that knows text timestamps, 0/1 booleans and JSON columns."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from ci_common.dead_letters import PastAttempt
from ci_common.job_terms import JobOptions, JobStatus, Priority, Reason
from ci_common.models import (
    Agent,
    AgentLease,
    AgentProfile,
    AgentState,
    APIKey,
    Attempt,
    AuditAction,
    AuditEvent,
    Fence,
    Job,
    JobEvent,
    Role,
    Scope,
    StopIntent,
    User,
    UserLimits,
)
from ci_persistence.sql_connection import Row


def to_text(moment: datetime) -> str:
    """Return the stored form of a time: UTC with six decimals always, so that text order is time order."""
    assert moment.tzinfo is not None, f"{moment} has no time zone"
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def optional_text(moment: datetime | None) -> str | None:
    """Return the stored form of a time that may be absent."""
    return None if moment is None else to_text(moment)


def from_text(text: str) -> datetime:
    """Return the time that `to_text` stored; raises ValueError for anything else."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"no time zone in {text!r}")
    return moment


def _optional_time(text: str | None) -> datetime | None:
    return None if text is None else from_text(text)


def _optional_bool(number: int | None) -> bool | None:
    return None if number is None else bool(number)


def _optional_reason(text: str | None) -> Reason | None:
    return None if text is None else Reason(text)


def scopes_text(scopes: frozenset[Scope]) -> str:
    """Return the stored form of a key's scopes."""
    return " ".join(sorted(scopes))


def options_text(options: JobOptions) -> str:
    """Return the stored form of a job's options but for priority and pool, which have columns of their own."""
    always = {
        "pytest_args": options.pytest_args,
        "timeout_seconds": options.timeout_seconds,
        "fresh": options.fresh,
    }
    seldom = {
        "max_attempts": options.max_attempts,
        "queue_timeout_seconds": options.queue_timeout_seconds,
    }
    return json.dumps({**always, **{name: value for name, value in seldom.items() if value is not None}})


def deadline_text(options: JobOptions, since: datetime) -> str | None:
    """Return the stored form of the time until which such a job may wait that waits since then; None: as any."""
    seconds = options.queue_timeout_seconds
    return None if seconds is None else to_text(since + timedelta(seconds=seconds))


def data_text(data: Mapping[str, Any]) -> str:
    """Return the stored form of an event's data."""
    return json.dumps(dict(data))


def user_from(row: Row) -> User:
    """Return the user in a row of `users`."""
    return User(
        id=row["id"],
        name=row["name"],
        email=row["email"],
        created_at=from_text(row["created_at"]),
        is_active=bool(row["is_active"]),
        role=Role(row["role"]),
        limits=UserLimits(Priority.of_rank(row["max_priority"]), row["max_running"]),
    )


def api_key_from(row: Row) -> APIKey:
    """Return the key in a row of `api_keys`."""
    return APIKey(
        id=row["id"],
        user_id=row["user_id"],
        name=row["name"],
        key_hash=row["key_hash"],
        created_at=from_text(row["created_at"]),
        prefix=row["prefix"],
        scopes=frozenset(Scope(word) for word in row["scopes"].split()),
        expires_at=_optional_time(row["expires_at"]),
        last_used_at=_optional_time(row["last_used_at"]),
        is_active=bool(row["is_active"]),
    )


def options_from(text: str, rank: int, pool: str) -> JobOptions:
    """Return the options that `options_text` stored, with the priority of that rank and the pool."""
    raw: dict[str, Any] = json.loads(text)
    return JobOptions(
        pytest_args=tuple(raw["pytest_args"]),
        timeout_seconds=raw["timeout_seconds"],
        fresh=bool(raw.get("fresh")),  # jobs of the first releases have no such option
        priority=Priority.of_rank(rank),
        max_attempts=raw.get("max_attempts"),
        queue_timeout_seconds=raw.get("queue_timeout_seconds"),
        pool=pool,
    )


def job_from(row: Row) -> Job:
    """Return the job in a row of `jobs`."""
    return Job(
        id=row["id"],
        user_id=row["user_id"],
        created_at=from_text(row["created_at"]),
        archive_ref=row["archive_ref"],
        status=JobStatus(row["status"]),
        options=options_from(row["options"], row["priority"], row["pool"]),
        attempt=row["attempt"],
        success=_optional_bool(row["success"]),
        exit_code=row["exit_code"],
        reason=_optional_reason(row["reason"]),
        message=row["message"],
        start_time=_optional_time(row["start_time"]),
        end_time=_optional_time(row["end_time"]),
        not_before=_optional_time(row["not_before"]),
        cancel_requested_at=_optional_time(row["cancel_requested_at"]),
        cancel_requested_by=row["cancel_requested_by"],
        image_id=row["image_id"],
        image_cached=_optional_bool(row["image_cached"]),
        log_size=row["log_size"],
        log_sha256=row["log_sha256"],
        log_truncated=_optional_bool(row["log_truncated"]),
        log_pruned_at=_optional_time(row["log_pruned_at"]),
        repeat_of=row["repeat_of"],
    )


def stop_from(row: Row) -> StopIntent | None:
    """Return the decision to stop in a row of `attempts`, if one was recorded."""
    if row["stop_reason"] is None:
        return None
    return StopIntent(Reason(row["stop_reason"]), from_text(row["stop_at"]), row["stop_message"])


def attempt_from(row: Row, job: Job) -> Attempt:
    """Return the attempt in a row of `attempts`, with its job."""
    return Attempt(
        fence=Fence(row["job_id"], row["number"], row["token"]),
        job=job,
        claimed_at=from_text(row["claimed_at"]),
        container_id=row["container_id"],
        image_id=row["image_id"],
        started_at=_optional_time(row["started_at"]),
        begun_at=_optional_time(row["begun_at"]),
        stop=stop_from(row),
    )


def past_attempt_from(row: Row) -> PastAttempt:
    """Return what a row of `attempts` tells once it has ended."""
    return PastAttempt(
        number=row["number"],
        holder=row["holder"],
        claimed_at=from_text(row["claimed_at"]),
        started_at=_optional_time(row["started_at"]),
        begun_at=_optional_time(row["begun_at"]),
        ended_at=_optional_time(row["ended_at"]),
        reason=_optional_reason(row["reason"]),
        message=row["message"],
    )


def agent_from(row: Row) -> Agent:
    """Return the agent in a row of `agents`, with `jobs_running` beside it."""
    profile = AgentProfile(
        name=row["name"],
        pool=row["pool"],
        slots=row["slots"],
        labels=tuple(row["labels"].split()),
        version=row["version"],
    )
    return Agent(
        lease=AgentLease(row["id"], row["epoch"]),
        profile=profile,
        registered_at=from_text(row["registered_at"]),
        last_heartbeat=from_text(row["last_heartbeat"]),
        state=AgentState(row["state"]),
        beats=row["beats"],
        note=row["note"],
        disk_free=row["disk_free"],
        jobs_completed=row["jobs_completed"],
        jobs_running=row["jobs_running"],
    )


def event_from(row: Row) -> JobEvent:
    """Return the event in a row of `job_events`."""
    return JobEvent(
        type=row["type"],
        timestamp=from_text(row["timestamp"]),
        data=MappingProxyType(json.loads(row["data"])),
        index=row["position"],
    )


def audit_event_from(row: Row) -> AuditEvent:
    """Return the event in a row of `audit_events`."""
    return AuditEvent(
        at=from_text(row["at"]),
        actor=row["actor"],
        action=AuditAction(row["action"]),
        subject=row["subject"],
        details=MappingProxyType(json.loads(row["details"])),
        request_id=row["request_id"],
    )
