"""One complete picture of desired and actual state, or an error: we never decide on a partial view."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from ci_common.errors import EngineUnavailable
from ci_common.models import Attempt
from ci_controller import labels
from ci_controller.breaker import Trouble
from ci_controller.container_runtime import (
    ContainerRuntime,
    ContainerState,
    NetworkState,
    ObservedContainer,
)
from ci_controller.job_source import JobSource
from ci_controller.operations import AttemptKey, WorkKey, key_of

_ENGINE_PATIENCE: Final = 10.0  # a listing takes milliseconds; calls that change something may take longer


@dataclass(frozen=True, slots=True)
class SentSignal:
    """The last signal this process sent to an attempt's container."""

    name: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Work:
    """What this process itself is doing at that moment; a new process is doing nothing."""

    # In flight, now or since the engine was last looked at, or backing off after a failure: left alone.
    busy: frozenset[WorkKey] = frozenset()
    followed: frozenset[str] = frozenset()  # containers whose output is being read
    finished: frozenset[str] = frozenset()  # of these, the ones whose output was read to its last word
    awaits_isolation: frozenset[str] = frozenset()  # containers that have installed and wait for us
    signals: Mapping[AttemptKey, SentSignal] = field(default_factory=lambda: MappingProxyType({}))
    # How long attempts have run, measured by the monotonic clock.
    running_for: Mapping[AttemptKey, timedelta] = field(default_factory=lambda: MappingProxyType({}))
    over_limit: frozenset[AttemptKey] = frozenset()  # wrote more than the log limit and still run
    over_disk: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({})
    )  # container → why it must go
    low_disk: str | None = None  # why nothing is claimed: some disk has too little room
    trouble: Trouble | None = None  # why the engine made no container when it was last asked to
    irremovable: frozenset[str] = frozenset()  # containers that the engine did not remove when last asked to
    # Attempts without a container, for an environment that another one builds; and who did until then.
    awaits_environment: frozenset[AttemptKey] = frozenset()
    awaited_environment: frozenset[AttemptKey] = frozenset()
    ours: frozenset[str] = frozenset()  # names of containers that are being made, wait or are being assigned


@dataclass(frozen=True, slots=True)
class Look:
    """What the engine had when it was asked."""

    at: float  # monotonic seconds, before it was
    ended: int  # operations of ours, by then
    containers: tuple[ObservedContainer, ...]
    image_id: str | None  # of the runner image; None: the engine does not have it
    network: NetworkState  # of the fence around the jobs


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything a plan depends on, but the time."""

    attempts: tuple[Attempt, ...] = ()
    containers: tuple[ObservedContainer, ...] = ()
    # By container: the attempt that ran in it, whose row says it ended.
    ended: Mapping[str, AttemptKey] = field(default_factory=lambda: MappingProxyType({}))
    claimable: int = 0
    image_id: str | None = None  # of the runner image; None: the engine does not have it
    network: NetworkState = field(default_factory=NetworkState)  # of the fence around the jobs
    work: Work = field(default_factory=Work)


def may_run(container: ObservedContainer) -> bool:
    """Tell whether a container is of the kind that runs an attempt; another one is a newer release's, perhaps."""
    return container.labels.get(labels.KIND) == labels.KIND_RUN


async def look(runtime: ContainerRuntime, instance_id: str, runner_image: str, at: float, ended: int) -> Look:
    """Return what the engine has now, whole; raises EngineUnavailable instead of a part."""
    try:
        async with asyncio.timeout(_ENGINE_PATIENCE):
            containers, image_id, network = await asyncio.gather(
                runtime.list(instance_id), runtime.image_id(runner_image), runtime.guard_network()
            )
    except TimeoutError as error:
        raise EngineUnavailable(f"no listing came within {_ENGINE_PATIENCE:g} s") from error
    return Look(at, ended, tuple(containers), image_id, network)


async def observe(
    jobs: JobSource, seen: Look, work: Work, ours: Callable[[], frozenset[str]], now: datetime
) -> Observed:
    """Return the present state, whole; raises the database's error instead of a part.

    What was `seen` of the engine is older than the rows: a container is never older news than the row that explains
    it. `work` is looked at between the two, and whatever was in flight since the engine was asked is left alone.
    `ours` is, too: a container has its name there before it exists, and until a row has it.
    """
    work = replace(work, ours=ours())
    attempts = tuple(await jobs.held())
    claimable = await jobs.count_claimable(now)
    ended = await jobs.ended(_unheld(seen.containers, attempts))
    return Observed(attempts, seen.containers, ended, claimable, seen.image_id, seen.network, work)


def containers_by_attempt(observed: Observed) -> dict[AttemptKey, ObservedContainer]:
    """Return the container of each open attempt whose row has one that exists."""
    present = {container.id: container for container in observed.containers}
    return {
        key_of(attempt): present[attempt.container_id]
        for attempt in observed.attempts
        if attempt.container_id in present
    }


def unheld(observed: Observed) -> list[ObservedContainer]:
    """Return the containers that no open attempt has, nor anybody in this process is about to give to one."""
    held = {attempt.container_id for attempt in observed.attempts}
    return [
        container
        for container in observed.containers
        if may_run(container) and container.id not in held and container.name not in observed.work.ours
    ]


def ghosts(observed: Observed) -> list[str]:
    """Return the ids of the containers that run although they were to be removed: each keeps a slot."""
    return sorted(
        container.id
        for container in observed.containers
        if container.state is ContainerState.RUNNING and container.id in observed.work.irremovable
    )


def _unheld(containers: Iterable[ObservedContainer], attempts: Iterable[Attempt]) -> set[str]:
    return {container.id for container in containers} - {attempt.container_id for attempt in attempts}
