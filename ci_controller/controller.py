"""Runner and JobController: the loop around observe, plan and execute, what wakes it, and its right to act.

A runner's jobs come from whoever enlists it: on this machine the repository, whose controller it then is.

Every pass starts from what is, so any event may be lost: hints from the engine only make the next pass come sooner
than the interval would. Hints from the database and the pumps are taken at once, beside a pass that still waits for
the engine: what they are about needs no new look at it.
"""

import asyncio
import math
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from ci_common.clock import Clock, SystemClock
from ci_common.crash_points import crash_point
from ci_common.errors import CIError, ControllerRunning, EngineUnavailable
from ci_common.job_terms import Reason
from ci_common.models import AGENT_LEASE, ControllerLease
from ci_common.repository import JobRepository
from ci_common.stores import ArchiveStore, ChangeHub, LogStore
from ci_controller.agent_leases import LOOKS, AgentLeases
from ci_controller.container_runtime import ContainerError, ContainerGone, ContainerRuntime, NetworkState
from ci_controller.disk_watch import DiskWatch, Reserve
from ci_controller.executor import Executor
from ci_controller.job_source import JobSource, RepositoryJobSource
from ci_controller.lease import Lease, Superseded
from ci_controller.observed_state import Look, Observed, ghosts, look, observe
from ci_controller.operations import Operation
from ci_controller.planner import plan, stands_on_an_older_look
from ci_controller.policy import DEFAULTS, RECONCILE_INTERVAL, Policy
from ci_controller.quiet_logs import QuietLogs
from ci_controller.stopwatch import JumpMeter
from ci_controller.succession import Succession

log = structlog.get_logger(__name__)

_HOUSEKEEPING_INTERVAL: Final = 30.0
_PRUNE_INTERVAL: Final = 3600.0
_TIDY_INTERVAL: Final = 600.0
_HEARTBEAT_RETRY: Final = 1.0
_CLOSING_GRACE: Final = 2.0  # for what is in flight when we are told to end
_GOODBYE: Final = "the controller was stopped: start ci-controller"
_ENGINE_DOWN: Final = "docker engine does not answer: start it, or let `ci-admin doctor` say what is wrong"


