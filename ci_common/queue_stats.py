"""What the queue holds and what became of it lately: the figures, and the one document that is shown of them. Pure."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Any, Final

from ci_common.job_terms import JobStatus, Priority

DEFAULT_WINDOW: Final = timedelta(hours=1)
LONGEST_WINDOW: Final = timedelta(days=7)
_OPEN: Final = tuple(status for status in JobStatus if not status.is_terminal)


@dataclass(frozen=True, slots=True)
class Depth:
    """How many jobs that have not ended stand alike."""

    status: JobStatus
    pool: str
    priority: Priority
    jobs: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How many jobs of the window ended alike."""

    status: JobStatus
    success: bool
    jobs: int


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """One consistent look at the queue, and at what ended in a window. Cancelled jobs have neither wait nor run."""

    depths: tuple[Depth, ...]
    ended: tuple[Ended, ...]
    waits: tuple[float, ...]  # seconds from the submission to the start of the attempt that counted
    runs: tuple[float, ...]  # seconds from there to the end
    oldest_at: datetime | None  # submission of the queued job that has waited longest


def stats_document(figures: QueueFigures, window: timedelta, now: datetime) -> dict[str, Any]:
    """Return the statistics; what nothing is known of is null."""
    return {
        "window_seconds": int(window.total_seconds()),
        **_by_status(figures.depths),
        "oldest_queued_seconds": _seconds_since(figures.oldest_at, now),
        **{status.value: _ended(figures, status) for status in JobStatus if status.is_terminal},
        "avg_wait_seconds": _mean(figures.waits),
        "p95_wait_seconds": nearest_rank(figures.waits, 95),
        "avg_execution_seconds": _mean(figures.runs),
        "p95_execution_seconds": nearest_rank(figures.runs, 95),
        **_rates(figures),
        "by_pool": _grouped(figures.depths, lambda depth: depth.pool, ()),
        "by_priority": _grouped(figures.depths, lambda depth: depth.priority.value, tuple(Priority)),
    }


def nearest_rank(values: Sequence[float], percent: int) -> float | None:
    """Return the smallest of the values that at least so many percent do not exceed."""
    if not values:
        return None
    return round(sorted(values)[ceil(len(values) * percent / 100) - 1], 3)


def _rates(figures: QueueFigures) -> dict[str, float | None]:
    """Return the shares of what ended uncancelled: bad tests apart from what ended without a verdict from the tests."""
    completed, failed, dead = (
        _ended(figures, status) for status in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.DEAD_LETTERED)
    )
    passed = sum(one.jobs for one in figures.ended if one.success)
    total = completed + failed + dead
    return {
        "failure_rate": _share(failed + dead, total),
        "infra_failure_rate": _share(dead, total),
        "tests_failed_rate": _share(completed - passed, total),
    }


def _ended(figures: QueueFigures, status: JobStatus) -> int:
    return sum(one.jobs for one in figures.ended if one.status is status)


def _by_status(depths: Sequence[Depth]) -> dict[str, int]:
    counted = Counter[JobStatus]()
    for depth in depths:
        counted[depth.status] += depth.jobs
    return {status.value: counted[status] for status in _OPEN}


def _grouped(
    depths: Sequence[Depth], name: Callable[[Depth], str], always: Sequence[str]
) -> dict[str, dict[str, int]]:
    names = [*map(str, always), *sorted({name(depth) for depth in depths} - {*always})]
    return {one: _by_status([depth for depth in depths if name(depth) == one]) for one in names}


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None


def _share(part: int, total: int) -> float | None:
    return round(part / total, 4) if total else None


def _seconds_since(moment: datetime | None, now: datetime) -> float | None:
    return None if moment is None else round(max(0.0, (now - moment).total_seconds()), 3)
