"""The standard input of one container, over a connection to the engine that is held open from before its start."""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Final, Self, TypeVar

from ci_common.crash_points import crash_point
from ci_controller.container_runtime import ContainerError
from ci_controller.docker_engine import DockerEngine, EngineStream
from ci_controller.docker_streams import StreamHolder

_STALL_SECONDS: Final = 0.5  # without progress, until we ask whether the container is still there
_READING: Final = frozenset({"created", "running", "paused"})

Result = TypeVar("Result")


class DockerInput:
    """A `ContainerInput` of the real engine. At most one call at a time, but for `close`."""

    def __init__(self, engine: DockerEngine, container: str, threads: Executor, send_timeout: float) -> None:
        self._engine = engine
        self._container = container
        self._threads = threads
        self._send_timeout = send_timeout
        self._holder = StreamHolder()
        self._stream: EngineStream | None = None
        self._has_ended = False  # the container, or its input

    async def open(self, started: Callable[[], None]) -> Self:
        """The container runs with its input held open, and `started` was called, in a thread, after its start."""
        try:
            await self._in_thread(lambda: self._start(started))
        except BaseException:
            self.close()
            raise
        return self

    async def send(self, chunks: Iterable[bytes]) -> None:
        await self._in_thread(lambda: self._send_all(chunks))

    async def finish(self) -> None:
        if self._stream is not None:
            self._stream.end_input()
        self._has_ended = True

    def close(self) -> None:
        self._has_ended = True
        self._holder.abort()
        if self._stream is not None:
            self._stream.close()

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        """Return what came of the work; a cancelled caller ends the input, then waits for the thread."""
        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            self._holder.abort()
            await asyncio.gather(working, return_exceptions=True)
            raise

    # -- in worker threads ---------------------------------------------------------------------------------

    def _start(self, started: Callable[[], None]) -> None:
        # The engine would start an exited container a second time, and attaching to a running one and
        # leaving again would end an input that somebody else may still fill.
        if self._status() != "created":
            raise ContainerError("the container was started before")
        # Before the start: a container whose input nobody ever attached would wait for it for ever.
        self._stream = self._engine.attach_input(self._container)
        if not self._holder.take(self._stream):
            return  # nobody wants it any more: it is never started
        self._engine.act(self._container, lambda api: api.start(self._container))
        started()

    def _status(self) -> str:
        return self._engine.act(
            self._container, lambda api: api.inspect_container(self._container)["State"]["Status"]
        )

    def _send_all(self, chunks: Iterable[bytes]) -> None:
        assert self._stream is not None, "it was opened"
        for chunk in chunks:
            if self._has_ended or not self._send(self._stream, chunk):
                self._has_ended = True
                return
            crash_point("during_feed")

    def _send(self, stream: EngineStream, chunk: bytes) -> bool:
        """Return whether the container took all of it; False: it has ended, or its input has."""
        view, taken_at = memoryview(chunk), time.monotonic()
        while view:
            try:
                view, taken_at = view[stream.send(view, _STALL_SECONDS) :], time.monotonic()
            except TimeoutError:
                # The engine does not break the pipe when a container leaves with its input unread.
                if self._status() not in _READING:
                    return False
                self._check_patience(time.monotonic() - taken_at)
            except OSError:
                return False
        return True

    def _check_patience(self, stalled_for: float) -> None:
        if stalled_for > self._send_timeout:
            raise ContainerError(f"the container took none of its input for {self._send_timeout:.0f} s")
