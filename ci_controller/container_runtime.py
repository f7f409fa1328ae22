"""The seam to the engine: what the core needs of Docker, in our own words, so that a fake can stand in.

What takes something away tolerates "gone"; what makes something refuses a name that is taken. Only
`docker_engine` imports the engine's library; its errors come out as EngineUnavailable (the engine as a whole:
charge nobody), ContainerGone or ContainerError (this container alone).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class ContainerGone(Exception):
    """There is no such container (any more)."""


class ContainerError(Exception):
    """The engine refused an operation on one container; the message is the engine's."""


class ContainerState(StrEnum):
    """What the engine says of a container."""

    CREATED = "created"  # never started
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """Everything that is decided about a container before it exists. No user input reaches any field."""

    name: str
    image_id: str
    command: tuple[str, ...]
    labels: Mapping[str, str]
    memory_bytes: int = 2 * 1024**3
    cpus: float = 2.0
    pids: int = 512
    disk_bytes: int = 4 * 1024**3  # of its writable layer; a single file is never larger
    network: str = "internet"  # or "none"


@dataclass(frozen=True, slots=True)
class NewImage:
    """What an image made of a container is called, and all the labels it has."""

    reference: str  # as `name:tag`
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class EnvironmentImage:
    """One image of this installation that a container was made into."""

    id: str
    reference: str
    labels: Mapping[str, str]
    size: int  # in bytes, with what it was made on
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ObservedContainer:
    """One container of this installation at the moment of a listing."""

    id: str
    name: str
    labels: Mapping[str, str]
    state: ContainerState
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ExitState:
    """How a container ended, as far as the engine knows. Its exit code alone is never a verdict."""

    exit_code: int
    oom_killed: bool = False  # a process in it was, whether or not its first one
    error: str = ""
    memory_limit: int | None = field(default=None, compare=False)  # bytes
    off_network: bool = field(default=False, compare=False)  # it was taken off its network as it ran


@dataclass(frozen=True, slots=True)
class NetworkState:
    """What was found of the fence around the jobs' network, at the moment of asking."""

    broken: tuple[str, ...] = ()  # was wrong with its rules until they were set again: ask once more
    trouble: str | None = None  # why there is no fence, and the way out
    accepted: bool = False  # the operator lets jobs run without it
    families: tuple[str, ...] = ()  # of addresses that it is about: IPv4, and IPv6 where this host has it

    @property
    def holds(self) -> bool:
        """Tell whether jobs may be claimed and started."""
        return not self.broken and (self.trouble is None or self.accepted)


@dataclass(frozen=True, slots=True)
class DiskUse:
    """What a running container did to the engine's disk, as far as anybody tells us."""

    written_bytes: int  # since it started, whether or not a file still has them
    files: int | None = (
        None  # that it has, in its writable layer or open and unlinked; None: cannot be counted
    )


class ContainerInput(Protocol):
    """The standard input of one running container, held open until it is closed: by us, or by our death."""

    async def send(self, chunks: Iterable[bytes]) -> None:
        """All of `chunks`, read in a worker thread, stand in the input, or the container has ended.

        May be called again and again; what the chunks raise is raised here. A container that stopped reading
        and ended early is no error: its own output says why. One that lives and takes nothing for long is a
        ContainerError. A cancelled caller waits until its chunks are read no more, and the input has ended.
        """
        ...

    async def finish(self) -> None:
        """The container reads the end of its input behind what was sent."""
        ...

    def close(self) -> None:
        """Nothing of ours is open any more: a container that was not told the end reads it now."""
        ...


