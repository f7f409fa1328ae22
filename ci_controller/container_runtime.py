"""The seam to the engine: what the core needs of Docker, in our own words, so that a fake can stand in.

Calls are idempotent: create tolerates "exists", remove tolerates "gone". Only `docker_engine` imports the
engine's library; its errors come out as EngineUnavailable (the engine as a whole: charge nobody),
ContainerGone or ContainerError (this container alone).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
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

    CREATED = "created"  # never started: it may hold half of anything, so it is never adopted
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """Everything that is decided about a container before it exists. No user input reaches any field but
    through labels' values that are our own ids."""

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

        A container of ours with that name and labels that was never started is removed first and made
        anew. Raises ContainerError when a foreign container has the name, and whenever one that was
        started has it.
        """
        ...

    async def start_and_feed(
        self, container_id: str, chunks: Iterable[bytes], on_started: Callable[[], None]
    ) -> None:
        """The container was started and all of `chunks` stand in its standard input, which is then closed.

        `on_started` is called (in a worker thread) between the two; what it raises ends the feeding and is
        raised here, and closing the input tells the container that nothing more will come. A container
        that stopped reading and ended early is no error: its own output says why. A container on the jobs'
        network whose own end of it cannot be guarded gets nothing: ContainerError.
        """
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
