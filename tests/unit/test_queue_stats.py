"""The document of the queue's statistics."""

from datetime import timedelta

import pytest

from ci_common.job_terms import JobStatus, Priority
from ci_common.queue_stats import Depth, Ended, QueueFigures, nearest_rank, stats_document
from tests.support.repository_contract.story import at

WINDOW = timedelta(hours=1)
NONE = QueueFigures((), (), (), (), None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((), None), ((3.0,), 3.0), ((2.0, 1.0), 2.0), (tuple(map(float, range(20, 0, -1))), 19.0)],
)
def test_the_95th_percentile_is_one_of_the_values(values: tuple[float, ...], expected: float | None) -> None:
    assert nearest_rank(values, 95) == expected


def test_failed_tests_are_no_failures_of_the_service() -> None:
    ended = (
        Ended(JobStatus.COMPLETED, success=True, jobs=6),
        Ended(JobStatus.COMPLETED, success=False, jobs=1),
        Ended(JobStatus.FAILED, success=False, jobs=2),
        Ended(JobStatus.DEAD_LETTERED, success=False, jobs=1),
        Ended(JobStatus.CANCELLED, success=False, jobs=90),
    )
    document = stats_document(QueueFigures((), ended, (1.0, 2.0), (4.0,), at(-5)), WINDOW, at(0))
    assert [document[name] for name in ("completed", "failed", "dead_lettered", "cancelled")] == [7, 2, 1, 90]
    assert document["failure_rate"] == 0.3
    assert document["infra_failure_rate"] == 0.1
    assert document["tests_failed_rate"] == 0.1
    assert (document["avg_wait_seconds"], document["p95_wait_seconds"]) == (1.5, 2.0)
    assert (document["avg_execution_seconds"], document["oldest_queued_seconds"]) == (4.0, 5.0)


def test_what_nothing_is_known_of_is_null() -> None:
    document = stats_document(NONE, WINDOW, at(0))
    assert document["window_seconds"] == 3600
    assert {name for name, value in document.items() if value is None} == {
        "oldest_queued_seconds",
        "avg_wait_seconds",
        "p95_wait_seconds",
        "avg_execution_seconds",
        "p95_execution_seconds",
        "failure_rate",
        "infra_failure_rate",
        "tests_failed_rate",
    }


def test_depths_are_told_by_status_pool_and_priority() -> None:
    depths = (
        Depth(JobStatus.QUEUED, "default", Priority.HIGH, 2),
        Depth(JobStatus.QUEUED, "gpu", Priority.NORMAL, 3),
        Depth(JobStatus.RUNNING, "gpu", Priority.NORMAL, 4),
    )
    document = stats_document(QueueFigures(depths, (), (), (), None), WINDOW, at(0))
    assert [document[name] for name in ("queued", "claimed", "running")] == [5, 0, 4]
    assert document["by_pool"] == {
        "default": {"queued": 2, "claimed": 0, "running": 0},
        "gpu": {"queued": 3, "claimed": 0, "running": 4},
    }
    assert list(document["by_priority"]) == ["critical", "high", "normal", "low"]
    assert document["by_priority"]["normal"] == {"queued": 3, "claimed": 0, "running": 4}
