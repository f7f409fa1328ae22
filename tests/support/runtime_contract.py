"""What every `ContainerRuntime` must do: one suite, run over the fake and over the real engine.

A test module provides the fixtures `runtime` and `image_id` and makes `class TestX(RuntimeContract)`. The
containers run the small programs below; `FAKE_SCRIPTS` says how the fake acts them.
"""

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

import pytest

from ci_controller import labels
from ci_controller.container_runtime import (
    ContainerError,
    ContainerGone,
    ContainerRuntime,
    ContainerSpec,
    ContainerState,
    ExitState,
    ObservedContainer,
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

    def spec(self, program: str, attempt: int = 1) -> ContainerSpec:
        job_id = f"{self.instance_id[:8]}-job"
        return ContainerSpec(
            name=labels.container_name("contract-", job_id, attempt),
            image_id=self.image_id,
            command=command(program),
            labels=labels.run_labels(self.instance_id, job_id, attempt, epoch=1),
            memory_bytes=64 * 1024**2,
            network="none",
        )

    async def start(self, program: str, feed: tuple[bytes, ...] = ()) -> str:
        container = await self.runtime.create(self.spec(program))
        await self.runtime.start_and_feed(container, feed, lambda: None)
        return container

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
        await asyncio.gather(*(engine.runtime.create(engine.spec(ECHO, attempt)) for attempt in range(1, 9)))
        users = {int(found.labels[labels.UID]) for found in await engine.runtime.list(engine.instance_id)}
        assert len(users) == 8
        assert users <= set(USERS)

    async def test_other_installations_are_not_listed(self, engine: Engine) -> None:
        await engine.runtime.create(engine.spec(ECHO))
        assert await engine.runtime.list(str(uuid.uuid4())) == []

    async def test_creating_again_replaces_a_container_that_never_started(self, engine: Engine) -> None:
        first = await engine.runtime.create(engine.spec(ECHO))
        later = replace(engine.spec(ECHO), labels={**engine.spec(ECHO).labels, labels.EPOCH: "2"})
        second = await engine.runtime.create(later)
        assert first != second
        assert (await engine.only()).id == second

    async def test_creating_over_a_started_container_is_refused(self, engine: Engine) -> None:
        container = await engine.start(EXIT_3)
        with pytest.raises(ContainerError, match="started"):
            await engine.runtime.create(engine.spec(EXIT_3))
        assert (await engine.only()).id == container

    async def test_a_foreign_container_with_the_name_is_never_touched(self, engine: Engine) -> None:
        foreign = replace(engine.spec(ECHO), labels={labels.INSTANCE: engine.instance_id})
        container = await engine.runtime.create(foreign)
        with pytest.raises(ContainerError, match="not ours"):
            await engine.runtime.create(engine.spec(ECHO))
        assert (await engine.only()).id == container

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

    async def test_on_started_is_called_in_a_thread_when_the_container_runs_unfed(
        self, engine: Engine
    ) -> None:
        events: list[str] = []

        def chunks() -> Iterator[bytes]:
            events.append("fed")
            yield b"x"

        container = await engine.runtime.create(engine.spec(COUNT))
        await engine.runtime.start_and_feed(
            container, chunks(), lambda: events.append(threading.current_thread().name)
        )
        assert len(events) == 2
        assert events[0] != threading.main_thread().name
        assert events[1] == "fed"

    async def test_an_error_of_on_started_ends_the_input_and_is_raised(self, engine: Engine) -> None:
        def refuse() -> None:
            raise LookupError("the fence is stale")

        container = await engine.runtime.create(engine.spec(COUNT))
        with pytest.raises(LookupError):
            await engine.runtime.start_and_feed(container, [b"never sent"], refuse)
        assert await engine.output(container) == b"got 0\n"

    async def test_an_error_of_the_chunks_ends_the_input_and_is_raised(self, engine: Engine) -> None:
        def broken() -> Iterator[bytes]:
            yield b"1234567"
            raise LookupError("the archive is damaged")

        container = await engine.runtime.create(engine.spec(COUNT))
        with pytest.raises(LookupError):
            await engine.runtime.start_and_feed(container, broken(), lambda: None)
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
        await engine.runtime.start_and_feed(container, [], lambda: None)
        await engine.until(container, b"ready\n")
        await engine.runtime.isolate(container)
        assert await engine.output(container) == b"ready\nisolated\n"
        assert (await engine.exit(container)).off_network

    @pytest.mark.parametrize("network", ["internet", "none"])
    async def test_who_keeps_its_network_or_never_had_one_lost_none(
        self, engine: Engine, network: Literal["internet", "none"]
    ) -> None:
        container = await engine.runtime.create(replace(engine.spec(EXIT_3), network=network))
        await engine.runtime.start_and_feed(container, [], lambda: None)
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
            await engine.runtime.start_and_feed(container, [], lambda: None)
        for reading in (engine.runtime.follow_output, engine.runtime.read_output):
            with pytest.raises(ContainerGone), reading(container):
                pass

    async def test_starting_twice_is_refused(self, engine: Engine) -> None:
        container = await engine.start(EXIT_3)
        await engine.exit(container)
        with pytest.raises(ContainerError):
            await engine.runtime.start_and_feed(container, [], lambda: None)

    async def test_a_watch_tells_of_starts_and_ends(self, engine: Engine) -> None:
        changed = threading.Event()
        container = await engine.runtime.create(engine.spec(EXIT_3))
        with engine.runtime.watch(engine.instance_id, changed.set):
            await self._told(changed, lambda: engine.runtime.start_and_feed(container, [], lambda: None))
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