class Runner:
    """Makes Docker do what its job source says.

    `reconcile_once()` is one pass, `take_hint()` a part of one; `run()` makes them until `stop()` is called or somebody
    takes over. `enlist` returns the source once it is ours and whoever was before us cannot write any more.
    """

    def __init__(
        self,
        enlist: Callable[[], Awaitable[JobSource]],
        container_manager: ContainerRuntime,
        reconcile_interval: float = RECONCILE_INTERVAL,
        *,
        changes: ChangeHub,
        policy: Policy | None = None,
        clock: Clock | None = None,
        places: Mapping[str, Path] | None = None,
        reserve: Reserve | None = None,
    ) -> None:
        self._enlist = enlist
        self._runtime = container_manager
        self._interval = reconcile_interval
        self._changes = changes
        self._policy = policy or DEFAULTS
        self._clock = clock or SystemClock()
        self._places = places or {}  # what is on which disk, beside the engine's
        self._reserve = reserve
        self._jumps = JumpMeter(self._clock)
        self._changed = asyncio.Event()  # something on the engine, or there is no telling: a pass is due
        self._hinted = asyncio.Event()  # a row changed, or a container said its last word
        self._seen: Look | None = None
        self._planning = asyncio.Lock()  # one plan at a time: each knows what those before it began
        self._beat_now = asyncio.Event()
        self._house_now = asyncio.Event()
        self._over = asyncio.Event()
        self._taken_over = False
        self._note: str | None = None

    # -- life ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """The jobs are ours: whoever was before us cannot write any more. Nothing runs yet."""
        self._asking()
        self._jobs = await self._enlist()
        self._lease = Lease(self._clock, self._jobs.lease.total_seconds())
        self._lease.renewed(self._asked_at)
        self._executor = Executor(
            self._jobs,
            self._runtime,
            self._policy,
            self._clock,
            self._lease,
            changed=self._changed.set,
            wake=self._hinted.set,
            doubt=self._beat_now.set,
        )
        self._disks = DiskWatch(
            self._runtime,
            self._jobs.instance_id,
            self._policy,
            self._places,
            self._disks_changed,
            self._reserve,
        )
        log.info("serving", epoch=self._jobs.epoch, instance=self._jobs.instance_id)

    def _asking(self) -> None:
        """What is asked for now counts from now, if it is granted."""
        self._asked_at = self._clock.monotonic()

    async def run(self) -> None:
        """Passes are made until `stop()`; raises ControllerRunning when somebody took over."""
        if not await self._was_started():
            return
        with ExitStack() as watching:
            tasks = [asyncio.create_task(work()) for work in self._works(watching)]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                try:
                    await _end(tasks)
                finally:
                    await self.close()
        await self._say_goodbye()
        if self._taken_over:
            raise ControllerRunning("Another controller took over; this one has stopped.")

    async def _was_started(self) -> bool:
        """As `start`, which may wait for long; False: `stop()` was called meanwhile, and nothing is ours."""
        start, over = asyncio.create_task(self.start()), asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait((start, over), return_when=asyncio.FIRST_COMPLETED)
            has_started = start.done()
        finally:
            await _end([start, over])
        return has_started

    def _works(self, watching: ExitStack) -> Sequence[Callable[[], Coroutine[Any, Any, object]]]:
        """Return what is done side by side until one of it ends; the engine is watched meanwhile."""
        loop = asyncio.get_running_loop()

        def changed() -> None:
            loop.call_soon_threadsafe(self._changed.set)

        watching.enter_context(self._runtime.watch(self._jobs.instance_id, changed))
        return (
            *self._duties(),
            self._make_passes,
            self._take_hints,
            self._follow_database,
            self._disks.run,
        )

    def _duties(self) -> Sequence[Callable[[], Coroutine[Any, Any, object]]]:
        """Return what has to be done whether or not jobs run here."""
        return (
            self._over.wait,
            self._heartbeats,
            partial(_every, _HOUSEKEEPING_INTERVAL, self.keep_house, self._house_now),
            partial(_every, _PRUNE_INTERVAL, self.prune),
        )

    async def _say_goodbye(self) -> None:
        """Whoever waits need not find out by our silence; our successor's first heartbeat takes the word back."""
        self._note = "it was stopped: start ci-agent"
        if not self._taken_over:
            await self.beat()

    def stop(self) -> None:
        """`run()` returns soon; containers run on, and the next controller adopts them."""
        self._over.set()

    async def close(self, grace: float = _CLOSING_GRACE) -> None:
        """Nothing of ours is in flight any more; containers run on."""
        await self._executor.close(0 if self._taken_over else grace)

    # -- one pass ------------------------------------------------------------------------------------------

    async def reconcile_once(self) -> list[Operation]:
        """What is was compared with what should be, and what follows has begun; returns the operations.

        Raises EngineUnavailable, Superseded or the database's error without having done anything.
        """
        seen = await self._look()
        async with self._planning:
            observed, operations = await self._plan(seen)
            self._executor.waiting.tend(observed, operations, self._clock.now())
            self._look_at_network(observed.network)
            self._say(self._what_is_missing(observed))
            await self._executor.execute(operations)
        return operations

    async def take_hint(self) -> list[Operation]:
        """What follows from the rows and from last words has begun, on what was last seen of the engine; returns it.

        For everything else, or where that look is too old, a pass is due. Raises as `reconcile_once` does.
        """
        seen = self._seen
        if seen is None or self._clock.monotonic() - seen.at >= self._interval:
            self._changed.set()
            return []
        async with self._planning:
            _, operations = await self._plan(seen)
            sure = [one for one in operations if stands_on_an_older_look(one)]
            await self._executor.execute(sure)
        if len(sure) < len(operations):
            self._changed.set()
        return sure

    async def _look(self) -> Look:
        runtime, instance, image = self._runtime, self._jobs.instance_id, self._policy.runner_image
        try:
            self._seen = await look(runtime, instance, image, self._clock.monotonic(), self._executor.ended)
        except EngineUnavailable:
            self._seen = None
            raise
        return self._seen

    async def _plan(self, seen: Look) -> tuple[Observed, list[Operation]]:
        """Return what is, and what to do about it."""
        disks, now = self._disks, self._clock.now()
        work = self._executor.work(seen.ended)
        work = replace(work, over_disk=disks.over_disk, low_disk=disks.low_disk)
        observed = await observe(self._jobs, seen, work, self._executor.ours, now)
        self._executor.keep_to(observed.attempts)
        return observed, plan(observed, now, self._policy)

    async def idle(self, seconds: float | None = None) -> bool:
        """Return True once no operation is in flight, False if that takes longer."""
        return await self._executor.idle(seconds)

    def _look_at_network(self, network: NetworkState) -> None:
        if network.broken:
            log.warning("the fence around the jobs' network was set again", broken=network.broken)
            self._changed.set()  # nothing is claimed before it was found whole

    def _what_is_missing(self, observed: Observed) -> str | None:
        return (
            "; ".join(said for said in (self._why_nothing_starts(observed), _haunted(observed)) if said)
            or None
        )

    def _why_nothing_starts(self, observed: Observed) -> str | None:
        if observed.image_id is None:
            image = self._policy.runner_image
            return f"runner image {image} is missing: run `make runner-image` or set CI_RUNNER_IMAGE"
        if observed.network.trouble:
            return observed.network.trouble
        trouble = observed.work.trouble
        return trouble.detail if trouble else observed.work.low_disk

    def _say(self, note: str | None) -> None:
        """The note is what `/ready` and waiting clients read; a new one travels with a heartbeat at once."""
        if note != self._note:
            self._note = note
            log.warning("not well", why=note) if note else log.info("all is well again")
            self._beat_now.set()

    # -- the loops around it -------------------------------------------------------------------------------

    async def _make_passes(self) -> None:
        while True:
            self._changed.clear()  # before looking: a change that comes meanwhile is worth another look
            if await self.make_pass():
                await _set_within(self._changed, min(self._interval, self._executor.next_retry or math.inf))
            else:
                await asyncio.sleep(self._interval)  # one probe at a time, whatever the hints say

    async def _take_hints(self) -> None:
        while True:
            await self._hinted.wait()
            self._hinted.clear()
            await self.make_pass(self.take_hint)

    async def make_pass(self, work: Callable[[], Awaitable[object]] | None = None) -> bool:
        """Make one pass, or that part of one; whatever goes wrong with it ends here, and the next one starts afresh."""
        try:
            await (work or self.reconcile_once)()
        except EngineUnavailable as error:
            self._executor.engine_is_away()
            self._say(_ENGINE_DOWN)
            log.debug("engine unavailable", error=error.detail)
        except Superseded as error:
            log.warning("pass refused", error=str(error))
            self._beat_now.set()
        except CIError as error:
            log.warning("pass failed", code=error.code, error=error.detail)
        except Exception:
            log.exception("pass failed: a programming error")
        else:
            return True
        return False

    async def _heartbeats(self) -> None:
        while (renewed := await self.beat()) is not False:
            patience = self._lease.heartbeat_interval
            await _set_within(self._beat_now, patience if renewed else min(_HEARTBEAT_RETRY, patience))
            self._beat_now.clear()
        self._taken_over = True
        self._over.set()

    async def beat(self) -> bool | None:
        """Renew the lease; False: somebody took over. None: it failed, which proves nothing."""
        asked_at = self._clock.monotonic()
        try:
            renewed = await self._jobs.heartbeat(self._note, self._clock.now())
        except CIError as error:
            log.warning("heartbeat failed", code=error.code, error=error.detail)
            return None
        except Exception:
            log.exception("heartbeat failed: a programming error")
            return None
        if renewed:
            self._lease.renewed(asked_at)
        return renewed

    async def _follow_database(self) -> None:
        with self._changes.database() as changes:
            while True:
                if await changes.wait(60.0):
                    self._hinted.set()

    def _disks_changed(self) -> None:
        self._changed.set()
        if self._disks.low_disk:
            self._house_now.set()  # what is kept for later goes at once, so that the pause may be short

    async def keep_house(self) -> None:
        for job_id in await self._jobs.keep_house(self._clock.now(), self._jumps.ahead()):
            log.info("expired in the queue", job=job_id)
        if self._disks.low_disk:
            await self.prune(under_pressure=True)

    async def prune(self, *, under_pressure: bool = False) -> None:
        """What is not to be kept is gone; `under_pressure`, of archives of ended jobs all but the minimum, and of
        environments all but those that jobs run in, if it is the engine's disk.

        It may be called at any time, beside the hourly turn.
        """
        await self._prune_store(under_pressure=under_pressure)
        await self._prune_images(under_pressure=under_pressure)

    async def _prune_store(self, *, under_pressure: bool) -> None:
        gone = await self._jobs.prune(self._clock.now(), under_pressure=under_pressure)
        for one in gone:
            log.info("pruned", kind=one.kind, name=one.name, bytes=one.size, why=one.why)

    async def _prune_images(self, *, under_pressure: bool) -> None:
        is_low = under_pressure and self._disks.engine_is_low
        for image in await self._executor.prune_images(under_pressure=is_low):
            log.info("pruned", kind="environment", name=image.image.reference, why=image.why)


