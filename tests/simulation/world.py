"""A whole installation that moves in seeded steps: users, controllers, the engine, the clock, a real SQLite file.

The choices are a function of the seed. After each step nothing is in flight but what a slow call holds up;
inside a step the threads of pumps and of SQLite run as the machine lets them.
"""

import asyncio
import random
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from ci_common.crash_points import CRASH_POINTS, CrashPoint, told_of_crash_points
from ci_common.errors import JobFinished, QueueFull, TooManyRequests, Unauthorized
from ci_common.models import Idempotency, Job, QueueLimits, User
from ci_common.settings import StorageSettings
from ci_controller import labels
from ci_controller.controller import JobController
from ci_controller.policy import Policy
from ci_persistence.factory import open_stores
from ci_persistence.sqlite_connection import connect
from ci_persistence.sqlite_repository import SQLiteJobRepository
from tests.simulation.behaviour import Kind, script_of
from tests.simulation.engine import SimulatedEngine
from tests.simulation.faults import Faults
from tests.support.controlled import ControlledSystem, Life, ProcessDied, mortal
from tests.support.database import new_database
from tests.support.fake_runtime import FakeContainer

USERS: Final = ("ada", "grace", "edsger")
_WEIGHTS: Final = {
    "submit": 6,
    "submit_again": 1,
    "cancel": 1.5,
    "deactivate": 0.05,
    "make_pass": 10,
    "take_hints": 6,
    "answer_events": 8,
    "advance": 14,
    "tick": 6,
    "beat": 3,
    "logs_catch_up": 4,
    "release_slow_calls": 5,
    "start_controller": 1.5,
    "kill_controller": 0.7,
    "vanish": 0.5,
    "engine_goes_down": 0.3,
    "engine_comes_up": 2,
    "engine_restarts": 0.2,
    "keep_house": 0.5,
    "jump": 0.2,
}
_BUSINESS: Final = (
    "release_slow_calls",
    "beat",
    "make_pass",
    "advance",
    "advance",
    "logs_catch_up",
    "keep_house",
)
_DEATHS: Final = (*CRASH_POINTS, "write", "end of feed", "create", "signal", "remove", "seal", "mark_started")
_life: ContextVar[Life | None] = ContextVar("life", default=None)


class WorldClock:
    """Time as the world wants it; the wall clock may jump, the monotonic one goes on."""

    def __init__(self) -> None:
        self._wall = datetime(2026, 3, 1, 12, tzinfo=UTC)
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._wall += timedelta(seconds=seconds)
        self._monotonic += seconds

    def jump(self, by: timedelta) -> None:
        self._wall += by


@dataclass(slots=True)
class Process:
    """A controller that lives or is about to die."""

    controller: JobController
    life: Life
    events: deque[None] = field(default_factory=lambda: deque[None](maxlen=4))  # heard, not answered yet
    listening: ExitStack = field(default_factory=ExitStack)  # to the engine


@dataclass(frozen=True, slots=True)
class Removal:
    """What was recorded of a container when its removal was asked for."""

    container_id: str
    name: str
    row: sqlite3.Row | None  # of the attempt that has it


