"""Row 35: a container that survives SIGKILL and cannot be removed, on a fake engine: no real one does it on request."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ci_common.job_terms import JobStatus, Reason
from ci_controller.container_runtime import ContainerError
from tests.support.controlled import ControlledSystem, a_run, controlled_system, eventually
from tests.support.fake_runtime import FakeContainerRuntime

IMPATIENT = {
    "interrupt_grace": timedelta(seconds=0.04),
    "terminate_grace": timedelta(seconds=0.01),
    "slack": timedelta(seconds=0.05),
    "stuck_after": timedelta(seconds=0.05),
}


class Haunted:
    """An engine whose containers take no signal and do not go away, until it is exorcised."""

    def __init__(self, real: FakeContainerRuntime) -> None:
        self._real = real
        self.exorcised = False
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def signal(self, container_id: str, signal: str) -> None:
        """The engine says it did so."""

    async def remove(self, container_id: str) -> None:
        if not self.exorcised:
            self.refused += 1
            raise ContainerError("tried to kill container, but did not receive an exit event")
        await self._real.remove(container_id)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[ControlledSystem]:
    async with controlled_system(tmp_path, a_run()) as opened:
        yield opened


async def test_fault_35_a_ghost_keeps_its_slot_and_nothing_else(system: ControlledSystem) -> None:
    """Its job ends as was decided, others run beside it, the operator is told which container it is; removing it is
    tried again, less and less often."""
    engine = Haunted(system.runtime)
    policy = replace(system.policy, **IMPATIENT)
    assert policy.max_running_jobs == 2
    async with system.running(interval=0.05, policy=policy, runtime=engine):
        system.runtime.script = a_run(threading.Event())
        ghost = await system.submit()
        await system.printed(ghost)
        await system.cancel(ghost)
        await eventually(lambda: is_terminal(system, ghost))
        job = await system.job(ghost)
        assert (job.status, job.reason) == (JobStatus.CANCELLED, Reason.CANCELLED)

        haunting = threading.Event()
        system.runtime.script = a_run(haunting)
        others = [await system.submit() for _ in range(2)]
        await system.printed(others[0])
        for _ in range(3):
            refused = engine.refused
            await eventually(lambda: has_tried_again(engine, refused))  # noqa: B023
            assert (await system.job(others[1])).status is JobStatus.QUEUED, (
                "the ghost's slot is not given away"
            )
            await eventually(lambda: named(system, ghost))
        engine.exorcised = True
        await system.printed(others[1])
        haunting.set()
        for job_id in others:
            assert (await system.finished(job_id)).success
        await system.noted(None)
    assert await system.verdicts(ghost) == ["cancelled"]


async def is_terminal(system: ControlledSystem, job_id: str) -> bool:
    return (await system.job(job_id)).status.is_terminal


async def named(system: ControlledSystem, job_id: str) -> bool:
    """Tell whether the controller's note, which `/ready` shows, names the container of that job, and nobody's job."""
    (container,) = [one.id for name, one in system.runtime.containers.items() if job_id in name]
    state = await system.repository.controller_state()
    note = state.note if state else None
    return note is not None and container[:12] in note and "docker engine" in note and job_id not in note


async def has_tried_again(engine: Haunted, refused: int) -> bool:
    await asyncio.sleep(0)
    return engine.refused > refused
