"""Wakes whoever waits for a database in PostgreSQL: by the notification of every transaction that wrote.

Logs are files of this machine, which inotify watches as ever. Hints only: whoever waits looks by itself after a while.
"""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Final

import psycopg

from ci_common.settings import shown_url
from ci_persistence.change_hub import InotifyChangeHub
from ci_persistence.postgres_connection import CHANNEL, network_options

_log = logging.getLogger(__name__)

_QUIET: Final = 0.005  # seconds between two wake-ups: a burst of commits is one hint
_PAUSE: Final = 1.0  # seconds until a lost server is tried again


class PostgresChangeHub(InotifyChangeHub):
    """Listens on a connection of its own, which is made anew when it is lost."""

    def __init__(self, url: str, no_file: Path, logs_path: Path) -> None:
        super().__init__(no_file, logs_path)  # of a database that is no file inotify tells nothing
        self._url = url
        self._listener: asyncio.Task[None] | None = None
        self._listening = False

    async def start(self) -> None:
        await super().start()
        self._listener = asyncio.create_task(self._listen_for_ever())

    async def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener
        await super().close()

    def _wake_job(self, job_id: str) -> None:
        if self._listening:
            super()._wake_job(job_id)
            return
        for subscription in self._by_job.get(job_id, ()):
            subscription.wake()  # there may have been a commit, too, that nobody told us of

    async def _listen_for_ever(self) -> None:
        while True:
            try:
                await self._listen()
            except psycopg.Error as error:
                self._listening = False
                _log.warning("no news from %s, who waits will poll: %s", shown_url(self._url), error)
            await asyncio.sleep(_PAUSE)

    async def _listen(self) -> None:
        """Raises psycopg.Error as soon as the connection is lost."""
        connection = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, **network_options(self._url)
        )
        async with connection as db:
            await db.execute(f"LISTEN {CHANNEL}".encode())
            self._listening = True
            while True:
                self._wake_all()  # at first for what nobody told us, while we did not listen
                await asyncio.sleep(_QUIET)
                async for _ in db.notifies(stop_after=1):
                    pass
