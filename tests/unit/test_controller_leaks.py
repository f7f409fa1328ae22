"""Row 69: a controller that has run many jobs holds no more than one that has run a few."""

import asyncio
import gc
import logging
import sys
import threading
import tracemalloc
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from ci_common.clock import SystemClock
from ci_common.errors import DatabaseBusy, JobFinished
from ci_common.repository import JobRepository
from ci_controller.controller import JobController
from ci_controller.operations import AttemptKey
from tests.support.controlled import ControlledSystem, Held, a_run, controlled_system, eventually
from tests.support.in_memory import home
from tests.support.soak import SOAKING

__all__ = ["home"]

JOBS = 10_000 if SOAKING else 100  # in the measured stretch
WARM_UP = 1_000 if SOAKING else 40  # until every list of so many of the last is full
LEAST_LEAK = 40  # bytes for each job, that something kept of it would take at least
LARGE_TABLE = 512 * 1024  # bytes; a dictionary of so many strings as a Python with pytest has is larger
POOLS = ("asyncio_", "fake-engine_")
WINDOWS = timedelta(hours=1)  # longer than anything is remembered for a time
AT_ONCE = 10
pytestmark = pytest.mark.timeout(3600 if SOAKING else 120)


@dataclass(frozen=True)
class Holdings:
    """What this process holds at a quiet moment."""

    fds: int
    threads: int  # but for pools of them, which fill up to their bound as chance has it
    tasks: int
    traced: int  # bytes that Python code allocated and still holds


class AheadClock(SystemClock):
    """The machine's clocks, put forward by what the test says."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead.total_seconds()


@dataclass
class Running:
    """A controller that runs, and its clock."""

    system: ControlledSystem
    clock: AheadClock
    controller: JobController

    async def let_time_pass(self) -> None:
        """Nothing is in flight, and what is remembered for a while was forgotten.

        How much that is follows from how many jobs end in two minutes: it says nothing about a leak.
        """
        await eventually(self.controller.idle)
        self.clock.ahead += WINDOWS
        assert await self.controller.beat()
        await eventually(self.controller.make_pass)
        self.system.runtime.calls.clear()
        gc.collect()


async def held(running: Running) -> Holdings:
    """Return it after what the test itself keeps of every job was let go."""
    await running.let_time_pass()
    return Holdings(
        len(list(Path("/proc/self/fd").iterdir())),
        sum(not thread.name.startswith(POOLS) for thread in threading.enumerate()),
        len(asyncio.all_tasks()),
        tracemalloc.get_traced_memory()[0],
    )


@pytest.fixture(autouse=True)
def _quiet() -> Generator[None]:
    """What ten thousand jobs have to say is not collected in this process."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.configure(**before)


@pytest.fixture
async def system(home: Path) -> AsyncGenerator[ControlledSystem]:
    async with controlled_system(home, a_run()) as made:
        made.policy = replace(made.policy, max_running_jobs=AT_ONCE)
        yield made


@pytest.fixture
async def running(system: ControlledSystem) -> AsyncGenerator[Running]:
    clock = AheadClock()
    async with system.running(clock=clock) as controller:
        yield Running(system, clock, controller)


def make_interned_strings_anew() -> None:
    """The interpreter's table of interned strings was made while memory is traced, so that it counts from the start.

    Each part of each path is interned (by pathlib) and goes again; when the table is used up, by whatever ran in this
    process before, it is made anew, which is one block of megabytes however many jobs there were.
    """
    before = tracemalloc.get_traced_memory()[0]
    for number in range(1_000_000):
        sys.intern(f"the name of nothing {number}")
        if tracemalloc.get_traced_memory()[0] - before > LARGE_TABLE:
            return


async def run_jobs(system: ControlledSystem, count: int) -> None:
    """So many jobs passed; a few at a time, a fifth of them cancelled on the way."""
    for begin in range(0, count, AT_ONCE):
        ids = [await system.submit() for _ in range(min(AT_ONCE, count - begin))]
        for job_id in ids[::5]:
            with suppress(JobFinished):
                await system.cancel(job_id)
        for job_id in ids:
            assert (await system.finished(job_id, seconds=60)).status.is_terminal


async def test_fault_69_nothing_grows_with_the_number_of_jobs(running: Running) -> None:
    """Descriptors, threads, tasks and memory; traced, for the resident size of a test process is too noisy."""
    tracemalloc.start()
    try:
        make_interned_strings_anew()
        await run_jobs(running.system, WARM_UP)
        before = await held(running)
        await run_jobs(running.system, JOBS)
        after = await held(running)
    finally:
        tracemalloc.stop()
    assert abs(after.fds - before.fds) <= 2, (before, after)
    assert abs(after.threads - before.threads) <= 2, (before, after)
    assert abs(after.tasks - before.tasks) <= 2, (before, after)
    assert after.traced - before.traced <= max(128 * 1024, LEAST_LEAK * JOBS), (before, after)


# -- what ends in unusual ways -----------------------------------------------------------------------------


def remembered(job_id: str) -> list[AttemptKey]:
    """Return what in this process still knows of an attempt of that job."""
    return [one for one in gc.get_objects() if isinstance(one, AttemptKey) and one.job_id == job_id]


async def test_a_signal_that_is_sent_as_its_attempt_ends_is_not_remembered(system: ControlledSystem) -> None:
    engine, gate, clock = Held(system.runtime, "signal"), threading.Event(), AheadClock()
    system.runtime.script = a_run(gate)
    async with system.running(runtime=engine, clock=clock) as controller:
        job_id = await system.submit()
        await system.printed(job_id)
        await system.cancel(job_id)
        await engine.reached.wait()
        gate.set()
        await system.finished(job_id)
        engine.go_on.set()
        await Running(system, clock, controller).let_time_pass()
        assert not remembered(job_id)


class LosesReply:
    """Stands in front of a repository whose first answer of that name gets lost, as with a connection that breaks."""

    def __init__(self, real: JobRepository, name: str) -> None:
        self._real = real
        self._name = name

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name != self._name:
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._name = ""
            await method(*args, **kwargs)
            raise DatabaseBusy("the reply was lost")

        return call


@pytest.mark.parametrize("exit_code", [0, 1])
async def test_an_end_that_was_recorded_without_our_hearing_so_is_not_remembered(
    system: ControlledSystem, exit_code: int
) -> None:
    """A success is recorded before its output is left: its log would stay open for ever."""
    clock = AheadClock()
    system.runtime.script = a_run(exit_code=exit_code)
    repository = LosesReply(system.repository, "finish_attempt")
    async with system.running(repository=repository, clock=clock) as controller:
        job_id = await system.submit()
        await system.finished(job_id)
        await Running(system, clock, controller).let_time_pass()
        assert not remembered(job_id)
