"""What every `ContainerRuntime` must do: one suite, run over the fake and over the real engine.

A test module provides the fixtures `runtime` and `image_id` and makes `class TestX(RuntimeContract)`. The
containers run the small programs below; `FAKE_SCRIPTS` says how the fake acts them.
"""

import asyncio
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Final, Literal

import pytest

from ci_common.clock import utcnow
from ci_controller import labels
from ci_controller.container_runtime import (
    ContainerError,
    ContainerGone,
    ContainerInput,
    ContainerRuntime,
    ContainerSpec,
    ContainerState,
    ExitState,
    NewImage,
    ObservedContainer,
    start_and_feed,
)
from ci_controller.container_users import USERS
from tests.support.fake_runtime import Script, Step, UntilIsolated, UntilSignal

SECONDS: Final = 20.0  # no single step of a container takes longer

ECHO: Final = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
COUNT: Final = "import sys; print('got', len(sys.stdin.buffer.read()))"
EXIT_3: Final = "import sys; sys.stdin.read(); sys.exit(3)"
BOTH_STREAMS: Final = "import sys; print('out', flush=True); print('err', file=sys.stderr)"
LEAVE_EARLY: Final = "print('enough')"
UNTIL_KILLED: Final = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "print('ready', flush=True)\nwhile True: signal.pause()"
)
UNTIL_SIGINT: Final = (
    "import signal, sys; signal.signal(signal.SIGINT, lambda *_: (print('stopped'), sys.exit(4)))\n"
    "print('ready', flush=True)\nwhile True: signal.pause()"
)
UNTIL_ISOLATED: Final = (
    "import os, time; print('ready', flush=True)\n"
    "while os.listdir('/sys/class/net') != ['lo']: time.sleep(0.02)\n"
    "print('isolated')"
)


def command(program: str) -> tuple[str, ...]:
    """Return the argv that runs one of the programs."""
    return ("python3", "-c", program)


def _until_sigint(fed: bytes) -> Iterator[Step]:
    yield b"ready\n"
    yield UntilSignal("SIGINT")
    yield b"stopped\n"
    yield ExitState(4)


FAKE_SCRIPTS: Mapping[tuple[str, ...], Script] = MappingProxyType(
    {
        command(ECHO): lambda fed: [fed],
        command(COUNT): lambda fed: [f"got {len(fed)}\n".encode()],
        command(EXIT_3): lambda fed: [ExitState(3)],
        command(BOTH_STREAMS): lambda fed: [b"out\n", b"err\n"],
        command(LEAVE_EARLY): lambda fed: [b"enough\n"],
        command(UNTIL_KILLED): lambda fed: [b"ready\n", threading.Event()],
        command(UNTIL_SIGINT): _until_sigint,
        command(UNTIL_ISOLATED): lambda fed: [b"ready\n", UntilIsolated(), b"isolated\n"],
    }
)


@dataclass
class Engine:
    """A runtime with an installation of its own in it, and shorthand for what most tests do."""

    runtime: ContainerRuntime
    image_id: str
    instance_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def spec(self, program: str) -> ContainerSpec:
        return ContainerSpec(
            name=labels.waiting_name("contract-"),
            image_id=self.image_id,
            command=command(program),
            labels=labels.run_labels(self.instance_id, epoch=1),
            memory_bytes=64 * 1024**2,
            network="none",
        )

    async def start(self, program: str, feed: tuple[bytes, ...] = ()) -> str:
        container = await self.runtime.create(self.spec(program))
        await start_and_feed(self.runtime, container, feed)
        return container

    @asynccontextmanager
    async def held(self, program: str) -> AsyncGenerator[tuple[str, ContainerInput]]:
        """A container runs with its input held open; gives both."""
        container = await self.runtime.create(self.spec(program))
        held = await self.runtime.start(container)
        try:
            yield container, held
        finally:
            held.close()

    def job_name(self, attempt: int = 1) -> str:
        return labels.job_name("contract-", self.instance_id[:8], attempt)

    def image(self, tag: str) -> NewImage:
        """An environment image of this installation, to be made."""
        named = {
            labels.INSTANCE: self.instance_id,
            labels.KIND: labels.KIND_ENVIRONMENT,
            "ci.environment": tag,
        }
        return NewImage(f"ci-contract-{self.instance_id[:8]}:{tag}", named)

    async def only(self) -> ObservedContainer:
        [container] = await self.runtime.list(self.instance_id)
        return container

    async def output(self, container: str) -> bytes:
        """All of it, to the end of the container."""
        return await asyncio.wait_for(asyncio.to_thread(self._read, container), SECONDS)

    def _read(self, container: str) -> bytes:
        with self.runtime.follow_output(container) as output:
            return b"".join(output)

    async def until(self, container: str, text: bytes) -> None:
        """Return when the container has printed that."""
        await asyncio.wait_for(asyncio.to_thread(self._read_until, container, text), SECONDS)

    def _read_until(self, container: str, text: bytes) -> None:
        seen = b""
        with self.runtime.follow_output(container) as output:
            for chunk in output:
                seen += chunk
                if text in seen:
                    return
        raise AssertionError(f"the container ended with {seen!r}")

    async def exit(self, container: str) -> ExitState:
        """How it ended; waits for that."""
        async with asyncio.timeout(SECONDS):
            while (state := await self.runtime.exit_state(container)) is None:  # noqa: ASYNC110 - the seam has no wait
                await asyncio.sleep(0.02)
        return state

    async def remove_all(self) -> None:
        for container in await self.runtime.list(self.instance_id):
            await self.runtime.remove(container.id)
        for image in await self.runtime.environment_images(self.instance_id):
            await self.runtime.remove_image(image.reference)


