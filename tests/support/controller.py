"""Small worlds for the planner: jobs, attempts and containers at chosen moments of their lives."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ci_common.job_terms import JobStatus, Reason
from ci_common.models import Attempt, Fence, Job, StopIntent
from ci_controller import labels
from ci_controller.container_runtime import ContainerState, ObservedContainer
from ci_controller.observed_state import Observed, SentSignal, Work
from ci_controller.operations import AttemptKey
from ci_controller.policy import Policy

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
IMAGE = "sha256:" + "0" * 64
INSTANCE = "instance"


def ago(seconds: float) -> datetime:
    """Return a time before NOW."""
    return NOW - timedelta(seconds=seconds)


def make_job(name: str = "a", **changes: Any) -> Job:
    """Return a job; `cancel=True` asks for its end."""
    job = Job(
        id=name, user_id="u", created_at=ago(3600), archive_ref="ref", status=JobStatus.CLAIMED, attempt=1
    )
    if changes.pop("cancel", False):
        changes |= {"cancel_requested_at": ago(1), "cancel_requested_by": "ada@example.org"}
    return replace(job, **changes)


def claimed(name: str = "a", number: int = 1, **changes: Any) -> Attempt:
    """Return an attempt that was claimed; `cancel=True` asks for its end."""
    job = make_job(name, attempt=number, cancel=changes.pop("cancel", False))
    return replace(Attempt(Fence(name, number, "token"), job, claimed_at=ago(60)), **changes)


def running(name: str = "a", number: int = 1, *, since: float = 30, **changes: Any) -> Attempt:
    """Return an attempt whose container was started so many seconds ago."""
    attempt = claimed(name, number, **changes)
    job = replace(attempt.job, status=JobStatus.RUNNING)
    started = {"container_id": f"c-{name}-{number}", "image_id": IMAGE, "started_at": ago(since)}
    return replace(attempt, job=job, **started)


def stopping(attempt: Attempt, reason: Reason, *, since: float = 1) -> Attempt:
    """Return the attempt with a stop recorded so many seconds ago."""
    return replace(attempt, stop=StopIntent(reason, ago(since), "Because."))


def container(
    name: str = "a",
    number: int = 1,
    state: ContainerState = ContainerState.RUNNING,
    *,
    age: float = 30,
    kind: str = labels.KIND_RUN,
) -> ObservedContainer:
    """Return the container that is named after an attempt, and that is recorded of it once it runs."""
    named = {**labels.run_labels(INSTANCE, epoch=1), labels.KIND: kind}
    return ObservedContainer(f"c-{name}-{number}", labels.job_name("", name, number), named, state, ago(age))


def waiting(state: ContainerState = ContainerState.RUNNING, *, age: float = 0) -> ObservedContainer:
    """Return a container that was never fed."""
    named = labels.run_labels(INSTANCE, epoch=1)
    return ObservedContainer("c-waiting", "waiting-0123456789ab", named, state, ago(age))


def ended(*containers: ObservedContainer) -> dict[str, AttemptKey]:
    """Return what the rows say of containers whose attempts have ended."""
    return {one.id: _attempt_of(one) for one in containers}


def _attempt_of(container: ObservedContainer) -> AttemptKey:
    _, name, number = container.name.split("-")
    return AttemptKey(name, int(number))


def follows(*containers: ObservedContainer, **changes: Any) -> Work:
    """Return the work of a process that reads the output of these containers."""
    return Work(followed=frozenset(one.id for one in containers), **changes)


def sent(signal: str, seconds: float, key: AttemptKey | None = None) -> dict[AttemptKey, SentSignal]:
    """Return the record of a signal sent so many seconds ago."""
    return {key or AttemptKey("a", 1): SentSignal(signal, ago(seconds))}


def world(*things: Attempt | ObservedContainer, **changes: Any) -> Observed:
    """Return an observation of these attempts and containers, with the image present."""
    attempts = tuple(thing for thing in things if isinstance(thing, Attempt))
    containers = tuple(thing for thing in things if isinstance(thing, ObservedContainer))
    return replace(Observed(attempts, containers, image_id=IMAGE), **changes)


POLICY = Policy(max_running_jobs=2)