class JobController(Runner):
    """The one process that serves a database: it makes Docker do what that says, and is the control plane."""

    def __init__(
        self,
        repository: JobRepository,
        container_manager: ContainerRuntime,
        reconcile_interval: float = RECONCILE_INTERVAL,
        *,
        logs: LogStore,
        archives: ArchiveStore,
        changes: ChangeHub,
        policy: Policy | None = None,
        clock: Clock | None = None,
        holder: str | None = None,
        places: Mapping[str, Path] | None = None,
        reserve: Reserve | None = None,
        agent_lease: timedelta = AGENT_LEASE,
        local_runner: bool = True,
        succession: Succession | None = None,
    ) -> None:
        super().__init__(
            self._take_over,
            container_manager,
            reconcile_interval,
            changes=changes,
            policy=policy,
            clock=clock,
            places=places,
            reserve=reserve,
        )
        self._repository = repository
        self._logs = logs
        self._archives = archives
        self._quiet_logs = QuietLogs(repository, logs)
        self._holder = holder or f"{socket.gethostname()}:{os.getpid()}"
        self._local_runner = local_runner
        self._agents = AgentLeases(agent_lease.total_seconds())
        self._succession = succession  # None: whoever was before us was seen to

    async def _take_over(self) -> JobSource:
        lease = await self._gain()
        crash_point("after_take_over")
        self._control = lease
        return RepositoryJobSource(
            self._repository,
            self._logs,
            self._archives,
            lease,
            await self._repository.instance_id(),
            max_attempts=self._policy.max_attempts,
            queue_timeout=self._policy.queue_timeout,
            retention=self._policy.retention,
        )

    async def _gain(self) -> ControllerLease:
        if self._succession is None:
            return await self._repository.take_over(
                self._holder, self._clock.now(), runs_jobs=self._local_runner
            )
        return await self._succession.gain(self._holder, self._asking)

    async def _say_goodbye(self) -> None:
        """Who waits for our end takes over at once, whoever runs us again just as well."""
        if self._taken_over:
            return
        try:
            await self._repository.release(self._control, _GOODBYE, self._clock.now())
        except CIError as error:  # they find out by our silence
            log.warning("the lease was not released", code=error.code, error=error.detail)
        except Exception:
            log.exception("the lease was not released: a programming error")

    def _works(self, watching: ExitStack) -> Sequence[Callable[[], Coroutine[Any, Any, object]]]:
        if not self._local_runner:
            give_back = partial(_every, _HOUSEKEEPING_INTERVAL, self.give_back)
            return (*self._duties(), give_back, self._disks.run_without_jobs)
        return super()._works(watching)

    def _duties(self) -> Sequence[Callable[[], Coroutine[Any, Any, object]]]:
        return (
            *super()._duties(),
            partial(_every, self._agents.seconds / LOOKS, self.expire_agents),
            partial(_every, _TIDY_INTERVAL, self.put_logs_away),
            partial(_every, _TIDY_INTERVAL, self.trim_copies),
        )

    async def put_logs_away(self) -> None:
        """The logs of jobs that ended a while ago are compressed, whoever wrote them."""
        if count := await self._quiet_logs.put_away(self._clock.now()):
            log.info("logs put away", count=count)

    async def trim_copies(self) -> None:
        """Of uploads that are kept elsewhere no more copies are here than there may be."""
        if count := await asyncio.to_thread(self._archives.trim):
            log.info("copies removed", count=count)

    async def expire_agents(self) -> None:
        """What agents hold that were not heard of for their lease is queued again."""
        agents = await self._repository.list_agents()
        for agent in self._agents.lost(agents, self._clock.monotonic()):
            attempts, now = self._policy.max_attempts, self._clock.now()
            for job_id in await self._repository.expire_agent(self._control, agent, attempts, now):
                log.warning("agent lost", agent=agent.profile.name, job=job_id)

    def _disks_changed(self) -> None:
        super()._disks_changed()
        if not self._local_runner:
            self._say(self._disks.low_without_jobs)  # no pass does it

    async def give_back(self) -> None:
        """What was run here before is queued again, if the database lets us, and then its containers are gone, if there
        is an engine: nobody looks after them any more."""
        if await self.make_pass(self._release_held):
            await self._remove_left()

    async def _release_held(self) -> None:
        for attempt in await self._jobs.held():
            said, now = "The controller runs no jobs any more.", self._clock.now()
            await self._jobs.release(attempt.fence, Reason.INFRA, said, None, None, now)

    async def _remove_left(self) -> None:
        """Like an orphan, a container has its grace: somebody else's database may have come back in a copy."""
        latest = self._clock.now() - self._policy.orphan_grace
        try:
            for container in await self._runtime.list(self._jobs.instance_id):
                if container.created_at <= latest:
                    await self._remove(container.id)
        except EngineUnavailable as error:  # nor need there be one
            log.debug("no engine to clear", error=error.detail)
        except Superseded as error:
            log.warning("containers of a former runner are left", error=str(error))

    async def _remove(self, container_id: str) -> None:
        """It is gone, or the log says why it is not: what cannot be removed keeps none of the others."""
        self._lease.require()
        try:
            await self._runtime.remove(container_id)
            log.warning("removed: no jobs run here any more", container=container_id[:12])
        except (ContainerError, ContainerGone) as error:
            log.warning(
                "a container of a former runner is left", container=container_id[:12], error=str(error)
            )

    async def prune(self, *, under_pressure: bool = False) -> None:
        await self._prune_store(under_pressure=under_pressure)
        if self._local_runner:
            await self._prune_images(under_pressure=under_pressure)


def _haunted(observed: Observed) -> str | None:
    """Return what the operator is told of containers that survive everything; by id, for names tell of jobs."""
    if not (ids := ghosts(observed)):
        return None
    return (
        f"the docker engine can neither kill nor remove {', '.join(one[:12] for one in ids)}, and each keeps "
        "a slot: restart the engine or the host if it lasts"
    )


async def _every(
    seconds: float, work: Callable[[], Awaitable[None]], now: asyncio.Event | None = None
) -> None:
    """The work is done at once and again and again, sooner where `now` is set; what goes wrong with one turn ends
    with it."""
    sooner = now or asyncio.Event()
    while True:
        sooner.clear()
        try:
            await work()
        except (CIError, OSError) as error:
            log.warning("housekeeping failed", error=str(error))
        except Exception:
            log.exception("housekeeping failed: a programming error")
        await _set_within(sooner, seconds)


async def _end(tasks: Sequence[asyncio.Task[object]]) -> None:
    """The tasks are over; raises what one of them died of."""
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """The event is set, or that many seconds have passed."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
