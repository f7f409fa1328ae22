"""What the controller can do, as data: each operation says what and why, and prints as one line of a plan.

The planner makes them, the executor carries them out; neither knows of the other.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ci_common.job_terms import Reason
from ci_common.models import Attempt


class AttemptKey(NamedTuple):
    """Which attempt: the key of its row."""

    job_id: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.job_id}/{self.attempt}"


def key_of(attempt: Attempt) -> AttemptKey:
    """Return the key of an attempt."""
    return AttemptKey(attempt.fence.job_id, attempt.fence.attempt)


@dataclass(frozen=True, slots=True)
class Claim:
    """Up to `slots` queued jobs become attempts of ours; which ones is the repository's to say."""

    slots: int
    cause: str

    def __str__(self) -> str:
        return f"claim {self.slots}: {self.cause}"


@dataclass(frozen=True, slots=True)
class StartContainer:
    """A container is created, started, recorded as the attempt's, named after it and fed; its output is followed."""

    attempt: Attempt
    image_id: str
    cause: str

    def __str__(self) -> str:
        return f"start {key_of(self.attempt)}: {self.cause}"


@dataclass(frozen=True, slots=True)
class AdoptContainer:
    """The output of a container that runs already is followed again, from its first byte."""

    attempt: Attempt
    container_id: str
    cause: str

    def __str__(self) -> str:
        return f"adopt {key_of(self.attempt)}: {self.cause}"


@dataclass(frozen=True, slots=True)
class IsolateContainer:
    """The container, which waits for that before its tests, has no network any more."""

    attempt: Attempt
    container_id: str
    cause: str

    def __str__(self) -> str:
        return f"isolate {key_of(self.attempt)}: {self.cause}"


@dataclass(frozen=True, slots=True)
class StopContainer:
    """The decision to end the attempt stands in its row, then its container gets the signal."""

    attempt: Attempt
    container_id: str
    signal: str
    reason: Reason
    message: str | None
    cause: str

    def __str__(self) -> str:
        return f"stop {key_of(self.attempt)} by {self.signal} ({self.reason}): {self.cause}"


@dataclass(frozen=True, slots=True)
class SettleAttempt:
    """The container has ended: its output is drained and sealed, then the verdict is recorded."""

    attempt: Attempt
    container_id: str
    cause: str

    def __str__(self) -> str:
        return f"settle {key_of(self.attempt)}: {self.cause}"


@dataclass(frozen=True, slots=True)
class FinishAttempt:
    """The attempt ends with a decision of ours, because no container can have a say any more."""

    attempt: Attempt
    reason: Reason
    message: str | None
    cause: str

    def __str__(self) -> str:
        return f"finish {key_of(self.attempt)} ({self.reason}): {self.cause}"


@dataclass(frozen=True, slots=True)
class ReleaseAttempt:
    """Infrastructure lost the attempt: the job is queued again, or dead-lettered."""

    attempt: Attempt
    message: str
    cause: str

    def __str__(self) -> str:
        return f"release {key_of(self.attempt)}: {self.cause}"


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    """The container is gone from the engine."""

    container_id: str
    name: str
    cause: str
    attempt: AttemptKey | None = None  # that ran in it and has ended

    def __str__(self) -> str:
        return f"remove {self.name}: {self.cause}"


AttemptOperation = (
    StartContainer
    | AdoptContainer
    | IsolateContainer
    | StopContainer
    | SettleAttempt
    | FinishAttempt
    | ReleaseAttempt
)
Operation = Claim | AttemptOperation | RemoveContainer


@dataclass(frozen=True, slots=True)
class StopKey:
    """Stopping goes on beside whatever else happens to the attempt, so it has a key of its own."""

    attempt: AttemptKey


WorkKey = AttemptKey | StopKey | str  # a string: the id of a container that no open attempt has


def work_key(operation: AttemptOperation | RemoveContainer) -> WorkKey:
    """Return what at most one operation at a time may be about."""
    match operation:
        case RemoveContainer():
            return operation.container_id
        case StopContainer():
            return StopKey(key_of(operation.attempt))
        case _:
            return key_of(operation.attempt)


def log_fields(attempt: Attempt) -> dict[str, str | int]:
    """Return what every log line about an attempt carries, so that all lines of a job can be found."""
    return {"job": attempt.fence.job_id, "attempt": attempt.fence.attempt, "user": attempt.job.user_id}


def fields_of(operation: Operation) -> dict[str, str | int]:
    """Return what a log line about an operation carries: of a container that is left over, whose it was."""
    match operation:
        case Claim():
            return {}
        case RemoveContainer(attempt=key):
            return {"job": key.job_id, "attempt": key.attempt} if key else {}
        case _:
            return log_fields(operation.attempt)


def render(operations: Iterable[Operation]) -> str:
    """Return a plan as text, one line per operation."""
    return "\n".join(str(operation) for operation in operations)
