"""Environments in the whole controller, on the engine in memory: built once, found again, never anybody else's."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from ci_common.clock import utcnow
from ci_common.job_terms import JobStatus, Reason, new_id
from ci_common.models import User
from ci_controller import labels
from ci_controller.container_runtime import (
    ContainerError,
    ContainerRuntime,
    ContainerSpec,
    EnvironmentImage,
    ExitState,
    NewImage,
)
from ci_controller.frames import Outcome
from ci_controller.image_retention import DEFAULT_IMAGE_LIMITS
from tests.support.controlled import (
    OUTPUT,
    ControlledSystem,
    Faulty,
    Frames,
    a_run,
    builds,
    controlled_system,
    eventually,
    header_of,
    is_at_barrier,
    records,
)
from tests.support.fake_runtime import Script, Step, UntilSignal

TREE = {"requirements.txt": b"one\n", "test_a.py": b"def test_a(): pass\n"}


@pytest.fixture
async def system(tmp_path: Path) -> AsyncGenerator[ControlledSystem]:
    async with controlled_system(tmp_path, a_run()) as made:
        made.policy = replace(made.policy, environments=DEFAULT_IMAGE_LIMITS)
        yield made


@pytest.fixture
def fed(system: ControlledSystem) -> list[bytes]:
    """Return the inputs of all containers that came to their end."""
    inputs: list[bytes] = []
    script: Script = system.runtime.script

    def seen(data: bytes) -> Iterable[Step]:
        inputs.append(data)
        return script(data)

    system.runtime.script = seen
    return inputs


async def images(system: ControlledSystem) -> list[EnvironmentImage]:
    return [*await system.runtime.environment_images(await system.repository.instance_id())]


def titles(fed: bytes) -> list[str]:
    header = header_of(fed)
    assert header is not None
    return [step["title"] for step in header["steps"]]


async def test_the_first_job_builds_and_the_next_one_finds(
    system: ControlledSystem, fed: list[bytes]
) -> None:
    async with system.running():
        first = await system.finished(await system.submit(TREE))
        [image] = await images(system)
        second = await system.finished(await system.submit({**TREE, "test_a.py": b"def test_b(): pass\n"}))
    assert (first.success, first.image_cached, first.image_id) == (
        True,
        False,
        system.runtime.images["ci-runner:latest"],
    )
    assert (second.success, second.image_cached, second.image_id) == (True, True, image.id)
    assert [titles(one) for one in fed] == [["requirements.txt", "pytest"], []]
    headers = [header_of(one) or {} for one in fed]
    assert [header["build"] for header in headers] == [True, False]
    assert headers[0]["kept_from"] == ""
    assert headers[1]["kept_from"].startswith(f"{image.created_at:%Y-%m-%d %H:%M}")
    assert await images(system) == [image]


async def test_an_image_has_exactly_its_labels_and_nothing_of_the_job(system: ControlledSystem) -> None:
    async with system.running():
        job = await system.finished(await system.submit(TREE))
    [image] = await images(system)
    instance = await system.repository.instance_id()
    key = image.labels[labels.ENVIRONMENT]
    assert dict(image.labels) == {
        "ci.instance": instance,
        "ci.kind": "environment",
        "ci.environment": key,
        "ci.owner": system.user.id,
        "ci.base": system.runtime.images["ci-runner:latest"],
    }
    assert image.reference == f"ci-environment-{instance[:12]}:{key[:32]}"
    assert job.id not in str(image)


async def test_what_is_kept_has_got_the_files_that_decide_and_nothing_of_the_tree(
    system: ControlledSystem,
) -> None:
    kept: list[list[str]] = []

    class Watched(Faulty):
        async def commit(self, container_id: str, image: NewImage) -> str:
            [container] = system.runtime.containers.values()
            kept.append([kind.decode() for kind, _ in records(container.fed)])
            return await system.runtime.commit(container_id, image)

    async with system.running(runtime=Watched(system.runtime)):
        assert (await system.finished(await system.submit(TREE))).success
    assert kept == [["W", "H", "T", "E"]]


async def test_other_requirements_are_another_environment(system: ControlledSystem) -> None:
    async with system.running():
        await system.finished(await system.submit(TREE))
        other = await system.finished(await system.submit({**TREE, "requirements.txt": b"two\n"}))
    assert other.image_cached is False
    assert len(await images(system)) == 2


async def test_nobody_gets_somebody_else_s(system: ControlledSystem) -> None:
    other = User(new_id(), "Grace", "grace@example.org", utcnow())
    await system.repository.create_user(other)
    async with system.running():
        await system.finished(await system.submit(TREE))
        theirs = await system.finished(await system.submit(TREE, user=other))
    assert theirs.image_cached is False
    assert {image.labels[labels.OWNER] for image in await images(system)} == {system.user.id, other.id}


async def test_fresh_builds_anew_and_takes_the_place_of_what_was_kept(system: ControlledSystem) -> None:
    async with system.running():
        await system.finished(await system.submit(TREE))
        [before] = await images(system)
        fresh = await system.finished(await system.submit(TREE, fresh=True))
        [after] = await images(system)
        again = await system.finished(await system.submit(TREE))
    assert fresh.image_cached is False
    assert (before.reference, before.id != after.id) == (after.reference, True)
    assert again.image_id == after.id


async def test_what_is_too_old_is_built_anew(system: ControlledSystem) -> None:
    limits = replace(DEFAULT_IMAGE_LIMITS, age=timedelta(microseconds=-1))
    async with system.running(policy=replace(system.policy, environments=limits)):
        for _ in range(2):
            assert (await system.finished(await system.submit(TREE))).image_cached is False


async def test_an_installation_that_fails_leaves_nothing(system: ControlledSystem) -> None:
    def fails(fed: bytes) -> Iterator[Step]:
        frames = Frames()
        yield frames.begun()
        yield frames.trailer(Outcome.INSTALL_FAILED, message="No such thing.")
        yield ExitState(101)

    system.runtime.ahead = lambda fed: fails(fed) if is_at_barrier(fed) else None
    async with system.running():
        job = await system.finished(await system.submit(TREE))
    assert (job.reason, job.message) == (Reason.INSTALL_FAILED, "No such thing.")
    assert await images(system) == []


async def test_what_the_engine_does_not_keep_costs_nothing(system: ControlledSystem) -> None:
    engine = cast("ContainerRuntime", Faulty(system.runtime, commit=ContainerError("no space left")))
    with capture_logs() as logs:
        async with system.running(runtime=engine):
            job = await system.finished(await system.submit(TREE))
    assert (job.success, job.attempt, system.log(job.id)) == (True, 1, OUTPUT)
    assert [one["error"] for one in logs if one["event"] == "environment not kept"] == ["no space left"]


class RemovedByHand:
    """An engine from which somebody removes each environment when a container is to be made of it."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def create(self, spec: ContainerSpec) -> str:
        if spec.image_id not in self._real.images.values():
            await self._real.remove_image(spec.image_id)
        return await self._real.create(spec)


