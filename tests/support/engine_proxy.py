"""A Unix socket in front of the real engine that a test can cut, stop or rob of an answer, for its own clients only."""

import asyncio
import tempfile
import threading
from collections.abc import Coroutine, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_ENGINE = "/var/run/docker.sock"
# Of the loop, until everything that was connected has its handler: asyncio loses the socket of a connection that it has
# accepted for a server that is closed in that very moment.
_TURNS = 5


class EngineProxy:
    """Passes bytes both ways between `path` and the engine, while it is up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0  # answers that were kept from whoever asked
        self._losing: tuple[bytes, bytes] | None = None
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._passing)

    async def up(self) -> None:
        """The engine answers."""
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def down(self) -> None:
        """Nothing listens any more, and every connection is broken."""
        if self._server is None:
            return
        server, self._server = self._server, None  # who has knocked already is turned away
        self.path.unlink()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        server.close()
        for task in tuple(self._passing):
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def hang(self) -> None:
        """Connections are made and stay open, but nothing passes, until `flow`."""
        self._flowing.clear()

    async def flow(self) -> None:
        """What was held back passes, and everything after it."""
        self._flowing.set()

    async def lose_answer_to(self, method: bytes, path: bytes) -> None:
        """The next request with that in its first line is carried out; its answer is lost with its connection."""
        self._losing = (method, path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # it knocked a moment before it went down
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        ends, robbed = [writer], asyncio.Event()
        try:
            there, back = await asyncio.open_unix_connection(_ENGINE)
            ends.append(back)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask(reader, back, robbed))
                group.create_task(self._answer(there, writer, robbed))
        except asyncio.CancelledError:
            for end in ends:
                end.transport.abort()  # broken off, with whatever is still on its way
            # Not raised again: asyncio's server reports a handler that was cancelled as an error.
        finally:
            self._passing.discard(task)
            for end in ends:  # all of them before the first is waited for: that may be broken off
                end.close()
            for end in ends:
                with suppress(OSError):
                    await end.wait_closed()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, robbed: asyncio.Event
    ) -> None:
        with suppress(OSError):  # one side has gone: the other sees the end of its input
            while data := await reader.read(1 << 16):
                if self._losing and _asks(data, *self._losing):
                    self._losing = None
                    robbed.set()
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, robbed: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                if robbed.is_set():
                    self.lost += 1
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()
            writer.write_eof()


def _asks(data: bytes, method: bytes, path: bytes) -> bool:
    """Tell whether a request begins here: a client waits for each answer before it asks again."""
    first_line = data.partition(b"\r\n")[0]
    return first_line.startswith(method) and path in first_line


class EngineInBetween:
    """An `EngineProxy` that runs in a thread of its own, for tests that do not run in a loop."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._proxy = EngineProxy(path)

    @property
    def url(self) -> str:
        """What to put into DOCKER_HOST."""
        return f"unix://{self._proxy.path}"

    @property
    def lost(self) -> int:
        return self._proxy.lost

    def up(self) -> None:
        self._do(self._proxy.up())

    def down(self) -> None:
        self._do(self._proxy.down())

    def hang(self) -> None:
        self._do(self._proxy.hang())

    def flow(self) -> None:
        self._do(self._proxy.flow())

    def lose_answer_to(self, method: bytes, path: bytes) -> None:
        self._do(self._proxy.lose_answer_to(method, path))

    def close(self) -> None:
        """It is down, and nothing of it is left in the loop."""
        self.down()
        self._do(_all_over())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


async def _all_over() -> None:
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)  # for transports that were aborted to close


@contextmanager
def engine_in_between() -> Generator[EngineInBetween]:
    """A socket that leads to the host's engine, and can be made not to."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="engine-proxy")
    thread.start()
    with tempfile.TemporaryDirectory(
        prefix="ci-eng-", dir="/tmp"
    ) as folder:  # a socket's path has 108 bytes at most
        between = EngineInBetween(Path(folder) / "engine.sock", loop)
        try:
            between.up()
            yield between
        finally:
            between.flow()
            between.close()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
