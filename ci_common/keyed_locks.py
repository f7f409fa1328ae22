"""One at a time for each of what has a name, at this process."""

import asyncio
from weakref import WeakValueDictionary


class KeyedLocks:
    """A lock for each name; it is forgotten with the last one who has it or waits for it."""

    def __init__(self) -> None:
        self._locks = WeakValueDictionary[str, asyncio.Lock]()

    def of(self, name: str) -> asyncio.Lock:
        """Return the name's lock."""
        return self._locks.setdefault(name, asyncio.Lock())