@dataclass
class World:
    """Everything there is; what happened is in `story`, one line per step."""

    seed: int
    clock: WorldClock
    faults: Faults
    engine: SimulatedEngine
    system: ControlledSystem
    database: Path
    rng: random.Random
    kinds: dict[str, Kind]
    users: dict[str, User]
    limits: QueueLimits = field(default_factory=lambda: QueueLimits(per_user=3, total=7))
    pass_seconds: float = 10  # of real time, in which a pass must end
    story: list[str] = field(default_factory=list[str])
    processes: list[Process] = field(default_factory=list[Process])
    submitted: dict[str, Job] = field(default_factory=dict[str, Job])  # acknowledged, as they were
    cancelled: set[str] = field(default_factory=set[str])  # a cancel was asked for
    finals: dict[str, Job] = field(default_factory=dict[str, Job])  # terminal, as they were first seen
    jumped: bool = False
    removed: list[Removal] = field(default_factory=list["Removal"])  # on request, ever
    archive: str = ""
    steps: int = 0  # of its life before it recovers

    # -- users -------------------------------------------------------------------------------------------

    async def submit(self, kind: Kind | None = None) -> None:
        """One more job is queued."""
        number = len(self.kinds)
        job_id = f"job{number}"
        self.kinds[job_id] = kind or self.rng.choices(list(Kind), weights=(6, 2, 1, 1, 0.5))[0]
        owner = self.users[self.rng.choice(USERS)]
        job = Job(job_id, owner.id, self.clock.now(), self.archive)
        await self._submit(job)

    async def _submit(self, job: Job) -> None:
        try:
            created = await self.system.repository.create_job(job, Idempotency(job.id, "same"), self.limits)
        except (Unauthorized, TooManyRequests, QueueFull):
            return
        self._tell_of_commit()
        assert created.id == job.id
        self.submitted.setdefault(job.id, created)

    async def submit_again(self) -> None:
        """Somebody who got no answer says the same again; it is the same job."""
        if self.submitted:
            await self._submit(self.submitted[self.rng.choice(sorted(self.submitted))])

    async def cancel(self) -> None:
        """Some job is to be cancelled."""
        if not self.submitted:
            return
        job = self.submitted[self.rng.choice(sorted(self.submitted))]
        try:
            await self.system.repository.request_cancel(job.id, job.user_id, "somebody", self.clock.now())
        except JobFinished:
            return
        self.cancelled.add(job.id)
        self._tell_of_commit()

    def _tell_of_commit(self) -> None:
        for process in self.processes:
            process.events.extend([None] * self.faults.copies("database"))

    async def deactivate(self) -> None:
        """An operator locks somebody out."""
        user = self.users[self.rng.choice(USERS)]
        self.cancelled |= {job.id for job in self.submitted.values() if job.user_id == user.id}
        await self.system.repository.set_user_active(user.id, active=False, now=self.clock.now())

    # -- controllers ---------------------------------------------------------------------------------------

    async def start_controller(self) -> None:
        """One more controller takes over; its predecessor, if it lives, has not heard of it."""
        if len(self.processes) > 1:
            return
        death = self.rng.choice(_DEATHS) if self.faults.on and self.rng.random() < 0.7 else "never"
        life = Life(death, self.rng.choice((1, 1, 2, 3)))
        _life.set(life)
        controller = self.system.controller(clock=self.clock, **mortal(self.system, life))
        try:
            await controller.start()
        except ProcessDied:
            return
        process = Process(controller, life)
        instance = await self.system.repository.instance_id()
        process.listening.enter_context(self.engine.watch(instance, partial(process.events.append, None)))
        self.processes.append(process)

    async def make_pass(self) -> None:
        """Each controller looks and acts, whether or not it still is the one."""
        for process in self._living():
            await self._pass_of(process)

    async def answer_events(self) -> None:
        """One pass per event, one right after the other: a lost one makes none, a doubled one two."""
        for process in self._living():
            for _ in range(len(process.events)):
                process.events.popleft()
                await self._pass_of(process)

    async def take_hints(self) -> None:
        """Each controller acts on what it saw last, sometimes beside a pass that looks anew."""
        for process in self._living():
            hint = partial(process.controller.make_pass, process.controller.take_hint)
            beside = (process.controller.make_pass,) if self.rng.random() < 0.5 else ()
            await self._pass_of(process, hint, *beside)

    async def _pass_of(self, process: Process, *passes: Callable[[], Awaitable[bool]]) -> None:
        _life.set(process.life)
        try:
            async with asyncio.timeout(self.pass_seconds):
                await asyncio.gather(*(one() for one in passes or (process.controller.make_pass,)))
        except TimeoutError:
            raise AssertionError("I9: a pass takes for ever") from None

    async def beat(self) -> None:
        """Controllers renew their lease; who finds that somebody took over ends."""
        for process in self._living():
            _life.set(process.life)
            if await process.controller.beat() is False:
                await self._bury(process)

    async def keep_house(self) -> None:
        """Jobs that waited too long are failed."""
        for process in self._living():
            _life.set(process.life)
            try:
                await process.controller.keep_house()
            except ProcessDied:
                continue

    async def kill_controller(self) -> None:
        """One is gone as by `kill -9`."""
        if self.processes:
            process = self.rng.choice(self.processes)
            process.life.died.set()
            await self._bury(process)

    def _living(self) -> list[Process]:
        return list(self.processes)

    async def _bury(self, process: Process) -> None:
        process.life.died.set()
        process.listening.close()
        self.processes.remove(process)
        with suppress(ProcessDied):  # of what was in flight
            await process.controller.close(0)

    def note_removal(self, container: FakeContainer) -> None:
        """At that moment, not after the step: by then the rest of the work may have been done."""
        with closing(connect(self.database, busy_timeout_ms=5000)) as db:
            query = "SELECT * FROM attempts WHERE container_id = ?"
            row = db.execute(query, (container.id,)).fetchone()
        self.removed.append(Removal(container.id, container.spec.name, row))

    # -- the engine and the clock --------------------------------------------------------------------------

    async def advance(self) -> None:
        """Some containers do a thing or two."""
        for container in self.engine.running():
            for _ in range(self.rng.randrange(4)):
                self.engine.advance(container)

    async def logs_catch_up(self) -> None:
        """Nothing that was printed is missing from the engine's logs any more."""
        for container in self.engine.containers.values():
            self.engine.catch_up(container)

    async def release_slow_calls(self) -> None:
        self.engine.release()

    async def vanish(self) -> None:
        """Somebody removes a container by hand."""
        if running := self.engine.running():
            self.engine.vanish(self.rng.choice(running).id)

    async def engine_goes_down(self) -> None:
        self.engine.down = True

    async def engine_comes_up(self) -> None:
        self.engine.down = False

    async def engine_restarts(self) -> None:
        self.engine.restart()
        self.engine.down = False

    async def tick(self) -> None:
        """Time passes, and whoever is well renews the lease meanwhile."""
        self.clock.advance(self.rng.choice((0.1, 0.3, 1.0, 2.0, 5.0)))

    async def jump(self) -> None:
        """The wall clock is set."""
        self.jumped = True
        self.clock.jump(self.rng.choice((-1, 1)) * self.rng.choice((timedelta(hours=1), timedelta(days=1))))

    # -- steps ---------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """One thing happens, and its consequences have come to rest."""
        await self.do(self.rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0])

    async def do(self, action: str) -> None:
        """That happens, and its consequences have come to rest."""
        self.story.append(action)
        happening: Callable[[], Awaitable[None]] = getattr(self, action)
        await happening()
        await self.come_to_rest()

    async def come_to_rest(self) -> None:
        """Nothing is in flight but what a slow call holds up; the dead are buried."""
        async with asyncio.timeout(30):
            while not self._rests():  # noqa: ASYNC110 - the threads of pumps know no event of ours
                await asyncio.sleep(0.0005)
        for process in [one for one in self.processes if one.life.died.is_set()]:
            await self._bury(process)

    def _rests(self) -> bool:
        pumps = sum(thread.name.startswith("pump-") for thread in threading.enumerate())
        return len(asyncio.all_tasks()) - 1 == self.engine.stalled and pumps == self.engine.waiting_readers

    async def live(self, steps: int, check: Callable[["World"], Awaitable[None]]) -> None:
        """So many steps are made, and after each everything that must hold was checked."""
        self.steps = steps
        for _ in range(steps):
            await self.step()
            await check(self)

    async def recover(self, check: Callable[["World"], Awaitable[None]]) -> None:
        """Faults are over, and a new controller does what is left to do."""
        self.faults.on = False
        await self.do("engine_comes_up")
        while self.processes:
            await self.do("kill_controller")
        await self.do("start_controller")
        await self.finish(check)

    async def finish(self, check: Callable[["World"], Awaitable[None]]) -> None:
        """Nothing is left to do; raises AssertionError when that takes more passes than the jobs explain."""
        for _ in range(60 + 12 * len(self.submitted)):
            if await self.is_over():
                return
            self.clock.advance(40)
            for action in _BUSINESS:
                await self.do(action)
            await check(self)
        raise AssertionError(f"not over: {sorted(self.engine.containers)}")

    async def is_over(self) -> bool:
        jobs = [await self.system.job(job_id) for job_id in self.submitted]
        left = {name for name in self.engine.containers if not self._may_wait(name)}
        return all(job.status.is_terminal for job in jobs) and not left

    def _may_wait(self, name: str) -> bool:
        """Tell whether the controller keeps that container for a job that may come."""
        kept = [one for one in self.engine.containers if labels.is_waiting_name("", one)]
        return name in kept and len(kept) <= self.system.policy.warm_containers


