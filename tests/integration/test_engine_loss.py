"""An engine that goes away and comes back: nothing hangs, nothing is invented, everything is found again."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ci_common.errors import EngineUnavailable
from ci_controller.container_manager import ContainerManager
from ci_controller.container_runtime import ContainerState, start_and_feed
from tests.support.docker_cli import RUNNER_IMAGE, require_engine
from tests.support.engine_proxy import EngineProxy
from tests.support.runtime_contract import UNTIL_KILLED, Engine

MUCH = "import sys; sys.stdout.write(('x' * 1000 + '\\n') * 20_000)"

pytestmark = [
    pytest.mark.docker,
    # The SDK itself leaves a socket to the collector whenever a connection is refused.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _engine_is_there() -> None:
    require_engine()


@pytest.fixture
async def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineProxy]:
    proxy = EngineProxy(tmp_path / "engine.sock")
    await proxy.up()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{proxy.path}")
    yield proxy
    await proxy.down()


@pytest.fixture
async def engine(proxy: EngineProxy) -> AsyncIterator[Engine]:
    manager = ContainerManager("contract-")
    engine = Engine(manager, await manager.image_id(RUNNER_IMAGE) or "")
    yield engine
    await engine.remove_all()
    await manager.close()
    gc.collect()  # while this module's filter is in force


async def test_calls_fail_while_it_is_gone_and_work_afterwards(engine: Engine, proxy: EngineProxy) -> None:
    container = await engine.start(UNTIL_KILLED)
    await proxy.down()
    for call in (engine.runtime.list(engine.instance_id), engine.runtime.exit_state(container)):
        with pytest.raises(EngineUnavailable, match="does not answer"):
            await call
    for reading in (engine.runtime.follow_output, engine.runtime.read_output):
        with pytest.raises(EngineUnavailable, match="does not answer"), reading(container):
            pass
    await proxy.up()
    assert (await engine.only()).state is ContainerState.RUNNING


async def test_a_follower_ends_and_finds_the_same_output_afterwards(
    engine: Engine, proxy: EngineProxy
) -> None:
    container = await engine.start(UNTIL_KILLED)
    with ExitStack() as stack:
        # In threads: the proxy lives in this one.
        output = await asyncio.to_thread(stack.enter_context, engine.runtime.follow_output(container))
        assert await asyncio.to_thread(next, output) == b"ready\n"
        await proxy.down()
        assert await asyncio.wait_for(asyncio.to_thread(list, output), 5) == []
    await proxy.up()
    await engine.until(container, b"ready\n")


async def test_a_watch_reconnects_and_tells(engine: Engine, proxy: EngineProxy) -> None:
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def on_change() -> None:
        loop.call_soon_threadsafe(changed.set)

    with engine.runtime.watch(engine.instance_id, on_change), capture_logs() as logged:
        await asyncio.wait_for(changed.wait(), 10)
        await proxy.down()
        async with asyncio.timeout(10):
            while not logged:  # noqa: ASYNC110 - until it was refused a connection
                await asyncio.sleep(0.02)
        changed.clear()
        await proxy.up()
        await asyncio.wait_for(changed.wait(), 10)  # connected again: what was missed is looked for
    assert [entry["event"] for entry in logged] == ["the engine's events are lost"]


async def test_a_feed_that_finds_no_engine_says_so(engine: Engine, proxy: EngineProxy) -> None:
    container = await engine.runtime.create(engine.spec(UNTIL_KILLED))
    await proxy.down()
    with pytest.raises(EngineUnavailable, match="does not answer"):
        await start_and_feed(engine.runtime, container, [])
    await proxy.up()


async def test_a_reading_that_is_cut_off_is_no_end(engine: Engine, proxy: EngineProxy) -> None:
    container = await engine.start(MUCH)
    await engine.exit(container)
    with ExitStack() as stack:
        output = await asyncio.to_thread(stack.enter_context, engine.runtime.read_output(container))
        await asyncio.to_thread(next, output)
        await proxy.down()
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(asyncio.to_thread(list, output), 10)
    await proxy.up()