async def test_an_image_that_vanishes_in_between_is_built_again(system: ControlledSystem) -> None:
    async with system.running(runtime=cast("ContainerRuntime", RemovedByHand(system.runtime))):
        await system.finished(await system.submit(TREE))
        job = await system.finished(await system.submit(TREE))
    assert (job.success, job.image_cached, job.attempt) == (True, False, 1)
    assert len(await images(system)) == 1


async def test_where_none_is_to_be_kept_none_is_built(system: ControlledSystem, fed: list[bytes]) -> None:
    limits = replace(DEFAULT_IMAGE_LIMITS, size=0)
    async with system.running(policy=replace(system.policy, environments=limits)):
        job = await system.finished(await system.submit(TREE))
    assert (job.success, job.image_cached) == (True, None)
    assert (header_of(fed[0]) or {})["build"] is False
    assert await images(system) == []


# -- who waits for a builder -------------------------------------------------------------------------------


class Installation:
    """Lasts until the test lets it go on, or its container is told to stop; later ones take no time."""

    def __init__(self, system: ControlledSystem) -> None:
        self.go_on, self.began = threading.Event(), threading.Event()
        system.runtime.ahead = self._ahead

    def _ahead(self, fed: bytes) -> Iterable[Step] | None:
        if self.began.is_set() or not is_at_barrier(fed):
            return builds(fed)
        self.began.set()
        return self._steps()

    def _steps(self) -> Iterator[Step]:
        frames = Frames()
        yield frames.begun()
        yield self.go_on
        yield frames.event("prepared")