class RuntimeContract:
    """The suite."""

    async def test_the_engine_answers(self, engine: Engine) -> None:
        await engine.runtime.ping()

    async def test_an_image_is_found_by_its_id_and_an_unknown_one_is_none(self, engine: Engine) -> None:
        assert await engine.runtime.image_id(engine.image_id) == engine.image_id
        assert await engine.runtime.image_id("ci-no-such-image:latest") is None

    @pytest.mark.parametrize("reference", ["", "No Name", "a:b:c", "-x"])
    async def test_what_is_no_name_names_no_image(self, engine: Engine, reference: str) -> None:
        assert await engine.runtime.image_id(reference) is None

    async def test_a_created_container_is_listed_as_never_started(self, engine: Engine) -> None:
        spec = engine.spec(ECHO)
        container = await engine.runtime.create(spec)
        found = await engine.only()
        assert (found.id, found.name, found.state) == (container, spec.name, ContainerState.CREATED)
        assert dict(found.labels).items() >= dict(spec.labels).items()
        assert await engine.runtime.exit_state(container) is None

    async def test_containers_that_exist_at_the_same_time_have_users_of_their_own(
        self, engine: Engine
    ) -> None:
        await asyncio.gather(*(engine.runtime.create(engine.spec(ECHO)) for _ in range(8)))
        users = {int(found.labels[labels.UID]) for found in await engine.runtime.list(engine.instance_id)}
        assert len(users) == 8
        assert users <= set(USERS)

    async def test_other_installations_are_not_listed(self, engine: Engine) -> None:
        await engine.runtime.create(engine.spec(ECHO))
        assert await engine.runtime.list(str(uuid.uuid4())) == []

    async def test_a_name_that_is_taken_is_refused_and_its_container_left_alone(self, engine: Engine) -> None:
        spec = engine.spec(ECHO)
        container = await engine.runtime.create(spec)
        with pytest.raises(ContainerError, match=f"{spec.name} is taken"):
            await engine.runtime.create(spec)
        assert (await engine.only()).id == container

    @pytest.mark.parametrize("starts", [False, True])
    async def test_a_container_gets_another_name(self, engine: Engine, *, starts: bool) -> None:
        container = await engine.runtime.create(engine.spec(UNTIL_KILLED))
        if starts:
            await start_and_feed(engine.runtime, container, [])
        await engine.runtime.rename(container, engine.job_name())
        found = await engine.only()
        assert (found.id, found.name) == (container, engine.job_name())

    async def test_a_name_that_a_stranger_has_is_not_given(self, engine: Engine) -> None:
        stranger = replace(engine.spec(ECHO), name=engine.job_name(), labels={"somebody": "else"})
        foreign = await engine.runtime.create(stranger)
        try:
            spec = engine.spec(ECHO)
            container = await engine.runtime.create(spec)
            with pytest.raises(ContainerError, match=f"{engine.job_name()} is taken"):
                await engine.runtime.rename(container, engine.job_name())
            assert (await engine.only()).name == spec.name
            assert await engine.runtime.exit_state(foreign) is None
        finally:
            await engine.runtime.remove(foreign)

    async def test_an_unknown_image_is_the_containers_error(self, engine: Engine) -> None:
        with pytest.raises(ContainerError):
            await engine.runtime.create(replace(engine.spec(ECHO), image_id="sha256:" + "f" * 64))
        assert await engine.runtime.list(engine.instance_id) == []

    async def test_what_is_fed_arrives_and_the_input_ends(self, engine: Engine) -> None:
        container = await engine.start(ECHO, (b"one ", b"two ", b"three\n"))
        assert await engine.output(container) == b"one two three\n"
        assert await engine.exit(container) == ExitState(0)

    async def test_large_input_arrives_whole(self, engine: Engine) -> None:
        container = await engine.start(COUNT, (b"x" * 3_000_000,) * 3)
        assert await engine.output(container) == b"got 9000000\n"

    async def test_a_started_container_waits_as_long_as_its_input_is_held(self, engine: Engine) -> None:
        async with engine.held(COUNT) as (container, held):
            await held.send([b"123"])
            assert (await engine.only()).state is ContainerState.RUNNING
            assert await engine.runtime.exit_state(container) is None
            await held.send([])
            await held.send(iter([b"4", b"56"]))
            await held.finish()
            assert await engine.output(container) == b"got 6\n"

    async def test_an_input_that_is_closed_has_ended(self, engine: Engine) -> None:
        async with engine.held(COUNT) as (container, held):
            await held.send([b"123"])
        assert await engine.output(container) == b"got 3\n"
        held.close()  # again, which changes nothing

    async def test_chunks_are_read_in_a_worker_thread(self, engine: Engine) -> None:
        threads: list[threading.Thread] = []

        def chunks() -> Iterator[bytes]:
            threads.append(threading.current_thread())
            yield b"x"

        async with engine.held(COUNT) as (_, held):
            await held.send(chunks())
        assert threads != [threading.main_thread()]

    async def test_a_container_may_be_renamed_between_its_start_and_its_feed(self, engine: Engine) -> None:
        async with engine.held(ECHO) as (container, held):
            await engine.runtime.rename(container, engine.job_name())
            await held.send([b"text\n"])
            await held.finish()
            assert await engine.output(container) == b"text\n"

    async def test_cancelling_a_feed_ends_the_input_and_waits_for_its_chunks(self, engine: Engine) -> None:
        reached, go_on = threading.Event(), threading.Event()

        def chunks() -> Iterator[bytes]:
            yield b"12345"
            reached.set()
            assert go_on.wait(SECONDS)
            yield b"never arrives"

        async with engine.held(COUNT) as (container, held):
            sending = asyncio.create_task(held.send(chunks()))
            assert await asyncio.to_thread(reached.wait, SECONDS)
            sending.cancel()
            assert await engine.output(container) == b"got 5\n"  # while the thread still holds the chunks
            assert not sending.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await sending

    async def test_what_is_sent_to_a_container_that_has_ended_is_no_error(self, engine: Engine) -> None:
        async with engine.held(UNTIL_KILLED) as (container, held):
            await engine.runtime.signal(container, "SIGKILL")
            await engine.exit(container)
            await held.send((b"x" * 100_000,) * 20)
            await held.send([b"more"])
            await held.finish()

    async def test_an_error_of_the_chunks_ends_the_input_and_is_raised(self, engine: Engine) -> None:
        def broken() -> Iterator[bytes]:
            yield b"1234567"
            raise LookupError("the archive is damaged")

        container = await engine.runtime.create(engine.spec(COUNT))
        with pytest.raises(LookupError):
            await start_and_feed(engine.runtime, container, broken())
        assert await engine.output(container) == b"got 7\n"

    async def test_a_container_that_leaves_early_is_no_error(self, engine: Engine) -> None:
        container = await engine.start(LEAVE_EARLY, (b"x" * 1_000_000,) * 20)
        assert await engine.output(container) == b"enough\n"

    async def test_an_exit_code_is_reported(self, engine: Engine) -> None:
        container = await engine.start(EXIT_3)
        assert (await engine.exit(container)).exit_code == 3
        assert (await engine.only()).state is ContainerState.EXITED

    async def test_both_streams_are_followed(self, engine: Engine) -> None:
        container = await engine.start(BOTH_STREAMS)
        assert sorted((await engine.output(container)).split()) == [b"err", b"out"]

    async def test_output_can_be_read_again_from_the_beginning(self, engine: Engine) -> None:
        container = await engine.start(ECHO, (b"again\n",))
        first = await engine.output(container)
        assert await engine.output(container) == first == b"again\n"

    async def test_the_output_of_an_exited_container_is_read_whole(self, engine: Engine) -> None:
        container = await engine.start(ECHO, (b"a line\n" * 10_000,))
        await engine.exit(container)
        assert await asyncio.to_thread(self._present, engine, container) == b"a line\n" * 10_000

    async def test_reading_does_not_wait_for_more(self, engine: Engine) -> None:
        container = await engine.start(UNTIL_KILLED)
        await engine.until(container, b"ready\n")
        reading = asyncio.to_thread(self._present, engine, container)
        assert await asyncio.wait_for(reading, SECONDS) == b"ready\n"

    def _present(self, engine: Engine, container: str) -> bytes:
        with engine.runtime.read_output(container) as output:
            return b"".join(output)

    async def test_a_running_container_is_seen_running_and_its_output_live(self, engine: Engine) -> None:
        container = await engine.start(UNTIL_KILLED)
        await engine.until(container, b"ready\n")
        assert (await engine.only()).state is ContainerState.RUNNING
        assert await engine.runtime.exit_state(container) is None

    async def test_leaving_from_another_thread_ends_the_iteration(self, engine: Engine) -> None:
        container = await engine.start(UNTIL_KILLED)
        stack, first_seen = ExitStack(), threading.Event()
        output = stack.enter_context(engine.runtime.follow_output(container))

        def read() -> None:
            for _ in output:
                first_seen.set()

        reading = asyncio.create_task(asyncio.to_thread(read))
        assert await asyncio.to_thread(first_seen.wait, SECONDS)
        await asyncio.to_thread(stack.close)
        await asyncio.wait_for(reading, 2)

    async def test_a_signal_reaches_the_first_process(self, engine: Engine) -> None:
        container = await engine.start(UNTIL_SIGINT)
        await engine.until(container, b"ready\n")
        await engine.runtime.signal(container, "SIGINT")
        assert (await engine.exit(container)).exit_code == 4
        assert await engine.output(container) == b"ready\nstopped\n"

    async def test_sigkill_ends_what_ignores_the_rest(self, engine: Engine) -> None:
        container = await engine.start(UNTIL_KILLED)
        await engine.until(container, b"ready\n")
        await engine.runtime.signal(container, "SIGINT")
        assert await engine.runtime.exit_state(container) is None
        await engine.runtime.signal(container, "SIGKILL")
        assert await engine.exit(container) == ExitState(137)

    async def test_the_fence_around_the_jobs_stands_once_it_was_found_whole(self, engine: Engine) -> None:
        async with asyncio.timeout(SECONDS):
            while not (state := await engine.runtime.guard_network()).holds:
                assert state.broken
        assert (state.broken, state.trouble) == ((), None)

    async def test_a_container_can_be_taken_off_the_network(self, engine: Engine) -> None:
        container = await engine.runtime.create(replace(engine.spec(UNTIL_ISOLATED), network="internet"))
        await start_and_feed(engine.runtime, container, [])
        await engine.until(container, b"ready\n")
        await engine.runtime.isolate(container)
        assert await engine.output(container) == b"ready\nisolated\n"
        assert (await engine.exit(container)).off_network

    @pytest.mark.parametrize("network", ["internet", "none"])
    async def test_who_keeps_its_network_or_never_had_one_lost_none(
        self, engine: Engine, network: Literal["internet", "none"]
    ) -> None:
        container = await engine.runtime.create(replace(engine.spec(EXIT_3), network=network))
        await start_and_feed(engine.runtime, container, [])
        assert not (await engine.exit(container)).off_network

    async def test_isolating_what_has_no_network_or_is_gone_is_no_error(self, engine: Engine) -> None:
        container = await engine.start(UNTIL_KILLED)
        await engine.runtime.isolate(container)
        await engine.runtime.isolate(container)
        await engine.runtime.remove(container)
        await engine.runtime.isolate(container)

    async def test_a_signal_to_a_container_that_does_not_run_is_no_error(self, engine: Engine) -> None:
        container = await engine.start(EXIT_3)
        await engine.exit(container)
        await engine.runtime.signal(container, "SIGINT")
        await engine.runtime.remove(container)
        await engine.runtime.signal(container, "SIGINT")

    async def test_layers_are_measured_of_running_containers_and_of_one_that_ended(
        self, engine: Engine
    ) -> None:
        container = await engine.start(UNTIL_KILLED)
        await engine.until(container, b"ready\n")
        assert (await engine.runtime.layer_sizes(engine.instance_id)).keys() == {container}
        assert (await engine.runtime.disk_uses(engine.instance_id)).keys() == {container}
        await engine.runtime.signal(container, "SIGKILL")
        await engine.exit(container)
        assert await engine.runtime.layer_sizes(engine.instance_id) == {}
        assert await engine.runtime.disk_uses(engine.instance_id) == {}
        assert await engine.runtime.layer_size(container) >= 0

    async def test_the_layers_of_other_installations_are_not_measured(self, engine: Engine) -> None:
        await engine.start(UNTIL_KILLED)
        assert await engine.runtime.layer_sizes(str(uuid.uuid4())) == {}

    async def test_the_engine_says_where_containers_write(self, engine: Engine) -> None:
        assert (await engine.runtime.storage_root()).startswith("/")

    async def test_removing_kills_and_is_idempotent(self, engine: Engine) -> None:
        container = await engine.start(UNTIL_KILLED)
        await engine.runtime.remove(container)
        assert await engine.runtime.list(engine.instance_id) == []
        await engine.runtime.remove(container)

    async def test_two_removals_at_once_both_succeed(self, engine: Engine) -> None:
        container = await engine.start(UNTIL_KILLED)
        await asyncio.gather(engine.runtime.remove(container), engine.runtime.remove(container))
        assert await engine.runtime.list(engine.instance_id) == []

    async def test_removing_ends_the_iteration_of_its_output(self, engine: Engine) -> None:
        container = await engine.start(UNTIL_KILLED)
        with engine.runtime.follow_output(container) as output:
            assert await asyncio.to_thread(next, output) == b"ready\n"
            reading = asyncio.create_task(asyncio.to_thread(list, output))
            await engine.runtime.remove(container)
            assert await asyncio.wait_for(reading, SECONDS) == []

    async def test_a_container_that_is_gone_is_named_so(self, engine: Engine) -> None:
        container = await engine.start(EXIT_3)
        await engine.runtime.remove(container)
        with pytest.raises(ContainerGone):
            await engine.runtime.exit_state(container)
        with pytest.raises(ContainerGone):
            await engine.runtime.layer_size(container)
        with pytest.raises(ContainerGone):
            await engine.runtime.start(container)
        with pytest.raises(ContainerGone):
            await engine.runtime.rename(container, engine.job_name())
        with pytest.raises(ContainerGone):
            await engine.runtime.commit(container, engine.image("gone"))
        for reading in (engine.runtime.follow_output, engine.runtime.read_output):
            with pytest.raises(ContainerGone), reading(container):
                pass

    async def test_starting_twice_is_refused(self, engine: Engine) -> None:
        container = await engine.start(EXIT_3)
        await engine.exit(container)
        with pytest.raises(ContainerError, match="started before"):
            await engine.runtime.start(container)

    async def test_a_watch_tells_of_starts_and_ends(self, engine: Engine) -> None:
        changed = threading.Event()
        container = await engine.runtime.create(engine.spec(EXIT_3))
        with engine.runtime.watch(engine.instance_id, changed.set):
            await self._told(changed, lambda: start_and_feed(engine.runtime, container, []))
            await self._told(changed, lambda: engine.runtime.remove(container))

    async def _told(self, changed: threading.Event, action: Callable[[], object]) -> None:
        changed.clear()
        result = action()
        assert asyncio.iscoroutine(result)
        await result
        assert await asyncio.to_thread(changed.wait, SECONDS)

    async def test_a_watch_that_was_left_is_silent(self, engine: Engine) -> None:
        calls: list[int] = []
        with engine.runtime.watch(engine.instance_id, lambda: calls.append(1)):
            pass
        before = len(calls)
        await engine.exit(await engine.start(EXIT_3))
        assert len(calls) == before

    # -- images made of containers -------------------------------------------------------------------------

    async def test_a_running_container_is_made_into_an_image_and_runs_on(self, engine: Engine) -> None:
        image = engine.image("a")
        async with engine.held(COUNT) as (container, held):
            made = await engine.runtime.commit(container, image)
            await held.send([b"123"])
            await held.finish()
            assert await engine.output(container) == b"got 3\n"
        [found] = await engine.runtime.environment_images(engine.instance_id)
        assert (found.id, found.reference, dict(found.labels)) == (made, image.reference, dict(image.labels))
        assert found.size >= 0
        assert utcnow() - found.created_at < timedelta(minutes=5)
        same = await engine.runtime.environment_image(image.reference)
        assert same is not None
        assert (same.id, same.reference, dict(same.labels)) == (made, image.reference, dict(image.labels))
        assert abs(same.created_at - found.created_at) <= timedelta(seconds=1)
        assert await engine.runtime.environment_image(engine.image("b").reference) is None
        assert await engine.runtime.image_id(image.reference) == made

    async def test_an_image_has_no_label_of_its_container_and_a_container_of_it_keeps_its_own(
        self, engine: Engine
    ) -> None:
        """Not even those of the image before it: what is committed may itself come of an image that was made."""
        named = dict(engine.image("a").labels)
        first = await engine.runtime.commit(
            await engine.start(EXIT_3), replace(engine.image("a"), labels={**named, "x": "y"})
        )
        spec = replace(engine.spec(ECHO), image_id=first)
        container = await engine.runtime.create(spec)
        found = next(one for one in await engine.runtime.list(engine.instance_id) if one.id == container)
        assert dict(found.labels).items() >= dict(spec.labels).items()
        await engine.runtime.commit(container, engine.image("b"))
        images = {one.reference: one for one in await engine.runtime.environment_images(engine.instance_id)}
        assert dict(images[engine.image("b").reference].labels) == dict(engine.image("b").labels)

    async def test_an_image_tells_its_size_and_one_that_is_gone_tells_none(self, engine: Engine) -> None:
        made = await engine.runtime.commit(await engine.start(EXIT_3), engine.image("a"))
        base = await engine.runtime.image_size(engine.image_id)
        [found] = await engine.runtime.environment_images(engine.instance_id)
        assert base <= await engine.runtime.image_size(made) == found.size
        await engine.runtime.remove_image(made)
        with pytest.raises(ContainerError):
            await engine.runtime.image_size(made)

    async def test_of_an_image_that_is_gone_nothing_is_created(self, engine: Engine) -> None:
        made = await engine.runtime.commit(await engine.start(EXIT_3), engine.image("a"))
        await engine.runtime.remove_image(made)
        with pytest.raises(ContainerError):
            await engine.runtime.create(replace(engine.spec(EXIT_3), image_id=made))
        assert await engine.runtime.image_id(made) is None

    async def test_images_of_other_installations_are_not_listed(self, engine: Engine) -> None:
        await engine.runtime.commit(await engine.start(EXIT_3), engine.image("a"))
        assert list(await engine.runtime.environment_images(str(uuid.uuid4()))) == []

    async def test_a_reference_goes_to_the_newest_image_and_the_older_one_can_still_be_removed(
        self, engine: Engine
    ) -> None:
        container = await engine.start(EXIT_3)
        older = await engine.runtime.commit(container, engine.image("a"))
        newer = await engine.runtime.commit(container, engine.image("a"))
        found = {one.id: one.reference for one in await engine.runtime.environment_images(engine.instance_id)}
        assert found == {older: older, newer: engine.image("a").reference}
        await engine.runtime.remove_image(older)
        assert [one.id for one in await engine.runtime.environment_images(engine.instance_id)] == [newer]

    async def test_an_image_can_be_removed_once_no_container_is_of_it(self, engine: Engine) -> None:
        image = engine.image("a")
        made = await engine.runtime.commit(await engine.start(EXIT_3), image)
        container = await engine.runtime.create(replace(engine.spec(EXIT_3), image_id=made))
        await start_and_feed(engine.runtime, container, [])
        await engine.exit(container)
        with pytest.raises(ContainerError):
            await engine.runtime.remove_image(image.reference)
        assert await engine.runtime.image_id(image.reference) == made
        await engine.runtime.remove(container)
        await engine.runtime.remove_image(image.reference)
        assert await engine.runtime.image_id(image.reference) is None
        await engine.runtime.remove_image(image.reference)  # gone is no error
