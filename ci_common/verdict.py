"""The table of how jobs end: what happened, status, reason, exit code of `ci`. The docs are generated from it."""

from dataclasses import dataclass

from ci_common.job_terms import JobStatus, JobVerdict, Reason


@dataclass(frozen=True, slots=True)
class Ending:
    """One row: a way for a job to end."""

    what: str
    status: JobStatus
    reason: Reason | None
    exit_code: int | None  # of `ci`; None: pytest's own


ENDINGS: tuple[Ending, ...] = (
    Ending("all tests passed (pytest 0)", JobStatus.COMPLETED, None, 0),
    Ending("tests failed (pytest 1)", JobStatus.COMPLETED, Reason.TESTS_FAILED, None),
    Ending("collection failed (pytest 2)", JobStatus.COMPLETED, Reason.COLLECTION_ERROR, None),
    Ending("pytest was interrupted from inside (pytest 2)", JobStatus.COMPLETED, Reason.INTERRUPTED, None),
    Ending("pytest failed internally (pytest 3)", JobStatus.COMPLETED, Reason.INTERNAL_ERROR, None),
    Ending("pytest was called wrongly (pytest 4)", JobStatus.COMPLETED, Reason.USAGE_ERROR, None),
    Ending("no tests were found (pytest 5)", JobStatus.COMPLETED, Reason.NO_TESTS, None),
    Ending("too many warnings (pytest 6)", JobStatus.COMPLETED, Reason.TOO_MANY_WARNINGS, None),
    Ending("pytest died of a signal or left early", JobStatus.COMPLETED, Reason.CRASHED, 1),
    Ending("the archive proved bad after acceptance", JobStatus.FAILED, Reason.BAD_ARCHIVE, 125),
    Ending("installing the dependencies failed", JobStatus.FAILED, Reason.INSTALL_FAILED, 125),
    Ending("the job's time-out passed", JobStatus.FAILED, Reason.TIMEOUT, 124),
    Ending("no output for too long", JobStatus.FAILED, Reason.IDLE_TIMEOUT, 124),
    Ending("it waited too long in the queue", JobStatus.FAILED, Reason.QUEUE_TIMEOUT, 124),
    Ending("pytest was killed for memory", JobStatus.FAILED, Reason.OOM, 125),
    Ending("the disk limit was reached", JobStatus.FAILED, Reason.DISK_LIMIT, 125),
    Ending("the log limit was reached", JobStatus.FAILED, Reason.LOG_LIMIT, 125),
    Ending("someone cancelled it", JobStatus.CANCELLED, Reason.CANCELLED, 143),
    Ending("infrastructure lost it too often", JobStatus.DEAD_LETTERED, Reason.INFRA, 125),
    Ending("its agents were lost too often", JobStatus.DEAD_LETTERED, Reason.AGENT_LOST, 125),
)

_BY_REASON = {ending.reason: ending for ending in ENDINGS}

# pytest's own exit codes: https://docs.pytest.org/en/stable/reference/exit-codes.html
PYTEST_REASONS: dict[int, Reason | None] = {
    0: None,
    1: Reason.TESTS_FAILED,
    2: Reason.COLLECTION_ERROR,  # or INTERRUPTED, when nothing failed to be collected
    3: Reason.INTERNAL_ERROR,
    4: Reason.USAGE_ERROR,
    5: Reason.NO_TESTS,
    6: Reason.TOO_MANY_WARNINGS,
}


def ending(reason: Reason | None) -> Ending:
    """Return the row of the table for a reason (None: success)."""
    return _BY_REASON[reason]


def verdict(reason: Reason | None, message: str | None = None, exit_code: int | None = None) -> JobVerdict:
    """Return the verdict that the table gives for a reason; `exit_code` is pytest's own, if it had one."""
    row = ending(reason)
    return JobVerdict(row.status, reason is None, reason, exit_code, message)


def exit_code_for(reason: Reason | None, pytest_exit_code: int | None) -> int:
    """Return the exit code of `ci` for a reason: the table's, or pytest's own where the table says so."""
    row = ending(reason)
    if row.exit_code is not None:
        return row.exit_code
    return pytest_exit_code if pytest_exit_code is not None else 1