class Stopped(Installation):
    def _steps(self) -> Iterator[Step]:
        frames = Frames()
        yield frames.begun()
        yield UntilSignal("SIGINT")
        yield frames.trailer(Outcome.STOPPED)
        yield ExitState(105)


async def claimed(system: ControlledSystem, job_id: str) -> None:
    async def check() -> bool:
        return (await system.job(job_id)).status is JobStatus.CLAIMED

    await eventually(check)


async def test_who_needs_what_another_one_builds_waits_without_a_container_or_a_slot(
    system: ControlledSystem,
) -> None:
    installation = Installation(system)
    with capture_logs() as logs:
        async with system.running():
            builder = await system.submit(TREE)
            assert await asyncio.to_thread(installation.began.wait, 10)
            same = [await system.submit(TREE) for _ in range(2)]
            for job_id in same:
                await claimed(system, job_id)
            other = await system.submit({**TREE, "requirements.txt": b"two\n"})
            assert (await system.finished(other)).success, "there is a slot for it"
            assert [name for name in system.runtime.containers if builder in name] == [
                *system.runtime.containers
            ]
            installation.go_on.set()
            found = [await system.finished(job_id) for job_id in (builder, *same)]
    assert [job.image_cached for job in found] == [False, True, True]
    assert all(job.success and job.attempt == 1 for job in found)
    waits = {one["job"] for one in logs if one["event"] == "waits for its environment"}
    assert waits == set(same)


async def test_who_waits_can_be_cancelled(system: ControlledSystem) -> None:
    installation = Installation(system)
    async with system.running():
        builder = await system.submit(TREE)
        assert await asyncio.to_thread(installation.began.wait, 10)
        waiting = await system.submit(TREE)
        await claimed(system, waiting)
        await system.cancel(waiting)
        assert (await system.finished(waiting)).status is JobStatus.CANCELLED
        installation.go_on.set()
        assert (await system.finished(builder)).success


async def test_when_the_builder_is_stopped_the_next_one_builds(system: ControlledSystem) -> None:
    installation = Stopped(system)
    async with system.running():
        builder = await system.submit(TREE)
        assert await asyncio.to_thread(installation.began.wait, 10)
        waiting = await system.submit(TREE)
        await claimed(system, waiting)
        await system.cancel(builder)
        assert (await system.finished(builder)).status is JobStatus.CANCELLED
        job = await system.finished(waiting)
    assert (job.success, job.image_cached) == (True, False)
    assert len(await images(system)) == 1


async def test_a_controller_that_ends_at_the_barrier_gives_the_attempt_back_charged(
    system: ControlledSystem,
) -> None:
    installation = Installation(system)
    async with system.running():
        job_id = await system.submit(TREE)
        assert await asyncio.to_thread(installation.began.wait, 10)
    installation.go_on.set()
    async with system.running(0.05):
        job = await system.finished(job_id)
    assert (job.success, job.attempt) == (True, 2)
    [released] = [one for one in await system.repository.get_events(job_id) if one.type == "released"]
    assert released.data["reason"] == Reason.INFRA


# -- pruning -----------------------------------------------------------------------------------------------


async def test_a_prune_takes_what_is_not_to_be_kept(system: ControlledSystem) -> None:
    async with system.running():
        for name in (b"one\n", b"two\n"):
            await system.finished(await system.submit({**TREE, "requirements.txt": name}))
    controller = system.controller(
        policy=replace(system.policy, environments=replace(DEFAULT_IMAGE_LIMITS, size=0))
    )
    await controller.start()
    await controller.prune()
    await controller.close()
    assert await images(system) == []


async def test_a_prune_leaves_what_is_to_be_kept(system: ControlledSystem) -> None:
    async with system.running() as controller:
        await system.finished(await system.submit(TREE))
        await controller.prune()
        await controller.prune(under_pressure=True)  # of another disk than the engine's
        assert len(await images(system)) == 1
