"""A Unix socket in front of the real engine that a test can cut: an engine that dies, for one client only."""

import asyncio
from contextlib import suppress
from pathlib import Path

_ENGINE = "/var/run/docker.sock"


class EngineProxy:
    """Passes bytes both ways between `path` and the engine, while it is up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._passing)

    async def up(self) -> None:
        """The engine answers."""
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def down(self) -> None:
        """Nothing listens any more, and every connection is broken."""
        assert self._server is not None
        self._server.close()
        self.path.unlink()
        for task in tuple(self._passing):
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        there, back = await asyncio.open_unix_connection(_ENGINE)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pass(reader, back))
                group.create_task(_pass(there, writer))
        except asyncio.CancelledError:
            for end in (writer, back):
                end.transport.abort()  # broken off, with whatever is still on its way
            # Not raised again: asyncio's server reports a handler that was cancelled as an error.
        finally:
            self._passing.discard(task)
            for end in (writer, back):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # one side has gone: the other sees the end of its input
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
