"""An engine in memory that passes the same contract suite as the real one, for planner and controller tests.

    def script(fed: bytes) -> Iterator[Step]:
        yield b"hello\\n"           # output
        yield gate                  # a threading.Event: the container runs until it is set
        yield UntilSignal("SIGINT")  # ... or until that signal comes
        yield ExitState(1)          # the end; a script that just ends exits with 0

    runtime = FakeContainerRuntime(script=script)

A script runs in a thread of its own once its container's input has ended, and gets all that was fed. What a
container does before that is `runtime.ahead(fed)`, asked after each piece of its input. SIGKILL, `end()` and
removal end a container whatever its script waits for. Switches: `down`, `endless` (following an output goes on
when its container has ended), `lose_reply_of()`, `vanish()`, `end()`; what happened can be read from `calls` and
`containers`.
"""

import asyncio
import contextvars
import itertools
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

from ci_common.clock import Clock, SystemClock
from ci_common.crash_points import crash_point
from ci_common.errors import EngineUnavailable
from ci_controller import labels
from ci_controller.container_runtime import (
    ContainerError,
    ContainerGone,
    ContainerInput,
    ContainerSpec,
    ContainerState,
    DiskUse,
    EnvironmentImage,
    ExitState,
    NetworkState,
    NewImage,
    ObservedContainer,
)
from ci_controller.container_users import free_user

_POLL_SECONDS: Final = 0.005  # how soon a waiting script sees that its container was killed


@dataclass(frozen=True, slots=True)
class UntilSignal:
    """A step of a script: the container runs until it gets that signal."""

    name: str


@dataclass(frozen=True, slots=True)
class UntilIsolated:
    """A step of a script: the container runs until it has no network."""


Step = bytes | ExitState | threading.Event | UntilSignal | UntilIsolated
Script = Callable[[bytes], Iterable[Step]]
Ahead = Callable[[bytes], Iterable[Step] | None]


def _nothing_yet(fed: bytes) -> None:
    return None


def _exit_at_once(fed: bytes) -> Iterable[Step]:
    return ()


@dataclass(slots=True)
class FakeContainer:
    """What the fake knows of one container; tests may look at everything."""

    id: str
    spec: ContainerSpec
    uid: int
    created_at: datetime
    state: ContainerState = ContainerState.CREATED
    exit: ExitState | None = None
    fed: bytes = b""
    output: list[bytes] = field(default_factory=list[bytes])
    signals: list[str] = field(default_factory=list[str])
    isolated: bool = False
    layer_bytes: int = 0  # what it takes of the disk: tests set these three
    written_bytes: int = 0
    files: int | None = 0

    def observed(self) -> ObservedContainer:
        carried = {**self.spec.labels, labels.UID: str(self.uid)}
        return ObservedContainer(self.id, self.spec.name, carried, self.state, self.created_at)