class ContainerRuntime(Protocol):
    """The engine, asynchronously: each call returns when the engine has answered, bounded in time."""

    async def close(self) -> None:
        """Every thread and connection of ours to the engine is gone."""
        ...

    async def ping(self) -> None:
        """The engine answers; raises EngineUnavailable."""
        ...

    async def image_id(self, reference: str) -> str | None:
        """Return the immutable id of an image present on the engine, None if it is not there or no name of one."""
        ...

    async def image_size(self, image_id: str) -> int:
        """Return the bytes of an image, with what it was made on; raises ContainerError where it is not there."""
        ...

    async def list(self, instance_id: str) -> list[ObservedContainer]:
        """Return every container of that installation, running or not, whole or not at all."""
        ...

    async def guard_network(self) -> NetworkState:
        """Return whether the fence around the jobs' network stood whole; one that did not has been set again.

        Raises EngineUnavailable.
        """
        ...

    async def create(self, spec: ContainerSpec) -> str:
        """The container exists under its name with those labels; returns its id.

        Raises ContainerError when any other container has the name.
        """
        ...

    async def start(self, container_id: str) -> ContainerInput:
        """The container runs and waits for its input; a container on the jobs' network has its own end of it
        guarded. Raises ContainerError where that cannot be, or it was started before.

        The caller closes the input; whenever this raises, or its caller is cancelled, the input has ended.
        """
        ...

    async def rename(self, container_id: str, name: str) -> None:
        """The container has that name; raises ContainerError when any other container has it."""
        ...

    async def commit(self, container_id: str, image: NewImage) -> str:
        """An image holds what the container's files are now, under that reference; returns its id.

        It has the labels given and none of the container's. The container stands still meanwhile.
        """
        ...

    async def environment_image(self, reference: str) -> EnvironmentImage | None:
        """Return the image of that reference, whoever made it; None where there is none."""
        ...

    async def environment_images(self, instance_id: str) -> Sequence[EnvironmentImage]:
        """Return every image of that installation that a container was made into, by the labels it was given."""
        ...

    async def remove_image(self, reference: str) -> None:
        """No image has that reference; raises ContainerError while a container still uses it."""
        ...

    async def isolate(self, container_id: str) -> None:
        """The container has no network any more; it is no error if it had none, or is gone."""
        ...

    async def signal(self, container_id: str, signal: str) -> None:
        """The container's first process has been sent that signal (`SIGINT`, `SIGKILL` …); a container
        that is not running is no error."""
        ...

    async def exit_state(self, container_id: str) -> ExitState | None:
        """Return how the container ended, None while it runs; raises ContainerGone."""
        ...

    async def storage_root(self) -> str:
        """Return the directory, on the engine's machine, that holds what containers write."""
        ...

    async def layer_sizes(self, instance_id: str) -> Mapping[str, int]:
        """Return the bytes in the writable layer of each running container of that installation, by id: what its
        files say of their sizes, so without unlinked ones. Takes the engine some 4 µs per file [measured]."""
        ...

    async def layer_size(self, container_id: str) -> int:
        """Return the same of one container, running or not; raises ContainerGone."""
        ...

    async def disk_uses(self, instance_id: str) -> Mapping[str, DiskUse]:
        """Return what each running container of that installation did to the disk, by id. Looks at every file."""
        ...

    async def remove(self, container_id: str) -> None:
        """The container is gone, killed if it ran; it is no error if it was gone before."""
        ...

    def follow_output(self, container_id: str) -> AbstractContextManager[Iterator[bytes]]:
        """Return the container's output from its very beginning, then live, until it ends. Synchronous: each
        pump reads it in a thread of its own. Leaving the context from any thread ends the iteration.

        The end of the iteration proves nothing: the engine may have gone, or the container was removed.
        """
        ...

    def read_output(self, container_id: str) -> AbstractContextManager[Iterator[bytes]]:
        """Return what the engine has of the container's output, from its beginning; for a container that has
        exited. Synchronous. The iteration is bounded in time, and its end means that this was all there is:
        raises EngineUnavailable where it was not."""
        ...

    def watch(self, instance_id: str, on_change: Callable[[], None]) -> AbstractContextManager[None]:
        """While the context is open, `on_change` is called (in a thread) whenever a container of that
        installation changed state; it reconnects by itself. A hint, never the truth."""
        ...


async def start_and_feed(runtime: ContainerRuntime, container_id: str, chunks: Iterable[bytes]) -> None:
    """The container was started, and all of `chunks` and the end stand in its input: for one that waits for nobody."""
    standard_input = await runtime.start(container_id)
    try:
        await standard_input.send(chunks)
        await standard_input.finish()
    finally:
        standard_input.close()
