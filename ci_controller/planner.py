"""The decisions of the controller: what is, compared with what should be, gives operations. Pure: no I/O, no clock.

No two operations of one plan have the same work key, so all may run side by side; what one of them changes
is seen by the next plan.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime

from ci_common.job_terms import Reason
from ci_common.models import Attempt, StopIntent
from ci_controller import labels
from ci_controller.container_runtime import ContainerState, ObservedContainer
from ci_controller.observed_state import Observed, SentSignal, Work, containers_by_attempt, unheld
from ci_controller.operations import (
    AdoptContainer,
    AttemptOperation,
    Claim,
    FinishAttempt,
    IsolateContainer,
    Operation,
    ReleaseAttempt,
    RemoveContainer,
    SettleAttempt,
    StartContainer,
    StopContainer,
    key_of,
    work_key,
)
from ci_controller.policy import Policy

SIGINT, SIGKILL = "SIGINT", "SIGKILL"


def plan(observed: Observed, now: datetime, policy: Policy) -> list[Operation]:
    """Return what to do now; empty when everything is as it should be or under way."""
    containers = containers_by_attempt(observed)
    wanted: list[Operation] = []
    for attempt in observed.attempts:
        wanted += _about_attempt(attempt, containers.get(key_of(attempt)), observed, now, policy)
    wanted += _removals(observed, now, policy)
    allowed = [one for one in wanted if _is_free(one, observed.work) and _is_fenced(one, observed)]
    within: list[Operation] = [
        *_within_slots(allowed, policy.max_running_jobs - _starting_or_started(observed))
    ]
    return [*within, *_claims(observed, policy)]  # last: whatever else is due does not wait for the database


def stands_on_an_older_look(operation: Operation) -> bool:
    """Tell whether it is as right where the engine was looked at a moment before: a claim, a start and the end of what
    said its last word follow from rows and from what we read, not from which containers a listing has."""
    return isinstance(operation, Claim | StartContainer | SettleAttempt)


def _is_free(operation: Operation, work: Work) -> bool:
    return isinstance(operation, Claim) or work_key(operation) not in work.busy


def _is_fenced(operation: Operation, observed: Observed) -> bool:
    """Tell whether the network allows it: what was claimed before the fence broke waits for it."""
    return observed.network.holds or not isinstance(operation, StartContainer)


# -- slots and claiming ------------------------------------------------------------------------------------


def _within_slots(operations: Iterable[Operation], free: int) -> Iterator[Operation]:
    """Yield the operations with only so many starts: who waited for an environment gave its slot away."""
    for operation in operations:
        if isinstance(operation, StartContainer):
            free -= 1
            if free < 0:
                continue
        yield operation


def _starting_or_started(observed: Observed) -> int:
    return sum(
        attempt.started_at is not None or key_of(attempt) in observed.work.busy
        for attempt in observed.attempts
        if key_of(attempt) not in observed.work.awaits_environment
    )


def _claims(observed: Observed, policy: Policy) -> Iterator[Operation]:
    if not observed.network.holds:
        return
    free = free_slots(observed, policy)
    if not observed.claimable or free <= 0 or not observed.image_id or observed.work.low_disk:
        return
    if observed.work.trouble is None:
        slots = min(free, observed.claimable)
        yield Claim(slots, f"{observed.claimable} queued, {free} of {policy.max_running_jobs} slots free")
    elif observed.work.trouble.may_try and all(attempt.started_at for attempt in observed.attempts):
        yield Claim(1, f"{observed.claimable} queued, one tries whether the engine makes containers again")


def free_slots(observed: Observed, policy: Policy) -> int:
    """Return how many more jobs may run; what only waits for one takes no slot."""
    return policy.max_running_jobs - _slots_held(observed, policy) - _strays(observed, policy)


def _slots_held(observed: Observed, policy: Policy) -> int:
    """How many open attempts hold one; those that wait for an environment do not, but only so many of them: not
    all that is queued is claimed to wait."""
    waiting = sum(key_of(attempt) in observed.work.awaits_environment for attempt in observed.attempts)
    return len(observed.attempts) - min(waiting, policy.max_running_jobs)


def _strays(observed: Observed, policy: Policy) -> int:
    """How many containers still use the machine although no open attempt has them.

    What was never fed does nothing, and goes at once; only what does not go keeps a slot.
    """

    def is_used(container: ObservedContainer) -> bool:
        never_fed = labels.is_waiting_name(policy.container_prefix, container.name)
        return not never_fed or container.id in observed.work.irremovable

    return sum(one.state is ContainerState.RUNNING and is_used(one) for one in unheld(observed))


# -- attempts ----------------------------------------------------------------------------------------------


def _about_attempt(
    attempt: Attempt, container: ObservedContainer | None, observed: Observed, now: datetime, policy: Policy
) -> Iterable[AttemptOperation]:
    if attempt.started_at is None:
        return _prepare(attempt, observed, policy)
    if container is None or container.state is ContainerState.CREATED:
        cause = "its container is gone after the stop" if attempt.stop else "its container is gone"
        return [_given_up(attempt, "Its container vanished from the engine.", cause)]
    if container.state is ContainerState.EXITED:
        return [SettleAttempt(attempt, container.id, "its container has ended")]
    return _supervise(attempt, attempt.started_at, container, observed.work, now, policy)


def _prepare(attempt: Attempt, observed: Observed, policy: Policy) -> Iterator[AttemptOperation]:
    """Of a claimed attempt, which no container is recorded of: nothing was fed for it, by whomever."""
    key, work = key_of(attempt), observed.work
    if attempt.job.cancel_requested_at:
        yield FinishAttempt(attempt, Reason.CANCELLED, _by(attempt), "cancel requested before it started")
    elif observed.image_id is None:
        message = f"The runner image {policy.runner_image} is not on the engine."
        yield ReleaseAttempt(attempt, message, "the runner image is missing")
    elif key in work.awaited_environment:
        yield StartContainer(
            attempt, observed.image_id, "the environment that it waited for is no longer built"
        )
    elif key not in work.awaits_environment:
        yield StartContainer(attempt, observed.image_id, "claimed, no container")


def _given_up(attempt: Attempt, message: str, cause: str) -> AttemptOperation:
    """Its container has no say any more: a recorded stop decides, else infrastructure lost it."""
    if attempt.stop:
        return FinishAttempt(attempt, attempt.stop.reason, attempt.stop.message, cause)
    return ReleaseAttempt(attempt, message, cause)


def _supervise(
    attempt: Attempt,
    started_at: datetime,
    container: ObservedContainer,
    work: Work,
    now: datetime,
    policy: Policy,
) -> Iterator[AttemptOperation]:
    """Of a running container: its output is followed, and whoever must stop is stopped."""
    sent = work.signals.get(key_of(attempt))
    if sent and sent.name == SIGKILL and now >= sent.at + policy.stuck_after:
        yield _given_up(attempt, "Its container could not be killed.", "it outlived its SIGKILL")
        return
    if container.id not in work.followed:
        yield AdoptContainer(attempt, container.id, "it runs and nobody reads its output")
    elif container.id in work.finished:
        # The engine tells of an exit before it lists it, and no other hint follows; asked about the one
        # container it answers once it knows.
        yield SettleAttempt(attempt, container.id, "its last word was read")
    elif container.id in work.awaits_isolation:
        yield IsolateContainer(attempt, container.id, "everything is installed, its tests get no network")
    if attempt.stop:
        hurry = container.id in work.over_disk
        yield from _carry_out(attempt, attempt.stop, container, sent, now, policy, hurry=hurry)
    else:
        yield from _decide_stop(attempt, started_at, container, work, now, policy)


def _carry_out(
    attempt: Attempt,
    stop: StopIntent,
    container: ObservedContainer,
    sent: SentSignal | None,
    now: datetime,
    policy: Policy,
    *,
    hurry: bool,
) -> Iterator[AttemptOperation]:
    """The stop is recorded: SIGINT for a cancel, so that pytest can sum up; SIGKILL after that and for the rest.

    The grace counts from the signal, not from the record: a predecessor may have died between the two.
    """
    if stop.reason is not Reason.CANCELLED:
        signal, cause = SIGKILL, "its stop is recorded"
    elif hurry:
        signal, cause = SIGKILL, "it fills the disk in its grace"
    elif sent is None:
        signal, cause = SIGINT, "its cancel is recorded"
    elif now >= sent.at + policy.stop_grace + policy.slack:
        signal, cause = SIGKILL, "its grace is over"
    else:
        return
    if sent is None or sent.name != SIGKILL:
        yield StopContainer(attempt, container.id, signal, stop.reason, stop.message, cause)


def _decide_stop(
    attempt: Attempt,
    started_at: datetime,
    container: ObservedContainer,
    work: Work,
    now: datetime,
    policy: Policy,
) -> Iterator[AttemptOperation]:
    """The harness enforces deadline and log limit itself; here is the second line, and the only one for cancels.

    The deadline's kills at once: by then the harness has had the whole grace in which it sends SIGINT and SIGTERM
    itself, and time for its last word. One that is still there is stuck, and asking it again would ask nobody.
    """
    timeout = policy.timeout_of(attempt.job)
    ran = work.running_for.get(key_of(attempt), now - started_at)
    if attempt.job.cancel_requested_at:
        yield StopContainer(attempt, container.id, SIGINT, Reason.CANCELLED, _by(attempt), "cancel requested")
    elif key_of(attempt) in work.over_limit:
        message = f"The log reached its limit of {policy.log_limit} bytes."
        yield StopContainer(attempt, container.id, SIGKILL, Reason.LOG_LIMIT, message, "log limit reached")
    elif container.id in work.over_disk:
        message = work.over_disk[container.id]
        yield StopContainer(attempt, container.id, SIGKILL, Reason.DISK_LIMIT, message, "disk limit reached")
    elif ran >= timeout + policy.deadline_grace:
        message = f"The job ran longer than its time-out of {timeout.total_seconds():g} s."
        yield StopContainer(attempt, container.id, SIGKILL, Reason.TIMEOUT, message, "past its deadline")


def _by(attempt: Attempt) -> str:
    return f"Cancelled by {attempt.job.cancel_requested_by or 'an operator'}."


# -- containers that no open attempt has -------------------------------------------------------------------


def _removals(observed: Observed, now: datetime, policy: Policy) -> Iterator[Operation]:
    for container in unheld(observed):
        key = observed.ended.get(container.id)
        if key in observed.work.busy:
            continue
        if cause := _why_remove(container, observed, now, policy):
            yield RemoveContainer(container.id, container.name, cause, key)


def _why_remove(
    container: ObservedContainer, observed: Observed, now: datetime, policy: Policy
) -> str | None:
    if container.id in observed.ended:
        return "its attempt has ended"
    if labels.is_waiting_name(policy.container_prefix, container.name):
        return "it was never fed, and nobody keeps it"
    is_late = now - container.created_at >= policy.orphan_grace
    return "an orphan: no attempt knows it" if is_late else None
