"""The fake engine keeps the contract of the real one, and its switches do what they say."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from ci_common.errors import EngineUnavailable
from ci_controller.container_runtime import ContainerGone, ContainerState, ExitState, start_and_feed
from tests.support.fake_runtime import FakeContainer, FakeContainerRuntime
from tests.support.runtime_contract import ECHO, FAKE_SCRIPTS, UNTIL_KILLED, Engine, RuntimeContract


@pytest.fixture
async def fake() -> AsyncIterator[FakeContainerRuntime]:
    runtime = FakeContainerRuntime(scripts=FAKE_SCRIPTS)
    yield runtime
    await runtime.close()


@pytest.fixture
def engine(fake: FakeContainerRuntime) -> Engine:
    return Engine(fake, next(iter(fake.images.values())))


class TestFake(RuntimeContract):
    """The one suite over the fake."""


def _only(fake: FakeContainerRuntime) -> FakeContainer:
    [container] = fake.containers.values()
    return container


async def test_an_engine_that_is_down_answers_nothing(fake: FakeContainerRuntime, engine: Engine) -> None:
    container = await engine.start(UNTIL_KILLED)
    fake.down = True
    for call in (fake.ping(), fake.list(engine.instance_id), fake.remove(container)):
        with pytest.raises(EngineUnavailable):
            await call
    fake.down = False
    assert (await engine.only()).state is ContainerState.RUNNING


async def test_an_engine_that_goes_down_ends_the_output(fake: FakeContainerRuntime, engine: Engine) -> None:
    container = await engine.start(UNTIL_KILLED)
    await engine.until(container, b"ready\n")
    reading = asyncio.create_task(engine.output(container))
    fake.down = True
    with pytest.raises(EngineUnavailable):  # noqa: PT012 - either it had opened, or it cannot
        await reading
        await engine.output(container)


async def test_a_create_whose_reply_is_lost_has_happened(fake: FakeContainerRuntime, engine: Engine) -> None:
    fake.lose_reply_of("create")
    with pytest.raises(EngineUnavailable):
        await fake.create(engine.spec(ECHO))
    assert _only(fake).state is ContainerState.CREATED


async def test_a_start_whose_reply_is_lost_runs_unfed(fake: FakeContainerRuntime, engine: Engine) -> None:
    fake.lose_reply_of("start")
    container = await fake.create(engine.spec(ECHO))
    with pytest.raises(EngineUnavailable):
        await start_and_feed(fake, container, [b"text"])
    assert await engine.exit(container) == ExitState(0)
    assert await engine.output(container) == b""


async def test_a_vanished_container_is_gone(fake: FakeContainerRuntime, engine: Engine) -> None:
    container = await engine.start(UNTIL_KILLED)
    fake.vanish(container)
    with pytest.raises(ContainerGone):
        await fake.exit_state(container)


async def test_a_container_can_be_ended_in_any_way(fake: FakeContainerRuntime, engine: Engine) -> None:
    container = await engine.start(UNTIL_KILLED)
    fake.end(container, ExitState(137, oom_killed=True))
    assert await fake.exit_state(container) == ExitState(137, oom_killed=True)


async def test_a_script_waits_for_the_test(engine: Engine) -> None:
    gate = threading.Event()
    runtime = FakeContainerRuntime(script=lambda fed: [b"before\n", gate, b"after\n"])
    container = await runtime.create(engine.spec(ECHO))
    await start_and_feed(runtime, container, [])
    following = Engine(runtime, engine.image_id)
    await following.until(container, b"before\n")
    assert await runtime.exit_state(container) is None
    gate.set()
    assert await following.output(container) == b"before\nafter\n"
    await runtime.close()
