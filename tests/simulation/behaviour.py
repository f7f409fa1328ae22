"""What the simulated jobs do, and what may therefore be said of them."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from ci_common.job_terms import JobStatus, Reason
from ci_controller.container_runtime import ExitState
from ci_controller.frames import Outcome
from tests.support.controlled import Frames, opening
from tests.support.fake_runtime import Script, Step, UntilSignal


class Kind(StrEnum):
    """How a job's tests behave."""

    PASSES = "passes"
    FAILS = "fails"
    CRASHES = "crashes"  # the harness dies without a last word, by no signal of an engine's
    HANGS = "hangs"  # until SIGINT
    DEAF = "deaf"  # until SIGKILL


Ending = tuple[JobStatus, Reason | None]

ENDINGS: Final[Mapping[Kind, Ending]] = MappingProxyType(
    {
        Kind.PASSES: (JobStatus.COMPLETED, None),
        Kind.FAILS: (JobStatus.COMPLETED, Reason.TESTS_FAILED),
        Kind.CRASHES: (JobStatus.COMPLETED, Reason.CRASHED),
        Kind.HANGS: (JobStatus.FAILED, Reason.TIMEOUT),
        Kind.DEAF: (JobStatus.FAILED, Reason.TIMEOUT),
    }
)


def output_of(job_id: str) -> bytes:
    """Return all that the job prints, in whatever attempt."""
    return b"".join(_lines(job_id))


def _lines(job_id: str) -> list[bytes]:
    return [f"{job_id} line {number} é\n".encode() for number in range(4)]


def not_started(fed: bytes) -> Iterator[Step]:
    """Do what every container does whose input broke off."""
    frames = Frames()
    yield from opening(fed, frames)
    yield frames.trailer(Outcome.NOT_STARTED, message="The feed broke off.")
    yield ExitState(100)


def script_of(job_id: str, kind: Kind) -> Script:
    """Return what the container of that job does once it has got everything."""

    def script(fed: bytes) -> Iterator[Step]:
        frames = Frames()
        yield from opening(fed, frames)
        for line in _lines(job_id):
            yield frames.output(line)
        yield from _ending(kind, frames)

    return script


def _ending(kind: Kind, frames: Frames) -> Iterator[Step]:
    match kind:
        case Kind.PASSES | Kind.FAILS:
            code = 0 if kind is Kind.PASSES else 1
            yield frames.trailer(Outcome.TESTS_RAN, exit_code=code, session_finished=True)
            yield ExitState(code)
        case Kind.CRASHES:
            yield ExitState(139)
        case Kind.HANGS:
            yield UntilSignal("SIGINT")
            yield frames.trailer(Outcome.STOPPED)
            yield ExitState(0)
        case Kind.DEAF:
            yield UntilSignal("never")
