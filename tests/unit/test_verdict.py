"""decide: one row per way in which a container can end; the engine's part of it is recorded from a real one.

`tests/fixtures/engine_states/` holds the `State` that Docker Engine 20.10 showed of real containers: ended by
themselves, killed, killed for memory, through an engine that was stopped (`dockerd_stopped`) or killed
(`dockerd_killed`) while they ran, after a cut of everything at once (`host_reboot`), half removed (`dead`).
"""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ci_common.job_terms import JobStatus, JobVerdict, Reason
from ci_common.models import StopIntent
from ci_common.verdict import ENDINGS, verdict
from ci_controller.container_manager import exit_state_of
from ci_controller.container_runtime import ExitState
from ci_controller.frames import Outcome, TrailerFrame
from ci_controller.verdict import Lost, decide, proves_success, without_network

CANCEL = StopIntent(Reason.CANCELLED, datetime(2026, 1, 1, tzinfo=UTC), "Cancelled by a@example.org.")
DISK = StopIntent(Reason.DISK_LIMIT, datetime(2026, 1, 1, tzinfo=UTC), "It wrote 5 GiB, its limit is 4 GiB.")
LOG = StopIntent(Reason.LOG_LIMIT, datetime(2026, 1, 1, tzinfo=UTC), "The log reached its limit.")
BAD = StopIntent(Reason.BAD_ARCHIVE, datetime(2026, 1, 1, tzinfo=UTC), "The tree could not be read.")
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
        (said(Outcome.NOT_STARTED), 100, None, True, LOST),  # its feeder died
        (said(Outcome.STOPPED), 105, None, True, LOST),
        (said(Outcome.NOT_ISOLATED), 108, None, True, LOST),
        # somebody had decided to end it
        (said(Outcome.STOPPED), 105, CANCEL, True, Reason.CANCELLED),
        (said(Outcome.STOPPED), 105, TIMEOUT, True, Reason.TIMEOUT),
        (said(Outcome.NOT_STARTED), 100, CANCEL, False, Reason.CANCELLED),
        (said(Outcome.NOT_STARTED), 100, CANCEL, True, Reason.CANCELLED),
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
        (None, 0, None, True, LOST),  # the harness ends so behind its last word only: the engine lost that
        (None, 1, None, True, LOST),
        (None, 105, None, True, LOST),
        (None, 109, None, True, Reason.CRASHED),
        (None, 139, None, True, Reason.CRASHED),
        (None, 152, None, True, Reason.CRASHED),  # SIGXCPU: no engine sends that
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


@pytest.mark.parametrize(
    ("trailer", "proves"),
    [
        (RAN, True),
        (None, False),
        (ran(1), False),
        (ran(5), False),
        (ran(None, signal=9), False),
        (ran(0, session_finished=False), False),  # os._exit(0) in a test
        *((said(outcome), False) for outcome in Outcome if outcome is not Outcome.TESTS_RAN),
    ],
)
def test_only_a_finished_session_that_passed_is_believed_before_the_exit(
    trailer: TrailerFrame | None, proves: bool
) -> None:
    assert proves_success(trailer) is proves


STATES = Path(__file__).parent.parent / "fixtures" / "engine_states"


def recorded(name: str) -> ExitState | None:
    return exit_state_of(json.loads((STATES / f"{name}.json").read_text()), 2 * 1024**3)


