"""What somebody is told of a queued job: why it waits, and for about how long. Pure, and in one place."""

from dataclasses import dataclass
from datetime import datetime

from ci_common.models import QueuePlace, QueueView, UserLimits
from ci_server.rendering import timestamp
from ci_server.waiting import controller_trouble, limit_reached, pool_limit_reached, pool_trouble


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a job waits, in one sentence, and for about how many seconds; None: nobody knows."""

    why: str
    about_seconds: float | None


def waiting(place: QueuePlace, view: QueueView, limits: UserLimits, now: datetime) -> Waiting:
    """Return what the job waits for: of several obstacles the one that has to go first."""
    obstacle = _obstacle(place.job.options.pool, view, now)
    if obstacle is not None:
        return Waiting(obstacle, None)  # how long that lasts is a person's to decide
    not_before = place.job.not_before
    if not_before is not None and not_before > now:
        until = f"backing off until {timestamp(not_before)}, since an attempt was lost"
        return Waiting(until, _estimate(place, view, limits))
    return Waiting(_turn(place, view, limits), _estimate(place, view, limits))


def _obstacle(pool: str, view: QueueView, now: datetime) -> str | None:
    """Return what keeps every job of the pool from being claimed."""
    if view.pause:
        return str(view.pause)
    nobody = pool_trouble(pool, view.pools, view.controller, now)
    return nobody or controller_trouble(view.controller, now)


def _turn(place: QueuePlace, view: QueueView, limits: UserLimits) -> str:
    if said := limit_reached(view.running, limits):
        return said
    if said := pool_limit_reached(place.job.options.pool, view.full_pools):
        return said
    if place.before == 0:
        return "next in the queue, waiting for a free slot"
    return "1 job is before it" if place.before == 1 else f"{place.before} jobs are before it"


def _estimate(place: QueuePlace, view: QueueView, limits: UserLimits) -> float | None:
    """Return how long the jobs before it and one that runs now take, if as many run side by side as do now."""
    if view.run_seconds is None:
        return None
    at_once = max(view.under_way, 1)
    if limits.max_running is not None and view.running >= limits.max_running:
        at_once = min(at_once, limits.max_running)
    return round((place.before + 1) * view.run_seconds / at_once, 1)
