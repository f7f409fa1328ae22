"""image_pruner: what is chosen is gone, unless the engine says that a container needs it."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta

import pytest

from ci_common.clock import utcnow
from ci_controller import labels
from ci_controller.container_runtime import NewImage
from ci_controller.image_pruner import prune_images
from ci_controller.image_retention import Base, ImageLimits
from tests.support.fake_runtime import FakeContainerRuntime
from tests.support.runtime_contract import EXIT_3, Engine

NOTHING = ImageLimits(0, 0)


@pytest.fixture
async def engine() -> AsyncGenerator[Engine]:
    runtime = FakeContainerRuntime()
    yield Engine(runtime, next(iter(runtime.images.values())))
    await runtime.close()


async def made(engine: Engine, key: str) -> str:
    """An environment image of that key stands; returns its id."""
    named = labels.environment_labels(engine.instance_id, key, "ada", engine.image_id)
    image = NewImage(labels.environment_reference(engine.instance_id, key), named)
    return await engine.runtime.commit(await engine.start(EXIT_3), image)


async def pruned(engine: Engine, limits: ImageLimits) -> list[str]:
    base = Base(engine.image_id, 0)
    gone = await prune_images(engine.runtime, engine.instance_id, {}, limits, base, utcnow())
    return [one.image.id for one in gone]


async def left(engine: Engine) -> list[str]:
    return [image.id for image in await engine.runtime.environment_images(engine.instance_id)]


async def test_what_is_to_be_kept_is_kept(engine: Engine) -> None:
    image = await made(engine, "a" * 64)
    assert await pruned(engine, ImageLimits(age=timedelta(hours=1))) == []
    assert await left(engine) == [image]


async def test_what_goes_is_gone_but_for_what_a_container_needs(engine: Engine) -> None:
    one, two = await made(engine, "a" * 64), await made(engine, "b" * 64)
    await engine.runtime.create(replace(engine.spec(EXIT_3), image_id=two))
    assert await pruned(engine, NOTHING) == [one]
    assert await left(engine) == [two]


async def test_other_installations_keep_theirs(engine: Engine) -> None:
    other = Engine(engine.runtime, engine.image_id)
    theirs = await made(other, "a" * 64)
    assert await pruned(engine, NOTHING) == []
    assert await left(other) == [theirs]
