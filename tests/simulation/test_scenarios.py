"""Single faults in a world without others, by name."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ci_common.job_terms import JobStatus, Reason
from ci_common.models import QueueLimits
from tests.simulation.behaviour import ENDINGS, Kind, output_of
from tests.simulation.faults import RATES, Fault, Faults
from tests.simulation.invariants import check_all
from tests.simulation.world import World, simulated


@pytest.fixture
async def world(home: Path) -> AsyncIterator[World]:
    with capture_logs():
        async with simulated(1, home) as made:
            made.faults.on = False
            made.limits = QueueLimits(99, 99)
            await made.do("start_controller")
            yield made


async def statuses(world: World) -> list[JobStatus]:
    return [(await world.system.job(job_id)).status for job_id in world.submitted]


async def work(world: World, passes: int, *, seconds: float = 2.0) -> None:
    """A healthy controller goes about its business; containers do nothing."""
    for _ in range(passes):
        world.clock.advance(seconds)
        await world.do("beat")
        await world.do("make_pass")
        await check_all(world)


async def test_the_engine_is_gone_for_ten_minutes(world: World) -> None:
    """Nothing is charged and nothing dead-lettered, and everything runs afterwards."""
    for _ in range(6):
        await world.submit(Kind.PASSES)
    await work(world, 3)
    started = dict(world.engine.runs)
    assert len(started) == world.system.policy.max_running_jobs
    await world.do("engine_goes_down")
    await work(world, 60, seconds=10)
    assert set(await statuses(world)) == {JobStatus.RUNNING, JobStatus.QUEUED}
    await world.do("engine_comes_up")
    await world.finish(check_all)
    for job_id in world.submitted:
        job = await world.system.job(job_id)
        assert (job.status, job.success, job.attempt) == (JobStatus.COMPLETED, True, 1), job
    assert started.items() <= world.engine.runs.items()


async def test_the_engine_refuses_every_create_for_ten_minutes(world: World) -> None:
    """It lists its containers, and makes none: jobs are tried one at a time, and none is charged."""
    await world.submit(Kind.PASSES)
    world.engine.refuses = {"create"}
    await work(world, 60, seconds=10)
    assert set(await statuses(world)) <= {JobStatus.QUEUED, JobStatus.CLAIMED}
    world.engine.refuses = set()
    await world.finish(check_all)
    assert [status.value for status in await statuses(world)] == ["completed"]
    assert sum(world.engine.runs.values()) == 1


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(days=2)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
async def test_the_wall_clock_jumps(world: World, jump: timedelta, sign: int) -> None:
    """Row 12: no mass requeue and no mass time-out; whoever waits or runs goes on doing so."""
    for _ in range(6):
        await world.submit(Kind.PASSES)
    await work(world, 3)
    before = await statuses(world)
    world.clock.jump(sign * jump)
    await work(world, 5)
    await world.do("keep_house")
    assert await statuses(world) == before
    await world.finish(check_all)
    assert all(status is JobStatus.COMPLETED for status in await statuses(world))


@pytest.mark.parametrize("sign", [1, -1])
async def test_a_deadline_passes_although_the_wall_clock_jumped(world: World, sign: int) -> None:
    await world.submit(Kind.DEAF)
    await work(world, 3)
    world.clock.jump(sign * timedelta(days=1))
    await work(world, 20, seconds=60)
    assert await statuses(world) == [JobStatus.RUNNING]
    await work(world, 20, seconds=60)
    job = await world.system.job("job0")
    assert (job.status, job.reason, job.attempt) == (JobStatus.FAILED, Reason.TIMEOUT, 1)


async def test_a_grace_is_over_although_the_wall_clock_was_set_back(world: World) -> None:
    await world.submit(Kind.DEAF)
    await work(world, 3)
    await world.do("cancel")
    await work(world, 1)
    world.clock.jump(timedelta(days=-1))
    await work(world, 15)
    job = await world.system.job("job0")
    assert (job.status, job.reason) == (JobStatus.CANCELLED, Reason.CANCELLED)


async def test_a_stale_controller_keeps_trying(world: World) -> None:
    """Two act at once: nothing runs twice, and only the successor's words are recorded."""
    for _ in range(6):
        await world.submit(Kind.PASSES)
    await work(world, 2)
    await world.do("start_controller")
    assert len(world.processes) == 2
    for _ in range(10):
        await world.do("make_pass")
        await world.do("advance")
        await check_all(world)
    await world.recover(check_all)
    assert all(status is JobStatus.COMPLETED for status in await statuses(world))


def always(world: World, fault: Fault) -> None:
    """That goes wrong every time, and nothing else does."""
    world.faults = world.engine.faults = Faults(1, {**dict.fromkeys(RATES, 0.0), fault: 1.0})


@pytest.mark.parametrize("fault", ["event lost", "event doubled"])
async def test_events_alone_decide_nothing(world: World, fault: Fault) -> None:
    """None comes, and the next pass finds out; each comes twice, and nothing is done twice."""
    always(world, fault)
    for _ in range(6):
        await world.do("submit")
    world.kinds.update(dict.fromkeys(world.kinds, Kind.PASSES))
    for _ in range(6):
        for action in ("answer_events", "advance"):
            await world.do(action)
            await check_all(world)
    assert bool(world.engine.runs) == (fault == "event doubled"), "these passes come from events alone"
    await world.finish(check_all)
    assert set(await statuses(world)) == {JobStatus.COMPLETED}
    assert list(world.engine.runs.values()) == [1] * 6


@pytest.mark.parametrize("kind", [Kind.PASSES, Kind.CRASHES])
async def test_the_log_comes_after_the_exit(world: World, kind: Kind) -> None:
    """Following ends with nothing, and each later reading finds a little more: the verdict waits for the whole."""
    always(world, "output late")
    await world.submit(kind)
    await work(world, 3)
    container = world.engine.running()[0]
    said = list(container.output)  # that its environment stands
    for _ in range(7):  # to its end
        world.engine.advance(container)
    assert container not in world.engine.running()
    assert container.output == said
    await work(world, 3)
    job = await world.system.job("job0")
    assert (job.status, job.reason) == ENDINGS[kind]
    assert world.system.log("job0") == output_of("job0")
    assert job.log_truncated == (kind is Kind.CRASHES), "who had no last word may have had more to say"


async def test_a_log_that_stalls_and_has_no_last_word_is_sealed_as_one_that_may_lack_output(
    world: World,
) -> None:
    """Two readings were equal, so it is settled; that it is short nobody can know, and nobody says it is whole."""
    always(world, "output late")
    await world.submit(Kind.CRASHES)
    await work(world, 3)
    container = world.engine.running()[0]
    for _ in range(7):
        world.engine.advance(container)
    world.engine.catch_up(container, 2)
    world.engine.log_stalls = True
    for _ in range(3):  # not `work`: that a log is whole is what does not hold here
        await world.do("make_pass")
    job = await world.system.job("job0")
    assert (job.status, job.reason) == ENDINGS[Kind.CRASHES]
    log = world.system.log("job0")
    assert output_of("job0").startswith(log)
    assert 0 < len(log) < len(output_of("job0"))
    assert job.log_truncated
