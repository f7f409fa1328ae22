"""From how a container ended to the job's verdict, or to "infrastructure lost it". Pure.

Lost is what comes from outside the container, or an end before any of the user's code ran. A kernel without our
seccomp profile leaves a job one thing that looks like that: to have the harness killed (by lowering a limit of the
process), which ends it with 137 as an engine that went down does. Nothing a job writes makes it a success: that
takes the harness's trailer, which a job cannot write.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ci_common.disk_space import readable_bytes
from ci_common.job_terms import JobVerdict, Reason
from ci_common.models import StopIntent
from ci_common.verdict import PYTEST_REASONS, verdict
from ci_controller.container_runtime import ExitState
from ci_controller.frames import Outcome, TrailerFrame

# Exit codes that only the outside gives a container: a job cannot send its first process a signal.
_KILLED_FROM_OUTSIDE: Final[Mapping[int, str]] = MappingProxyType(
    {
        137: "the engine or its machine went down, or someone killed it",
        143: "the engine was shut down, or someone stopped it",
        255: "the machine or the engine broke down, and was started again",
    }
)
# The harness ends with these behind its last word only: pytest's own codes, and its own but for its failure.
_AFTER_A_LAST_WORD: Final = frozenset({*range(7), *range(100, 109)})
# What a job does to itself, with a network or without.
_WHATEVER_THE_NETWORK: Final = frozenset(
    {Reason.OOM, Reason.LOG_LIMIT, Reason.DISK_LIMIT, Reason.BAD_ARCHIVE}
)
_KILLED: Final = 137  # SIGKILL: what the kernel does where memory is short
_USAGE_ERROR: Final = 4  # the one code of pytest's that comes before any session

_OWN_ENDINGS: Final[Mapping[Outcome, tuple[Reason, str]]] = MappingProxyType(
    {
        Outcome.INSTALL_FAILED: (Reason.INSTALL_FAILED, "Installing the dependencies failed."),
        Outcome.TIMEOUT: (Reason.TIMEOUT, "The time-out passed."),
        Outcome.IDLE_TIMEOUT: (Reason.IDLE_TIMEOUT, "There was no output for too long."),
        Outcome.LOG_LIMIT: (Reason.LOG_LIMIT, "The output exceeded the log limit."),
        Outcome.OOM: (Reason.OOM, "The job was killed for memory."),
        Outcome.BAD_ARCHIVE: (Reason.BAD_ARCHIVE, "The archive could not be unpacked."),
    }
)


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt ended for a reason outside the job: release or requeue it, never blame the tests."""

    reason: Reason
    message: str


def decide(
    trailer: TrailerFrame | None, exit_state: ExitState, stop: StopIntent | None, *, begun: bool
) -> JobVerdict | Lost:
    """Return the one verdict that follows from a container's end.

    A recorded intent decides, unless the harness had a result of its own before the stop reached it. Only a
    success never stands against an intent.
    """
    if trailer is None:
        return _without_trailer(exit_state, stop, begun=begun)
    if trailer.outcome is Outcome.TESTS_RAN:
        return _tests_ran(trailer, exit_state, stop)
    if trailer.outcome in _OWN_ENDINGS:
        reason, sentence = _OWN_ENDINGS[trailer.outcome]
        return verdict(reason, trailer.message or sentence)
    if stop is not None:
        return _intended(stop)
    # The harness takes no signal from within its container, so a stop without intent came from outside; nor can
    # a job keep the network that is taken from it, or close the input: where that ended behind an installation
    # (`begun`) whoever was to feed the tree has gone, which is charged, but no verdict.
    return Lost(Reason.INFRA, trailer.message or "The container was stopped from outside.")


def proves_success(trailer: TrailerFrame | None) -> bool:
    """Tell whether this last word is a success, whatever the engine says later.

    Nothing but the harness can write it (`probes.process_one`: tracing it and opening what it has open fail), and it
    ends with 0 only after this. The exit is compared afterwards: a contradiction is the engine's or the machine's.
    """
    return trailer is not None and trailer.outcome is Outcome.TESTS_RAN and _reason_of_tests(trailer) is None


def without_network(outcome: JobVerdict | Lost) -> JobVerdict | Lost:
    """Return what becomes of the outcome of a job whose network somebody took away: no failure that may be its work.

    Nothing inside a container can take it off its network.
    """
    if isinstance(outcome, Lost) or outcome.success or outcome.reason in _WHATEVER_THE_NETWORK:
        return outcome
    return Lost(Reason.INFRA, "Its network was taken away while it ran.")


def _without_trailer(exit_state: ExitState, stop: StopIntent | None, *, begun: bool) -> JobVerdict | Lost:
    if stop is not None:
        return _intended(stop)
    code = exit_state.exit_code
    from_outside = _KILLED_FROM_OUTSIDE.get(code)
    if exit_state.oom_killed and (code == _KILLED or not (from_outside or code in _AFTER_A_LAST_WORD)):
        return verdict(Reason.OOM, f"The container was killed for memory{_at_its_limit(exit_state)}.")
    said = f" ({exit_state.error})" if exit_state.error else ""
    if not begun:
        return Lost(Reason.INFRA, f"The container ended with {code} before anything ran{said}.")
    if from_outside:
        return Lost(Reason.INFRA, f"The container was ended from outside ({code}): {from_outside}{said}.")
    if code in _AFTER_A_LAST_WORD:
        return Lost(
            Reason.INFRA, f"The container ended with {code}, but the engine lost the end of its output{said}."
        )
    return verdict(Reason.CRASHED, f"The container ended with {code} without a last word{said}.")


def _at_its_limit(exit_state: ExitState) -> str:
    limit = exit_state.memory_limit
    return f" at its limit of {readable_bytes(limit)}" if limit else ""


def _tests_ran(trailer: TrailerFrame, exit_state: ExitState, stop: StopIntent | None) -> JobVerdict | Lost:
    reason = _reason_of_tests(trailer)
    if reason is not None:
        return verdict(reason, trailer.message or _sentence(trailer), trailer.exit_code)
    if stop is not None:
        return _intended(stop)
    if exit_state.exit_code == 0:
        return verdict(None, trailer.message, 0)
    contradiction = f"The tests passed, but the container ended with {exit_state.exit_code}."
    if exit_state.exit_code in _KILLED_FROM_OUTSIDE:
        return Lost(Reason.INFRA, contradiction)
    return verdict(Reason.CRASHED, contradiction, trailer.exit_code)


def _reason_of_tests(trailer: TrailerFrame) -> Reason | None:
    code = trailer.exit_code
    if code is None or code not in PYTEST_REASONS:
        return Reason.CRASHED
    if not trailer.session_finished and code != _USAGE_ERROR:
        return Reason.CRASHED  # os._exit() in a test, for one
    if code == 2 and not trailer.collection_errors:
        return Reason.INTERRUPTED
    return PYTEST_REASONS[code]


def _sentence(trailer: TrailerFrame) -> str:
    if trailer.signal is not None:
        return f"pytest was killed by signal {trailer.signal}."
    if not trailer.session_finished:
        return f"pytest left with {trailer.exit_code} before its session was finished."
    return f"pytest ended with {trailer.exit_code}."


def _intended(stop: StopIntent) -> JobVerdict:
    return verdict(stop.reason, stop.message or f"Ended from outside: {stop.reason.value}.")
