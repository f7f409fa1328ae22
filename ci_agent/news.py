"""NewsHub: wakes the agent's loop when the server has something for it to do. Hints only: what it is, is asked then."""

import asyncio
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from ci_agent.link import ServerLink
from ci_common.errors import CIError
from ci_common.stores import ChangeHub, Subscription

_WAIT: Final = 20  # seconds the server may take to have news
_RETRY: Final = 1.0


class _News(Subscription):
    """The one waiter: the agent's loop."""

    def __init__(self) -> None:
        self.only_log = False
        self._came = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._came.wait()
        except TimeoutError:
            return False
        self._came.clear()
        return True

    def wake(self) -> None:
        self._came.set()


class NewsHub(ChangeHub):
    """A thread that asks for news all the time: it may wait for an answer when the process ends."""

    def __init__(self, link: ServerLink) -> None:
        self._link = link
        self._over = threading.Event()
        self._news = _News()

    def database(self) -> AbstractContextManager[Subscription]:
        return self._subscribed()

    def log(self, job_id: str) -> AbstractContextManager[Subscription]:  # noqa: ARG002
        """Return the same: nobody follows logs here."""
        return self._subscribed()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._ask, args=(loop,), name="news", daemon=True).start()

    async def close(self) -> None:
        self._over.set()

    @contextmanager
    def _subscribed(self) -> Generator[Subscription]:
        yield self._news

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        known = ""
        while not self._over.is_set():
            try:
                word = str(self._word(known))
            except CIError:
                self._over.wait(_RETRY)
                continue
            if word != known and not self._over.is_set():
                known = word
                loop.call_soon_threadsafe(self._news.wake)

    def _word(self, known: str) -> str:
        if not self._link.epoch:  # not registered yet
            self._over.wait(_RETRY / 10)
            return known
        return str(self._link.ask("news", {"known": known, "wait": _WAIT})["news"])
