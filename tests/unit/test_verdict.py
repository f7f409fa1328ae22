"""decide: one row per way in which a container can end."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ci_common.models import JobStatus, JobVerdict, Reason, StopIntent
from ci_controller.container_runtime import ExitState
from ci_controller.frames import Outcome, TrailerFrame
from ci_controller.verdict import Lost, decide

CANCEL = StopIntent(Reason.CANCELLED, datetime(2026, 1, 1, tzinfo=UTC), "Cancelled by a@example.org.")
TIMEOUT = StopIntent(Reason.TIMEOUT, datetime(2026, 1, 1, tzinfo=UTC), "The time-out of 30 min passed.")
RAN = TrailerFrame(9, Outcome.TESTS_RAN, 0, "", exit_code=0, session_finished=True, message="3 passed.")


def ran(code: int | None, **changes: object) -> TrailerFrame:
    return replace(RAN, exit_code=code, **changes)  # pyright: ignore[reportArgumentType]


def said(outcome: Outcome, message: str | None = "m") -> TrailerFrame:
    return TrailerFrame(9, outcome, 0, "", message=message)


SUCCESS = None
LOST = "lost"


@pytest.mark.parametrize(
    ("trailer", "code", "stop", "begun", "expected"),
    [
        # the tests ran to their end
        (RAN, 0, None, True, SUCCESS),
        (ran(1), 1, None, True, Reason.TESTS_FAILED),
        (ran(2, collection_errors=1), 2, None, True, Reason.COLLECTION_ERROR),
        (ran(2), 2, None, True, Reason.INTERRUPTED),
        (ran(3), 3, None, True, Reason.INTERNAL_ERROR),
        (ran(4, session_finished=False), 4, None, True, Reason.USAGE_ERROR),
        (ran(5), 5, None, True, Reason.NO_TESTS),
        (ran(6), 6, None, True, Reason.TOO_MANY_WARNINGS),
        # pytest did not get to its end
        (ran(0, session_finished=False), 1, None, True, Reason.CRASHED),
        (ran(0, session_finished=False), 0, None, True, Reason.CRASHED),
        (ran(1, session_finished=False), 1, None, True, Reason.CRASHED),
        (ran(5, session_finished=False), 5, None, True, Reason.CRASHED),
        (ran(107, session_finished=False), 1, None, True, Reason.CRASHED),
        (ran(None, signal=11, session_finished=False), 1, None, True, Reason.CRASHED),
        # a success that the container's own end contradicts
        (RAN, 1, None, True, Reason.CRASHED),
        (RAN, 137, None, True, LOST),
        # other endings of the harness's own
        (said(Outcome.INSTALL_FAILED), 101, None, True, Reason.INSTALL_FAILED),
        (said(Outcome.TIMEOUT), 102, None, True, Reason.TIMEOUT),
        (said(Outcome.IDLE_TIMEOUT), 103, None, True, Reason.IDLE_TIMEOUT),
        (said(Outcome.LOG_LIMIT), 104, None, True, Reason.LOG_LIMIT),
        (said(Outcome.OOM), 106, None, True, Reason.OOM),
        (said(Outcome.BAD_ARCHIVE), 107, None, False, Reason.BAD_ARCHIVE),
        (said(Outcome.NOT_STARTED), 100, None, False, LOST),
        (said(Outcome.NOT_STARTED), 100, None, True, Reason.CRASHED),
        (said(Outcome.STOPPED), 105, None, True, LOST),
        # somebody had decided to end it
        (said(Outcome.STOPPED), 105, CANCEL, True, Reason.CANCELLED),
        (said(Outcome.STOPPED), 105, TIMEOUT, True, Reason.TIMEOUT),
        (said(Outcome.NOT_STARTED), 100, CANCEL, False, Reason.CANCELLED),
        (None, 137, CANCEL, True, Reason.CANCELLED),
        (None, 137, TIMEOUT, True, Reason.TIMEOUT),
        (None, 0, CANCEL, True, Reason.CANCELLED),
        # ... but it had a result by then; only a success does not stand against an intent
        (ran(1), 1, CANCEL, True, Reason.TESTS_FAILED),
        (said(Outcome.INSTALL_FAILED), 101, CANCEL, True, Reason.INSTALL_FAILED),
        (said(Outcome.OOM), 106, TIMEOUT, True, Reason.OOM),
        (RAN, 0, CANCEL, True, Reason.CANCELLED),
        # no last word
        (None, 137, None, True, LOST),
        (None, 143, None, True, LOST),
        (None, 255, None, True, LOST),
        (None, 100, None, False, LOST),
        (None, 127, None, False, LOST),
        (None, 0, None, True, Reason.CRASHED),
        (None, 1, None, True, Reason.CRASHED),
        (None, 109, None, True, Reason.CRASHED),
    ],
)
def test_each_ending_has_its_verdict(
    trailer: TrailerFrame | None,
    code: int,
    stop: StopIntent | None,
    begun: bool,
    expected: Reason | str | None,
) -> None:
    found = decide(trailer, ExitState(code), stop, begun=begun)
    if expected == LOST:
        assert isinstance(found, Lost)
        assert found.reason is Reason.INFRA
    else:
        assert isinstance(found, JobVerdict)
        assert found.reason == expected
    assert found.message
    assert found.message.endswith(".") or found.message == "m"


@pytest.mark.parametrize("code", [0, 1, 137])
def test_a_container_killed_for_memory_without_a_last_word_is_oom(code: int) -> None:
    found = decide(None, ExitState(code, oom_killed=True), None, begun=True)
    assert isinstance(found, JobVerdict)
    assert (found.status, found.reason) == (JobStatus.FAILED, Reason.OOM)


def test_a_child_killed_for_memory_leaves_the_verdict_to_the_tests() -> None:
    assert decide(RAN, ExitState(0, oom_killed=True), None, begun=True) == JobVerdict(
        JobStatus.COMPLETED, True, None, 0, "3 passed."
    )


@pytest.mark.parametrize(
    ("trailer", "kept"), [(ran(1), 1), (ran(107, session_finished=False), 107), (ran(None), None)]
)
def test_pytests_own_exit_code_is_kept(trailer: TrailerFrame, kept: int | None) -> None:
    found = decide(trailer, ExitState(1), None, begun=True)
    assert isinstance(found, JobVerdict)
    assert found.exit_code == kept


def test_what_the_engine_says_of_a_lost_container_is_passed_on() -> None:
    found = decide(None, ExitState(127, error="no such file"), None, begun=False)
    assert found == Lost(Reason.INFRA, "The container ended with 127 before anything ran (no such file).")


def test_without_a_message_the_evidence_is_still_a_sentence() -> None:
    found = decide(ran(None, signal=11, message=None), ExitState(1), None, begun=True)
    assert isinstance(found, JobVerdict)
    assert found.message == "pytest was killed by signal 11."


def test_an_intent_without_words_is_given_some() -> None:
    found = decide(None, ExitState(137), replace(CANCEL, message=None), begun=True)
    assert isinstance(found, JobVerdict)
    assert found.message == "Ended from outside: cancelled."