@pytest.mark.parametrize(
    ("state", "trailer", "stop", "begun", "expected", "message"),
    [
        ("exit_0", RAN, None, True, SUCCESS, "3 passed."),
        ("exit_0", RAN, CANCEL, True, Reason.CANCELLED, "Cancelled by a@example.org."),
        ("exit_0", RAN, DISK, True, Reason.DISK_LIMIT, "It wrote 5 GiB, its limit is 4 GiB."),
        ("exit_0", None, None, True, LOST, "The container ended with 0, but the engine lost the end of its output."),
        ("exit_1", RAN, None, True, Reason.CRASHED, "The tests passed, but the container ended with 1."),
        ("exit_1", ran(1, message="1 failed."), None, True, Reason.TESTS_FAILED, "1 failed."),
        ("exit_1", None, None, False, LOST, "The container ended with 1 before anything ran."),
        ("exit_105", said(Outcome.STOPPED), CANCEL, True, Reason.CANCELLED, "Cancelled by a@example.org."),
        ("exit_105", said(Outcome.STOPPED, None), None, True, LOST, "The container was stopped from outside."),
        ("exit_109", None, None, True, Reason.CRASHED, "The container ended with 109 without a last word."),
        ("exit_137", None, CANCEL, True, Reason.CANCELLED, "Cancelled by a@example.org."),
        ("exit_137", None, TIMEOUT, True, Reason.TIMEOUT, "The time-out of 30 min passed."),
        ("exit_137", None, DISK, True, Reason.DISK_LIMIT, "It wrote 5 GiB, its limit is 4 GiB."),
        ("exit_137", None, LOG, True, Reason.LOG_LIMIT, "The log reached its limit."),
        ("exit_137", None, BAD, False, Reason.BAD_ARCHIVE, "The tree could not be read."),
        ("exit_137", None, None, True, LOST, None),
        ("exit_137", RAN, None, True, LOST, "The tests passed, but the container ended with 137."),
        ("exit_137", ran(1), None, True, Reason.TESTS_FAILED, None),  # its result was in before the kill
        ("exit_137_oom_killed", None, None, True, Reason.OOM,
         "The container was killed for memory at its limit of 2 GiB."),
        ("exit_137_oom_killed", None, CANCEL, True, Reason.CANCELLED, None),
        ("exit_0_oom_killed", RAN, None, True, SUCCESS, "3 passed."),  # a child only; its note is the harness's
        ("exit_0_oom_killed", None, None, True, LOST, None),
        ("exit_0_oom_killed", ran(1), None, True, Reason.TESTS_FAILED, None),
        ("exit_143", None, None, True, LOST, None),
        ("exit_143", None, CANCEL, True, Reason.CANCELLED, None),
        ("dockerd_stopped", None, None, True, LOST, None),
        ("dockerd_stopped", None, CANCEL, True, Reason.CANCELLED, None),
        ("dockerd_killed", None, None, True, LOST, None),
        ("dockerd_killed", ran(1, message="1 failed."), None, True, Reason.TESTS_FAILED, "1 failed."),
        ("host_reboot", None, None, True, LOST,
         "The container was ended from outside (255): the machine or the engine broke down, and was started again."),
        ("host_reboot", None, None, False, LOST, "The container ended with 255 before anything ran."),
        ("host_reboot", None, TIMEOUT, True, Reason.TIMEOUT, None),
        ("dead", None, None, True, LOST, None),
        ("dead", RAN, None, True, SUCCESS, None),
    ],
)  # fmt: skip
def test_what_a_real_engine_recorded_gives_the_verdict(
    state: str,
    trailer: TrailerFrame | None,
    stop: StopIntent | None,
    begun: bool,
    expected: Reason | str | None,
    message: str | None,
) -> None:
    exit_state = recorded(state)
    assert exit_state is not None
    found = decide(trailer, exit_state, stop, begun=begun)
    assert (LOST if isinstance(found, Lost) else found.reason) == expected
    assert found.message
    assert message is None or found.message == message


@pytest.mark.parametrize("state", ["created", "running", "oci_runtime_error"])
def test_what_has_not_ended_has_no_exit_state(state: str) -> None:
    """A container that could not even be started stays "created", whatever code the engine gives it."""
    assert recorded(state) is None


def test_every_recorded_state_is_used() -> None:
    text = Path(__file__).read_text()
    assert [path.stem for path in STATES.glob("*.json") if f'"{path.stem}"' not in text] == []


def test_every_reason_is_an_ending() -> None:
    assert {ending.reason for ending in ENDINGS} == {None, *Reason}


@pytest.mark.parametrize("code", [143, 255])
def test_an_engine_that_went_down_after_a_child_was_killed_for_memory_is_no_oom(code: int) -> None:
    assert isinstance(decide(None, ExitState(code, oom_killed=True), None, begun=True), Lost)


@pytest.mark.parametrize("code", [109, 137])
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


def test_a_failure_without_its_network_is_nobodys_unless_the_job_did_it_to_itself() -> None:
    lost = Lost(Reason.INFRA, "Its network was taken away while it ran.")
    for reason in (Reason.TESTS_FAILED, Reason.INSTALL_FAILED, Reason.TIMEOUT, Reason.CRASHED):
        assert without_network(verdict(reason)) == lost
    for kept in (verdict(None), verdict(Reason.OOM), verdict(Reason.LOG_LIMIT), Lost(Reason.INFRA, "why")):
        assert without_network(kept) == kept
