"""Containers that wait ahead of need: taken, replaced, given up, and never anybody's twice."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ci_common.errors import EngineUnavailable
from ci_common.models import JobFilter
from ci_controller import labels
from ci_controller.container_runtime import ContainerState, ExitState, NetworkState
from tests.support.controlled import ControlledSystem, Faulty, a_run, controlled_system, eventually
from tests.support.fake_runtime import FakeContainer


@pytest.fixture
async def system(tmp_path: Path) -> AsyncGenerator[ControlledSystem]:
    async with controlled_system(tmp_path, a_run()) as made:
        made.policy = replace(made.policy, warm_containers=1)
        yield made


def waiting(system: ControlledSystem) -> list[FakeContainer]:
    return [one for name, one in system.runtime.containers.items() if labels.is_waiting_name("", name)]


async def one_waits(system: ControlledSystem) -> FakeContainer:
    async def found() -> FakeContainer | None:
        ready = [one for one in waiting(system) if one.fed and one.state is ContainerState.RUNNING]
        return ready[0] if ready else None

    return await eventually(found)


async def ran_in(system: ControlledSystem, container: FakeContainer) -> str | None:
    """Return the job that ended in that container."""
    found = await system.repository.ended_attempts([container.id])
    return found[container.id][0] if container.id in found else None


async def a_job(system: ControlledSystem) -> str:
    """A job ran to its end; returns its id."""
    job_id = await system.submit()
    job = await system.finished(job_id)
    assert (job.success, job.attempt) == (True, 1), job
    return job_id


async def test_the_next_job_is_assigned_a_container_that_waited_and_another_one_takes_its_place(
    system: ControlledSystem,
) -> None:
    async with system.running():
        await a_job(system)
        first = await one_waits(system)
        second_job = await a_job(system)
        assert await ran_in(system, first) == second_job
        second = await one_waits(system)
        assert second.id != first.id
        assert await ran_in(system, second) is None
        assert len((await system.repository.list_jobs(JobFilter())).jobs) == 2


async def test_without_a_number_nothing_waits(system: ControlledSystem) -> None:
    async with system.running(policy=replace(system.policy, warm_containers=0)) as controller:
        await a_job(system)
        for _ in range(3):
            await controller.reconcile_once()
        assert not system.runtime.containers


async def test_of_two_jobs_one_gets_what_waits_and_the_other_one_a_new_container(
    system: ControlledSystem,
) -> None:
    async with system.running():
        await a_job(system)
        waited = await one_waits(system)
        jobs = await asyncio.gather(system.submit(), system.submit())
        for job_id in jobs:
            job = await system.finished(job_id)
            assert (job.success, job.attempt) == (True, 1)
        assert await ran_in(system, waited) in jobs


@pytest.mark.parametrize("death", ["ended", "gone"])
async def test_who_died_waiting_is_replaced_and_costs_no_job_anything(
    system: ControlledSystem, death: str
) -> None:
    async with system.running():
        await a_job(system)
        waited = await one_waits(system)
        if death == "ended":
            system.runtime.end(waited.id, ExitState(137))
        else:
            system.runtime.vanish(waited.id)
        await a_job(system)
        assert await ran_in(system, waited) is None
        assert (await one_waits(system)).id != waited.id


async def test_who_waited_long_enough_is_replaced(system: ControlledSystem) -> None:
    async with system.running(interval=0.05, policy=replace(system.policy, warm_age=timedelta(seconds=0.2))):
        await a_job(system)
        waited = await one_waits(system)

        async def replaced() -> bool:
            return (await one_waits(system)).id != waited.id

        await eventually(replaced)


async def none_waits(system: ControlledSystem) -> bool:
    return not waiting(system)


async def test_when_the_fence_was_set_anew_nobody_who_came_through_it_waits(system: ControlledSystem) -> None:
    async with system.running(interval=0.05):
        await a_job(system)
        waited = await one_waits(system)
        system.runtime.network = NetworkState(broken=("a rule",))

        async def replaced() -> bool:
            return (await one_waits(system)).id != waited.id

        await eventually(replaced)


async def test_containers_of_a_runner_image_that_was_replaced_go(system: ControlledSystem) -> None:
    async with system.running(interval=0.05):
        await a_job(system)
        await one_waits(system)
        system.runtime.images["ci-runner:latest"] = "sha256:" + "1" * 64
        await eventually(lambda: none_waits(system))


async def test_while_the_engine_is_away_the_pool_is_forgotten_and_what_is_left_is_removed(
    system: ControlledSystem,
) -> None:
    async with system.running(interval=0.05):
        await a_job(system)
        waited = await one_waits(system)
        system.runtime.down = True

        async def left() -> bool:
            return waited.state is ContainerState.EXITED

        await eventually(left)
        system.runtime.down = False

        async def replaced() -> bool:
            return waited.id not in {one.id for one in system.runtime.containers.values()}

        await eventually(replaced)
        await a_job(system)


async def test_a_controller_that_is_stopped_removes_what_waits(system: ControlledSystem) -> None:
    async with system.running():
        await a_job(system)
        await one_waits(system)
    assert not system.runtime.containers


async def test_a_controller_that_cannot_remove_it_leaves_it_to_the_next(system: ControlledSystem) -> None:
    engine = Faulty(system.runtime)
    async with system.running(runtime=engine):
        await a_job(system)
        await one_waits(system)
        engine.faults["remove"] = EngineUnavailable("no answer")
    assert len(waiting(system)) == 1
    async with system.running(interval=0.05):
        await eventually(lambda: none_waits(system))


async def test_none_is_made_while_a_job_starts_or_just_started(system: ControlledSystem) -> None:
    gate = threading.Event()
    async with system.running() as controller:
        await a_job(system)
        await one_waits(system)
        system.runtime.script = a_run(gate)
        job_id = await system.submit()
        await system.printed(job_id)
        for _ in range(3):
            await controller.reconcile_once()
        assert not waiting(system)
        gate.set()
        await system.finished(job_id)
        await one_waits(system)


async def test_a_failure_to_make_one_is_nobodys_but_its_own(system: ControlledSystem) -> None:
    engine = Faulty(system.runtime)
    async with system.running(runtime=engine) as controller:
        job_id = await a_job(system)
        await one_waits(system)
        engine.faults["create"] = EngineUnavailable("no more")
        await a_job(system)

        async def failed() -> bool:
            return bool(engine.raised)

        await eventually(failed)
        await controller.reconcile_once()
        assert engine.raised == ["create"], "it is not tried again at once"
        del engine.faults["create"]
        assert await a_job(system) != job_id
