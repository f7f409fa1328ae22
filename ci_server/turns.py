"""One at a time for each of what has a name, at this process."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Turns:
    """Keeps those apart who mean the same; a name is forgotten with the last one who waits for it."""

    def __init__(self) -> None:
        self._locks = WeakValueDictionary[str, asyncio.Lock]()

    @asynccontextmanager
    async def of(self, name: str) -> AsyncGenerator[None]:
        """Nobody else has that name's turn while in the block."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        async with lock:
            yield
