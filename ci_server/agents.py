"""What is said to agents and to those who look after them: documents of agents and of what they hold. No HTTP."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from ci_common.job_terms import Reason
from ci_common.models import (
    Agent,
    AgentHealth,
    AgentProfile,
    AgentState,
    Attempt,
    LogSeal,
    PoolLimit,
    StopIntent,
)
from ci_server.agent_schemas import ProfileRequest, SealRequest
from ci_server.rendering import timestamp


def profile_of(said: ProfileRequest) -> AgentProfile:
    """Return what an agent says of itself."""
    labels = tuple(sorted(set(said.labels)))
    return AgentProfile(said.name, said.pool, said.slots, labels, said.version)


def seal_of(said: SealRequest) -> LogSeal | None:
    """Return the log that was reported, None where it could not be kept."""
    if said.log_size is None or said.log_sha256 is None:
        return None
    return LogSeal(said.log_size, said.log_sha256, said.log_truncated)


def reason_named(word: str) -> Reason | None:
    """Return the reason of that name, None if there is none."""
    return Reason(word) if word in list(Reason) else None


def agent_document(agent: Agent, now: datetime, lease: timedelta) -> dict[str, Any]:
    """Return an agent as operators see it."""
    profile = agent.profile
    return {
        "agent_id": agent.id,
        "name": profile.name,
        "pool": profile.pool,
        "labels": list(profile.labels),
        "slots": profile.slots,
        "version": profile.version,
        "status": _status(agent, now, lease),
        "note": agent.note,
        "registered_at": timestamp(agent.registered_at),
        "last_heartbeat": timestamp(agent.last_heartbeat),
        "disk_free": agent.disk_free,
        "jobs_running": agent.jobs_running,
        "jobs_completed": agent.jobs_completed,
    }


def _status(agent: Agent, now: datetime, lease: timedelta) -> str:
    health = agent.health(now, lease)
    decided = agent.state is not AgentState.ACTIVE and health is not AgentHealth.LOST
    removed = agent.state is AgentState.REMOVED
    return (agent.state.value if decided or removed else health.value).upper()


def is_healthy(agent: Agent, now: datetime, lease: timedelta) -> bool:
    """Tell whether the agent claims and has no complaint."""
    return agent.state is AgentState.ACTIVE and agent.health(now, lease) is AgentHealth.HEALTHY


def pool_documents(
    agents: Sequence[Agent], limits: Sequence[PoolLimit], now: datetime, lease: timedelta
) -> list[dict[str, Any]]:
    """Return the pools that these agents make up, and those that have a limit."""
    names = {agent.profile.pool for agent in agents} | {limit.pool for limit in limits}
    return [pool_document(name, agents, limits, now, lease) for name in sorted(names)]


def pool_document(
    pool: str, agents: Iterable[Agent], limits: Iterable[PoolLimit], now: datetime, lease: timedelta
) -> dict[str, Any]:
    """Return a pool as operators see it; one that nobody spoke of is empty and without a limit."""
    members = [agent for agent in agents if agent.profile.pool == pool]
    healthy = [agent for agent in members if is_healthy(agent, now, lease)]
    return {
        "pool": pool,
        "agents": len(members),
        "healthy": len(healthy),
        "slots": sum(agent.profile.slots for agent in healthy),
        "jobs_running": sum(agent.jobs_running for agent in members),
        "labels": sorted({label for agent in members for label in agent.profile.labels}),
        "max_running": next((limit.max_running for limit in limits if limit.pool == pool), None),
    }


def attempt_document(attempt: Attempt, expires_at: datetime) -> dict[str, Any]:
    """Return a job as its holder needs it, and no more of it."""
    job, fence = attempt.job, attempt.fence
    return {
        "id": job.id,
        "attempt": fence.attempt,
        "claim_token": fence.token,
        "claimed_lease_expires_at": timestamp(expires_at),
        "status": job.status.value,
        "owner": job.user_id,
        "created_at": timestamp(job.created_at),
        "pytest_args": list(job.options.pytest_args),
        "timeout": job.options.timeout_seconds,
        "fresh": job.options.fresh,
        "priority": job.options.priority.value,
        "pool": job.options.pool,
        "cancel_requested_at": _optional(job.cancel_requested_at),
        "cancel_requested_by": job.cancel_requested_by,
        "claimed_at": timestamp(attempt.claimed_at),
        "container_id": attempt.container_id,
        "image_id": attempt.image_id,
        "started_at": _optional(attempt.started_at),
        "begun_at": _optional(attempt.begun_at),
        "stop": stop_document(attempt.stop) if attempt.stop else None,
    }


def stop_document(stop: StopIntent) -> dict[str, Any]:
    """Return a decision to end an attempt."""
    return {"reason": stop.reason.value, "at": timestamp(stop.at), "message": stop.message}


def news_of(agent: Agent, attempts: Iterable[Attempt], claimable: int) -> str:
    """Return a word that changes when the agent has something new to do: nothing else of the jobs is in it."""
    free = agent.profile.slots - agent.jobs_running
    held = sorted(
        (one.fence.job_id, one.fence.attempt, one.job.cancel_requested_at is not None) for one in attempts
    )
    said = [agent.state.value, min(claimable, free) if free > 0 else 0, held]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def instructions(agent: Agent, attempts: Iterable[Attempt]) -> Mapping[str, Any]:
    """Return what the agent is to do."""
    cancel = [one.job.id for one in attempts if one.job.cancel_requested_at is not None]
    return {"state": agent.state.value, "cancel": cancel}


def _optional(moment: datetime | None) -> str | None:
    return timestamp(moment) if moment is not None else None
