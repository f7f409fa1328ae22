"""Presence over PostgreSQL: locks that belong to a session, and so end with it, whoever dies.

A leader holds one that has the number of its epoch, so that what is left of an earlier one stands in nobody's way. It
is only ever tried for, since who waits in a statement holds up the vacuum of the whole database.
"""

import asyncio
import contextlib
import logging
from typing import Any, Final

import psycopg

from ci_common.models import ControllerState
from ci_common.presence import Presence
from ci_common.settings import shown_url
from ci_persistence.postgres_connection import network_options
from ci_persistence.postgres_errors import translated
from ci_persistence.rows import from_text

_log = logging.getLogger(__name__)

_PAUSE: Final = (
    0.2  # seconds until a lost session is tried again: sooner than who waits believes in our death
)
# The first of the two numbers of a lock; each schema is an installation of its own.
_LEADS: Final = "hashtext('ci-controller leads ' || current_schema())"
_WAITS: Final = "hashtext('ci-controller waits ' || current_schema())"
_LEAD: Final = f"SELECT pg_try_advisory_lock({_LEADS}, %s::integer)"
_STAND_BY: Final = f"SELECT pg_try_advisory_lock_shared({_WAITS}, 0)"
_HELD: Final = (
    "pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND classid = {}::oid"
)
_IS_LED: Final = (
    f"SELECT EXISTS (SELECT FROM {_HELD.format(_LEADS)} AND objid = coalesce(%s::integer::oid, objid))"  # noqa: S608
)
_HAS_CONTROLLER: Final = "SELECT to_regclass('controller') IS NOT NULL"
# A column that the older release does not have yet is null.
_FORMER_LEADER: Final = (
    "SELECT epoch, holder, heartbeat_at, to_jsonb(controller)->>'released_at', to_jsonb(controller)->>'runs_on' "
    "FROM controller"
)
COUNT_STANDING_BY: Final = f"SELECT count(*) FROM {_HELD.format(_WAITS)}"  # noqa: S608  (constants, as above)
# A host that vanished is noticed here in seconds, too; the server's own default is two hours.
_NOTICE_LOSS: Final = (
    "SELECT set_config('application_name', 'ci-controller', false), set_config('tcp_keepalives_idle', '5', false), "
    "set_config('tcp_keepalives_interval', '2', false), set_config('tcp_keepalives_count', '3', false)"
)


class PostgresPresence(Presence):
    """One session, which is made when it is needed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: psycopg.AsyncConnection[Any] | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def stand_by(self) -> None:
        with translated(self._url):
            if self._session is None or self._session.closed:
                self._session = await self._opened()
                await _answer(self._session, _STAND_BY)

    async def is_led(self, epoch: int | None = None) -> bool:
        await self.stand_by()
        assert self._session is not None
        with translated(self._url):
            return await _answer(self._session, _IS_LED, epoch)

    async def former_leader(self) -> ControllerState | None:
        await self.stand_by()
        assert self._session is not None
        with translated(self._url):
            if not await _answer(self._session, _HAS_CONTROLLER):
                return None
            row = await (await self._session.execute(_FORMER_LEADER.encode())).fetchone()
        if row is None:
            return None
        epoch, holder, heartbeat, released, runs_on = row
        is_released = released is not None
        return ControllerState(epoch, holder, from_text(heartbeat), is_released=is_released, runs_on=runs_on)

    async def lead(self, epoch: int) -> bool:
        await self.close()
        with translated(self._url):
            self._session = await self._leading(epoch)
        if self._session is not None:
            self._keeper = asyncio.create_task(self._keep(self._session, epoch))
        return self._session is not None

    async def lead_after(self, epoch: int) -> None:
        await self.close()
        self._keeper = asyncio.create_task(self._keep(None, epoch))

    async def close(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _opened(self) -> psycopg.AsyncConnection[Any]:
        """Return a session; on the way to it, nothing is left open."""
        options = network_options(self._url)
        session = await psycopg.AsyncConnection.connect(self._url, autocommit=True, **options)
        try:
            await session.execute(_NOTICE_LOSS.encode())
        except BaseException:
            await session.close()
            raise
        return session

    async def _leading(self, epoch: int) -> psycopg.AsyncConnection[Any] | None:
        """Return a session that is seen as the leader's; None: another one is."""
        session = await self._opened()
        try:
            if await _answer(session, _LEAD, epoch):
                return session
        except BaseException:
            await session.close()
            raise
        await session.close()
        return None

    async def _keep(self, session: psycopg.AsyncConnection[Any] | None, epoch: int) -> None:
        while True:
            if session is not None:
                await _until_lost(session)
                _log.warning("the session with %s was cut, and is made anew", shown_url(self._url))
                await session.close()
            session = self._session = await self._regained(epoch)

    async def _regained(self, epoch: int) -> psycopg.AsyncConnection[Any]:
        while True:
            try:
                return await self._freed(epoch)
            except psycopg.Error as error:
                _log.debug("no session: %s", error)
            await asyncio.sleep(_PAUSE)

    async def _freed(self, epoch: int) -> psycopg.AsyncConnection[Any]:
        """Return a session that is seen as the leader's, once no other one is: one session, however long that takes."""
        session = await self._opened()
        try:
            while True:
                if await _answer(session, _LEAD, epoch):
                    return session
                await asyncio.sleep(_PAUSE)
        except BaseException:
            await session.close()
            raise


async def _answer(session: psycopg.AsyncConnection[Any], question: str, *values: int | None) -> bool:
    row = await (await session.execute(question.encode(), values)).fetchone()
    assert row is not None
    return bool(row[0])


async def _until_lost(session: psycopg.AsyncConnection[Any]) -> None:
    """The server ended the session, or the network did: nothing else is said where nobody asks."""
    with contextlib.suppress(psycopg.Error):
        while True:
            await _readable(session.fileno())
            await session.execute(b"SELECT")


async def _readable(descriptor: int) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