class FakeInput:
    """What was sent stands in the container's `fed`; at the end of the input its script begins."""

    def __init__(
        self,
        container: FakeContainer,
        threads: Executor,
        hear: Callable[[FakeContainer], None],
        begin: Callable[[FakeContainer], None],
    ) -> None:
        self._container = container
        self._threads = threads
        self._hear = hear
        self._begin = begin
        self._lock = threading.Lock()
        self._has_ended = False

    async def send(self, chunks: Iterable[bytes]) -> None:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        sending = loop.run_in_executor(self._threads, lambda: context.run(self._send, chunks))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            self.close()
            await asyncio.gather(sending, return_exceptions=True)
            raise

    async def finish(self) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            ended, self._has_ended = self._has_ended, True
        if not ended:
            self._begin(self._container)

    def _send(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            with self._lock:
                if self._has_ended or self._container.state is not ContainerState.RUNNING:
                    return
                self._container.fed += chunk
            self._hear(self._container)
            crash_point("during_feed")


class FakeContainerRuntime:
    """A `ContainerRuntime` without an engine."""

    def __init__(
        self,
        script: Script = _exit_at_once,
        scripts: Mapping[tuple[str, ...], Script] | None = None,
        images: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self.script = script
        self.ahead: Ahead = _nothing_yet
        self.scripts = dict(scripts or {})  # by the container's command, before `script`
        self.images = dict(images if images is not None else {"ci-runner:latest": "sha256:" + "0" * 64})
        self.down = False
        self.endless = False
        self.waiting_readers = 0  # of outputs, who have read all that there is
        self.network = NetworkState()  # what `guard_network` finds; what is broken it sets again
        self.root = tempfile.gettempdir()
        self.calls: list[tuple[str, str]] = []  # (method, container's name), in order
        self._containers: dict[str, FakeContainer] = {}
        self._made: dict[str, EnvironmentImage] = {}  # of containers, by id
        self._changed = threading.Condition(threading.RLock())
        self._lost_replies: defaultdict[str, int] = defaultdict(int)
        self._watchers: dict[int, tuple[str, Callable[[], None]]] = {}
        self._ids = itertools.count(1)
        self._engine = os.urandom(8).hex()  # no two engines make containers of the same id
        self._threads = ThreadPoolExecutor(16, "fake-engine")
        self._scripts: list[threading.Thread] = []

    # -- switches and views for tests ----------------------------------------------------------------------

    @property
    def containers(self) -> dict[str, FakeContainer]:
        """The containers that exist, by name."""
        with self._changed:
            return {container.spec.name: container for container in self._containers.values()}

    def lose_reply_of(self, call: Literal["create", "start", "rename"]) -> None:
        """The next such call takes effect, but its caller gets EngineUnavailable; the input of a start has ended."""
        self._lost_replies[call] += 1

    def vanish(self, container_id: str) -> None:
        """The container is gone as by `docker rm -f`."""
        self._drop(self._containers[container_id])

    def end(self, container_id: str, exit_state: ExitState) -> None:
        """The container has ended like that, whatever its script was doing."""
        self._exit(self._containers[container_id], exit_state)

    # -- ContainerRuntime ----------------------------------------------------------------------------------

    async def close(self) -> None:
        with self._changed:
            for container in tuple(self._containers.values()):
                self._exit(container, ExitState(137))
        self._threads.shutdown()
        for thread in self._scripts:
            thread.join()

    async def ping(self) -> None:
        self._answer("ping")

    async def image_id(self, reference: str) -> str | None:
        self._answer("image_id")
        made = {one.reference: one.id for one in self._made.values()}
        known = {**self.images, **{image: image for image in self.images.values()}, **made}
        return reference if reference in self._made else known.get(reference)

    async def image_size(self, image_id: str) -> int:
        self._answer("image_size")
        if image_id in self._made:
            return self._made[image_id].size
        if image_id not in self.images.values():
            raise ContainerError(f"no such image: {image_id}")
        return 0

    async def list(self, instance_id: str) -> list[ObservedContainer]:
        self._answer("list")
        with self._changed:
            return [
                container.observed()
                for container in self._containers.values()
                if container.spec.labels.get(labels.INSTANCE) == instance_id
            ]

    async def guard_network(self) -> NetworkState:
        self._answer("guard_network")
        found = self.network
        if found.broken:
            self.network = NetworkState()
        return found

    async def create(self, spec: ContainerSpec) -> str:
        self._answer("create", spec.name)
        if spec.image_id not in {*self.images.values(), *self._made}:
            raise ContainerError(f"no such image: {spec.image_id}")
        made = self._made.get(spec.image_id)
        labelled = replace(spec, labels={**made.labels, **spec.labels}) if made else spec
        with self._changed:
            self._require_free(spec.name)
            uid = free_user({other.uid for other in self._containers.values()}, min)
            container = FakeContainer(self._new_id(), labelled, uid, self._clock.now())
            self._containers[container.id] = container
        self._reply("create", spec.name)
        return container.id

    async def start(self, container_id: str) -> ContainerInput:
        container = self._find(container_id, "start")
        with self._changed:
            if container.state is not ContainerState.CREATED:
                raise ContainerError(f"the container {container.spec.name} was started before")
            container.state = ContainerState.RUNNING
        self._notify(container)
        held = FakeInput(container, self._threads, self._hear, self._begin)
        try:
            self._reply("start", container.spec.name)
        except EngineUnavailable:
            held.close()
            raise
        return held

    async def rename(self, container_id: str, name: str) -> None:
        container = self._find(container_id, "rename")
        with self._changed:
            self._require_free(name)
            container.spec = replace(container.spec, name=name)
        self._reply("rename", name)

    async def commit(self, container_id: str, image: NewImage) -> str:
        container = self._find(container_id, "commit")
        made = EnvironmentImage(
            f"sha256:{self._new_id()}",
            image.reference,
            dict(image.labels),
            container.layer_bytes,
            self._clock.now(),
        )
        for older in [one for one in self._made.values() if one.reference == image.reference]:
            self._made[older.id] = replace(older, reference=older.id)
        self._made[made.id] = made
        return made.id

    async def environment_image(self, reference: str) -> EnvironmentImage | None:
        self._answer("environment_image")
        return next((one for one in self._made.values() if one.reference == reference), None)

    async def environment_images(self, instance_id: str) -> Sequence[EnvironmentImage]:
        self._answer("environment_images")
        wanted = {(labels.INSTANCE, instance_id), (labels.KIND, labels.KIND_ENVIRONMENT)}
        return [one for one in self._made.values() if wanted <= set(one.labels.items())]

    async def remove_image(self, reference: str) -> None:
        self._answer("remove_image")
        for image in [one for one in self._made.values() if reference in (one.id, one.reference)]:
            if any(one.spec.image_id == image.id for one in self._containers.values()):
                raise ContainerError(f"the image {reference} is used by a container")
            del self._made[image.id]

    async def signal(self, container_id: str, signal: str) -> None:
        self._answer("signal", container_id)
        with self._changed:
            container = self._containers.get(container_id)
            if container is None or container.state is not ContainerState.RUNNING:
                return
            container.signals.append(signal)
            if signal == "SIGKILL":
                self._exit(container, ExitState(137))
            self._changed.notify_all()

    async def isolate(self, container_id: str) -> None:
        self._answer("isolate", container_id)
        if container := self._containers.get(container_id):
            container.isolated = True

    async def exit_state(self, container_id: str) -> ExitState | None:
        return self._find(container_id, "exit_state").exit

    async def storage_root(self) -> str:
        self._answer("storage_root")
        return self.root

    async def layer_sizes(self, instance_id: str) -> dict[str, int]:
        return {one.id: one.layer_bytes for one in self._running(instance_id)}

    async def layer_size(self, container_id: str) -> int:
        return self._find(container_id, "layer_size").layer_bytes

    async def disk_uses(self, instance_id: str) -> dict[str, DiskUse]:
        return {one.id: DiskUse(one.written_bytes, one.files) for one in self._running(instance_id)}

    async def remove(self, container_id: str) -> None:
        self._answer("remove", container_id)
        container = self._containers.get(container_id)
        if container is not None:
            self._drop(container)

    @contextmanager
    def follow_output(self, container_id: str) -> Generator[Iterator[bytes]]:
        container = self._find(container_id, "follow_output")
        left = threading.Event()
        try:
            yield self._follow(container, left)
        finally:
            left.set()
            with self._changed:
                self._changed.notify_all()

    def read_output(self, container_id: str) -> AbstractContextManager[Iterator[bytes]]:
        container = self._find(container_id, "read_output")
        return nullcontext(iter(tuple(container.output)))

    @contextmanager
    def watch(self, instance_id: str, on_change: Callable[[], None]) -> Generator[None]:
        key = next(self._ids)
        self._watchers[key] = (instance_id, on_change)
        try:
            yield
        finally:
            del self._watchers[key]

    # -- inside --------------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        return f"{self._engine}{next(self._ids):048x}"

    def _running(self, instance_id: str) -> Sequence[FakeContainer]:
        self._answer("layer_sizes")
        with self._changed:
            return [
                container
                for container in self._containers.values()
                if container.state is ContainerState.RUNNING
                and container.spec.labels.get(labels.INSTANCE) == instance_id
            ]

    def _answer(self, call: str, container: str = "") -> None:
        found = self._containers.get(container)
        self.calls.append((call, found.spec.name if found else container))
        if self.down:
            raise EngineUnavailable("the fake engine is down")

    def _reply(self, call: str, container: str) -> None:
        if self._lost_replies[call]:
            self._lost_replies[call] -= 1
            raise EngineUnavailable(f"the reply to {call} was lost")

    def _find(self, container_id: str, call: str) -> FakeContainer:
        self._answer(call, container_id)
        with self._changed:
            if container_id not in self._containers:
                raise ContainerGone(container_id)
            return self._containers[container_id]

    def _require_free(self, name: str) -> None:
        if name in self.containers:
            raise ContainerError(f"the name {name} is taken by another container")

    def _drop(self, container: FakeContainer) -> None:
        with self._changed:
            self._exit(container, ExitState(137))
            self._containers.pop(container.id, None)
        self._notify(container)

    def _exit(self, container: FakeContainer, exit_state: ExitState) -> None:
        with self._changed:
            if container.state is not ContainerState.RUNNING:
                return
            container.state = ContainerState.EXITED
            container.exit = replace(
                exit_state, off_network=container.isolated and container.spec.network != "none"
            )
            self._changed.notify_all()
        self._notify(container)

    def _hear(self, container: FakeContainer) -> None:
        """The container does what it does with so much of its input."""
        if (steps := self.ahead(container.fed)) is not None:
            self._in_thread(self._play, container, steps)

    def _begin(self, container: FakeContainer) -> None:
        """The input has ended, and the script runs."""
        self._in_thread(self._run, container)

    def _in_thread(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        thread.start()
        with self._changed:
            self._scripts = [*(one for one in self._scripts if one.is_alive()), thread]

    def _run(self, container: FakeContainer) -> None:
        script = self.scripts.get(container.spec.command, self.script)
        self._play(container, script(container.fed))
        self._exit(container, ExitState(0))

    def _play(self, container: FakeContainer, steps: Iterable[Step]) -> None:
        for step in steps:
            match step:
                case bytes():
                    self._write(container, step)
                case ExitState():
                    self._exit(container, step)
                case threading.Event():
                    self._wait(container, step.is_set)
                case UntilIsolated():
                    self._wait(container, lambda: container.isolated)
                case UntilSignal(name):
                    self._wait(container, lambda name=name: name in container.signals)
            if container.state is not ContainerState.RUNNING:
                return

    def _write(self, container: FakeContainer, data: bytes) -> None:
        with self._changed:
            if container.state is ContainerState.RUNNING:
                container.output.append(data)
                self._changed.notify_all()

    def _wait(self, container: FakeContainer, over: Callable[[], bool]) -> None:
        with self._changed:
            while not over() and container.state is ContainerState.RUNNING:
                self._changed.wait(_POLL_SECONDS)

    def _follow(self, container: FakeContainer, left: threading.Event) -> Iterator[bytes]:
        for index in itertools.count():
            with self._changed:
                self.waiting_readers += 1
                while not self._follow_is_over(container, left) and index >= len(container.output):
                    # Timed, because `down` is a plain attribute that wakes nobody.
                    self._changed.wait(_POLL_SECONDS)
                self.waiting_readers -= 1
                if left.is_set() or self.down or index >= len(container.output):
                    return
                data = container.output[index]
            yield data

    def _follow_is_over(self, container: FakeContainer, left: threading.Event) -> bool:
        ended = container.state is not ContainerState.RUNNING and not self.endless
        return left.is_set() or self.down or ended

    def _notify(self, container: FakeContainer) -> None:
        for instance_id, on_change in tuple(self._watchers.values()):
            if instance_id == container.spec.labels.get(labels.INSTANCE):
                on_change()
