"""Row 69: a controller that has run many jobs holds no more than one that has run a few."""

import asyncio
import gc
import logging
import os
import threading
import tracemalloc
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import structlog

from ci_common.errors import JobFinished
from tests.support.controlled import ControlledSystem, a_run, controlled_system
from tests.support.in_memory import home

__all__ = ["home"]

SOAKING = os.environ.get("CI_SOAK") == "1"
JOBS = 10_000 if SOAKING else 100  # in the measured stretch
# Until every pool of threads is full, and what is remembered of the last two minutes is there.
WARM_UP = 3_000 if SOAKING else 40
LEAST_LEAK = 100  # bytes for each job, that something kept of it would take at least
AT_ONCE = 10
pytestmark = pytest.mark.timeout(3600 if SOAKING else 120)


@dataclass(frozen=True)
class Held:
    """What this process holds at a quiet moment."""

    fds: int
    threads: int
    tasks: int
    traced: int  # bytes that Python code allocated and still holds


def held(system: ControlledSystem) -> Held:
    """Return it after what the test itself keeps of every job was let go."""
    system.runtime.calls.clear()
    gc.collect()
    return Held(
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
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


async def run_jobs(system: ControlledSystem, count: int) -> None:
    """So many jobs passed; a few at a time, a fifth of them cancelled on the way."""
    for begin in range(0, count, AT_ONCE):
        ids = [await system.submit() for _ in range(min(AT_ONCE, count - begin))]
        for job_id in ids[::5]:
            with suppress(JobFinished):
                await system.cancel(job_id)
        for job_id in ids:
            assert (await system.finished(job_id, seconds=60)).status.is_terminal


async def test_fault_69_nothing_grows_with_the_number_of_jobs(system: ControlledSystem) -> None:
    """Descriptors, threads, tasks and memory; traced, for the resident size of a test process is too noisy."""
    async with system.running():
        tracemalloc.start()
        try:
            await run_jobs(system, WARM_UP)
            before = held(system)
            await run_jobs(system, JOBS)
            after = held(system)
        finally:
            tracemalloc.stop()
    assert abs(after.fds - before.fds) <= 2, (before, after)
    assert abs(after.threads - before.threads) <= 2, (before, after)
    assert abs(after.tasks - before.tasks) <= 2, (before, after)
    assert after.traced - before.traced <= max(256 * 1024, LEAST_LEAK * JOBS), (before, after)