def _reached(name: CrashPoint) -> None:
    if life := _life.get():
        life.effect(name)


@asynccontextmanager
async def simulated(seed: int, path: Path, warm_containers: int = 0) -> AsyncGenerator[World]:
    """A world of that seed, below that directory, in which so many containers may wait for jobs."""
    clock, faults = WorldClock(), Faults(seed)
    database = new_database(path)
    kinds: dict[str, Kind] = {}
    engine = SimulatedEngine(lambda job_id: script_of(job_id, kinds[job_id]), faults, clock)
    settings = StorageSettings(db_path=database)
    users = {name: User(name, name, f"{name}@example.org", clock.now()) for name in USERS}
    repository = SQLiteJobRepository(database)
    policy = Policy(
        max_running_jobs=3,
        queue_timeout=timedelta(hours=24),
        output_patience=timedelta(milliseconds=50),  # real time: a container ends only when the world says so
        warm_containers=warm_containers,
    )
    system = ControlledSystem(repository, open_stores(settings), engine, users["ada"], policy)
    world = World(seed, clock, faults, engine, system, database, random.Random(seed), kinds, users)
    engine.before_removal = world.note_removal
    try:
        for user in users.values():
            await repository.create_user(user)
        world.archive = (await system.save_archive()).ref
        with told_of_crash_points(_reached):
            yield world
    finally:
        for process in tuple(world.processes):
            process.listening.close()
            await process.controller.close(0)
        await engine.close()
        await repository.close()
