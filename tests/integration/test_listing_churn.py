"""Row 66: containers come and go while they are listed; the listing is whole, and never an error."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from ci_controller.container_manager import ContainerManager
from tests.support.docker_cli import RUNNER_IMAGE, require_engine
from tests.support.runtime_contract import UNTIL_KILLED, Engine

pytestmark = pytest.mark.docker


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    require_engine()
    manager = ContainerManager("churn-")
    engine = Engine(manager, await manager.image_id(RUNNER_IMAGE) or "")
    yield engine
    await engine.remove_all()
    await manager.close()


async def test_fault_66_containers_vanish_while_they_are_listed(engine: Engine) -> None:
    stays = await engine.runtime.create(engine.spec(UNTIL_KILLED))

    async def churn() -> None:
        for _ in range(15):
            container = await engine.runtime.create(engine.spec(UNTIL_KILLED))
            await engine.runtime.remove(container)

    churning = asyncio.gather(*(churn() for _ in range(6)))
    seen: set[str] = set()
    while not churning.done():
        listed = {one.id for one in await engine.runtime.list(engine.instance_id)}
        assert stays in listed
        seen |= listed
    await churning
    assert len(seen) > 10, "nothing was listed in its short life"
    assert {one.id for one in await engine.runtime.list(engine.instance_id)} == {stays}
