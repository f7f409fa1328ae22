"""What a change of the leader does to what is under way: on another engine, and on agents."""

import threading
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ci_common.clock import utcnow
from ci_common.job_terms import JobStatus, Reason
from tests.support.controlled import OUTPUT, ControlledSystem, a_run, controlled_system, eventually
from tests.support.fake_runtime import FakeContainerRuntime
from tests.support.repository_contract.story import PROFILE, make_key

LONG = 60.0  # seconds


@pytest.fixture
async def system(tmp_path: Path) -> AsyncGenerator[ControlledSystem]:
    async with controlled_system(tmp_path, a_run()) as made:
        yield made


class SetClock:
    """A monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return utcnow()

    def monotonic(self) -> float:
        return self.seconds


async def test_what_ran_on_another_engine_is_lost_charged_and_run_again_with_one_verdict(
    system: ControlledSystem,
) -> None:
    gate = threading.Event()
    system.runtime.script = a_run(gate)
    former = system.controller()
    await former.start()
    job_id = await system.submit()

    async def is_under_way() -> bool:
        await former.make_pass()
        await former.idle()
        return system.log(job_id) == OUTPUT

    await eventually(is_under_way, seconds=LONG)

    elsewhere = FakeContainerRuntime(a_run())
    async with system.running(runtime=elsewhere):

        async def has_ended() -> bool:
            return (await system.job(job_id)).status.is_terminal

        await eventually(has_ended, seconds=LONG)
        before = await system.job(job_id)
        assert (before.attempt, before.success) == (2, True)
        gate.set()  # the tests of the former host's container end, too
        assert await former.make_pass() is False
        assert await former.idle()
        assert await former.beat() is False
    assert await system.job(job_id) == before
    assert await system.verdicts(job_id) == ["completed"]
    [lost] = [one for one in await system.repository.get_events(job_id) if one.type == "released"]
    assert (lost.data["attempt"], lost.data["reason"]) == (1, Reason.INFRA)
    await former.close()
    await elsewhere.close()


async def test_a_controller_that_waited_for_long_gives_every_agent_a_whole_lease(
    system: ControlledSystem,
) -> None:
    clock = SetClock()
    controller = system.controller(clock=clock, local_runner=False, agent_lease=timedelta(seconds=30))
    key = make_key(system.user, id="rack", key_hash="rack", prefix="rack", scopes=frozenset())
    await system.repository.create_api_key(key)
    long_ago = utcnow() - timedelta(days=1)
    agent = await system.repository.register_agent("rack", PROFILE, long_ago)
    job_id = await system.submit(pool=PROFILE.pool)
    assert await system.repository.claim_for_agent(agent.lease, 1, utcnow())

    clock.seconds = 86_400.0
    await controller.start()
    for _ in range(10):
        await controller.expire_agents()
        assert (await system.job(job_id)).status is JobStatus.CLAIMED
        clock.seconds += 3
    await controller.expire_agents()
    assert (await system.job(job_id)).status is JobStatus.QUEUED
    await controller.close()
