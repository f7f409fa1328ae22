"""Which containers are to wait ahead of need: pure decisions, from what was assigned lately. No I/O, no clock."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ci_controller.container_runtime import ContainerState
from ci_controller.observed_state import Observed
from ci_controller.operations import Claim, Operation, StartContainer
from ci_controller.planner import free_slots
from ci_controller.policy import Policy

RECENT: Final = 1800.0  # seconds in which an assignment is a reason to expect another one
MIN_MEMORY: Final = (
    1024**3
)  # available on the host; below it nothing waits, and none is made below twice that
# A job's start and many a whole job is over by then; one that runs longer has to share the machine anyway.
SETTLED_AFTER: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Assignment:
    """At that monotonic time a job of that user's got a container of that image."""

    image_id: str
    at: float
    owner: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """One container that waits, since that monotonic time."""

    id: str
    image_id: str
    since: float


@dataclass(frozen=True, slots=True)
class Situation:
    """What else it depends on."""

    trouble: str | None = None  # why none may wait at all
    unfit: frozenset[str] = frozenset()  # containers that have ended, or have to go
    free_slots: int = 0
    is_quiet: bool = False  # nobody would notice that one is made


@dataclass(frozen=True, slots=True)
class Decision:
    """Which containers are let go, each with why, and the image of which one is made."""

    dropped: tuple[tuple[str, str], ...] = ()
    made_of: str | None = None


def situation_of(
    observed: Observed, operations: Iterable[Operation], policy: Policy, memory: int | None, now: datetime
) -> Situation:
    """Return what a pass found; `memory` is available on the host, None where it does not say."""
    ended = {one.id for one in observed.containers if one.state is ContainerState.EXITED}
    return Situation(
        _trouble(observed, memory),
        frozenset(ended | observed.work.over_disk.keys()),
        free_slots(observed, policy),
        _is_quiet(observed, operations, memory, now),
    )


def _trouble(observed: Observed, memory: int | None) -> str | None:
    if not observed.network.holds:  # a package of the environment may run already while pytest waits
        return "the fence around the jobs' network did not hold"
    if observed.work.low_disk:
        return "a disk has too little room"
    if memory is not None and memory < MIN_MEMORY:
        return "the host has too little memory"
    return None


def _is_quiet(observed: Observed, operations: Iterable[Operation], memory: int | None, now: datetime) -> bool:
    """Tell whether nobody waits in the queue, nothing starts, and the engine makes containers."""
    if observed.claimable or observed.work.trouble or (memory is not None and memory < 2 * MIN_MEMORY):
        return False
    if any(isinstance(one, Claim | StartContainer) for one in operations):
        return False
    started = [one.started_at for one in observed.attempts]
    return all(at is not None and now - at >= SETTLED_AFTER for at in started)


def wanted(
    assigned: Sequence[Assignment], runner_image: str | None, count: int, now: float
) -> tuple[str, ...]:
    """Return the images that containers should wait of, first what is wanted most: at most `count`.

    One of each image that was assigned lately, the last one first; then a second one of those that were assigned
    twice, and so on. The bare runner image, where everything has yet to be installed, is worth one at most.
    Where several users had jobs lately, one user's images have half of the places at most, rounded up.
    """
    lately = sorted((one for one in assigned if now - one.at <= RECENT), key=lambda one: one.at, reverse=True)
    times = Counter(one.image_id for one in lately)
    if runner_image is not None and runner_image in times:
        times[runner_image] = 1
    rounds = range(max(times.values(), default=0))
    ranked = [image for done in rounds for image, uses in times.items() if uses > done]
    owners = {one.image_id: one.owner for one in lately if one.image_id != runner_image}
    most = count if len({one.owner for one in lately}) < 2 else (count + 1) // 2
    return tuple(_shared(ranked, owners, most))[:count]


def _shared(ranked: Iterable[str], owners: Mapping[str, str], most: int) -> Iterator[str]:
    """Yield the images in that order, of each owner so many at most; what nobody owns takes nobody's place."""
    places: Counter[str] = Counter()
    for image in ranked:
        owner = owners.get(image)
        if owner is None or places[owner] < most:
            yield image
        if owner is not None:
            places[owner] += 1


def decide(
    waiting: Sequence[Waiting], images: Sequence[str], situation: Situation, max_age: timedelta, now: float
) -> Decision:
    """Return what to let go, and what to make: never more than there are slots for, so that memory suffices."""
    missing = list(images)
    dropped = tuple(_dropped(waiting, missing, situation, max_age, now))
    has_room = len(waiting) - len(dropped) < situation.free_slots
    may_make = situation.trouble is None and situation.is_quiet and has_room
    return Decision(dropped, missing[0] if missing and may_make else None)


def _dropped(
    waiting: Sequence[Waiting], missing: list[str], situation: Situation, max_age: timedelta, now: float
) -> Iterator[tuple[str, str]]:
    """Yield what goes; what stays is no longer missing, the youngest first."""
    for one in sorted(waiting, key=lambda one: one.since, reverse=True):
        if situation.trouble:
            yield one.id, situation.trouble
        elif one.id in situation.unfit:
            yield one.id, "it has ended, or takes too much of the disk"
        elif now - one.since >= max_age.total_seconds():
            yield one.id, "it waited long enough"
        elif one.image_id not in missing:
            yield one.id, "others are wanted more"
        else:
            missing.remove(one.image_id)
