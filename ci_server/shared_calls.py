"""One call for all who want the same at the same moment."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


class SharedCalls(Generic[Key, Answer]):
    """Asks once for whoever asks in the same turn of the loop; nobody gets an answer older than the question."""

    def __init__(self, call: Callable[[Key], Awaitable[Answer]]) -> None:
        self._call = call
        self._coming: dict[Key, asyncio.Task[Answer]] = {}

    async def answer(self, key: Key) -> Answer:
        """Return what a call returned, or raise what it raised, that began after this one did."""
        coming = self._coming.get(key)
        if coming is None:
            coming = self._coming[key] = asyncio.create_task(self._ask(key))
            coming.add_done_callback(noted)
        return await asyncio.shield(coming)  # one who leaves does not end it for the others

    async def _ask(self, key: Key) -> Answer:
        # A task begins a turn of the loop after it was made: whoever was woken in that turn shares it. Who comes
        # later must not get what may be older than the question, and begins another one.
        del self._coming[key]
        return await self._call(key)


def noted(done: asyncio.Task[Answer]) -> None:
    """An error has been looked at, so that asyncio does not warn about it: all who wanted it may have left."""
    if not done.cancelled():
        done.exception()
