"""What a job that produces nothing waits for, in words; also how /ready judges the controller."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from ci_common.job_terms import DEFAULT_POOL, JobStatus
from ci_common.models import AGENT_LEASE, ControllerState, Job, PoolLimit, UserLimits
from ci_common.repository import JobRepository
from ci_server.rendering import timestamp


def controller_trouble(state: ControllerState | None, now: datetime) -> str | None:
    """Return one sentence on why nothing is being run; None: a controller is alive and has no complaint.

    It holds no ages, so that it stays the same text while nothing changes.
    """
    if state is None:
        return "no controller has run on this database yet: start ci-controller"
    if not state.is_alive(now):
        seen = timestamp(state.heartbeat_at)
        return f"the controller is not running (last seen {seen}): start ci-controller"
    return state.note


def pool_trouble(
    pool: str, heartbeats: Mapping[str, datetime], controller: ControllerState | None, now: datetime
) -> str | None:
    """Return one sentence where nobody runs the pool's jobs."""
    is_served = pool in heartbeats and now - heartbeats[pool] <= AGENT_LEASE
    return None if is_served or _is_controllers(pool, controller) else f"no healthy agent in pool {pool}"


def _is_controllers(pool: str, controller: ControllerState | None) -> bool:
    """Tell whether the pool's jobs are the controller's, too; of one that never was, that is said elsewhere."""
    return pool == DEFAULT_POOL and (controller is None or controller.runs_jobs)


def pool_limit_reached(pool: str, full: Iterable[PoolLimit]) -> str | None:
    """Return one sentence for a pool that has as many jobs under way as it may; None for every other."""
    return next((str(limit) for limit in full if limit.pool == pool), None)


async def waiting_for(repository: JobRepository, job: Job, now: datetime) -> str | None:
    """Return what a job that is not terminal waits for; None for one that simply runs."""
    parts = [await _place_in_queue(repository, job, now), _cancellation(job)]
    pause = await repository.queue_pause() if job.status is JobStatus.QUEUED else None
    parts.append(str(pause) if pause else None)
    controller = await repository.controller_state()
    parts.append(await _nobody_there(repository, job, controller, now))
    parts.append(controller_trouble(controller, now))
    said = [part for part in parts if part]
    return "; ".join(said) or None


async def _nobody_there(
    repository: JobRepository, job: Job, controller: ControllerState | None, now: datetime
) -> str | None:
    if job.status is not JobStatus.QUEUED or _is_controllers(job.options.pool, controller):
        return None  # a look less at nearly every job
    return pool_trouble(job.options.pool, await repository.pool_heartbeats(), controller, now)


async def _place_in_queue(repository: JobRepository, job: Job, now: datetime) -> str | None:
    if job.status is JobStatus.CLAIMED:
        return "its container is being prepared"
    if job.status is not JobStatus.QUEUED:
        return None
    if job.not_before is not None and job.not_before > now:
        return f"an attempt was lost, the next one begins not before {timestamp(job.not_before)}"
    before = await repository.queue_position(job.id)
    if before is None:
        return None  # claimed a moment ago: the next look at the job tells
    if said := await _own_limit(repository, job.user_id):
        return said
    if said := pool_limit_reached(job.options.pool, await repository.full_pools()):
        return said
    if before == 0:
        return "next in the queue, waiting for a free slot"
    return f"waiting in the queue, about {before} other job{'' if before == 1 else 's'} before it"


async def _own_limit(repository: JobRepository, user_id: str) -> str | None:
    owner = await repository.get_user(user_id)
    if owner is None or owner.limits.max_running is None:
        return None
    return limit_reached((await repository.queue_view(user_id, limit=0)).running, owner.limits)


def limit_reached(running: int, limits: UserLimits) -> str | None:
    """Return one sentence for a user who has as many jobs under way as may be; None for everybody else."""
    if limits.max_running is None or running < limits.max_running:
        return None
    return f"{running} of your {limits.max_running} jobs are running"


def _cancellation(job: Job) -> str | None:
    if job.cancel_requested_at is None:
        return None
    return f"a cancel was requested by {job.cancel_requested_by or 'operator'}"
