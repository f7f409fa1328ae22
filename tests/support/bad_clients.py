"""Clients that hold on to a server without using it, in numbers: what `ci-server` must bear."""

import asyncio
import contextlib
import select
import socket

from ci_common.models import Job
from tests.support.raw_http import connect, head, is_closed
from tests.support.server import Account, Site, client, eventually
from tests.support.server_process import answers, server_process

_MIB = 1024 * 1024
_OURS_SECONDS = 5.0  # in which a request beside all of them is answered, or the server does not serve


async def hold_slow_heads(site: Site, count: int) -> None:
    """So many connections with half a head do not stop service, and all of them are closed by the deadline."""
    most = str(count + 50)
    starting = server_process(site, CI_HEADER_TIMEOUT="3", CI_MAX_CONNECTIONS_PER_ADDRESS=most)
    with contextlib.ExitStack() as held, starting as process:
        await answers(process)
        before = process.sockets()
        slow = [held.enter_context(connect(process.url)) for _ in range(count)]
        for connection in slow:
            connection.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        await _still_serves(process.url)

        async def all_closed() -> bool:
            return all(is_closed(connection) for connection in slow)

        await eventually(all_closed, seconds=30)

        async def all_gone() -> bool:
            return process.sockets() <= before + 1

        await eventually(all_gone)


async def hold_stalled_readers(site: Site, account: Account, count: int, mebibytes: int) -> None:
    """So many readers that take nothing cost the server little memory, disturb nobody and are reset in the end."""
    job = await site.finished_job(account, b"x" * (16 * _MIB))
    starting = server_process(
        site,
        CI_STREAM_SEND_TIMEOUT="4",
        CI_MAX_STREAMS_PER_USER=str(count),
        CI_MAX_CONNECTIONS_PER_ADDRESS=str(count + 50),
    )
    with contextlib.ExitStack() as held, starting as process:
        await answers(process)
        before, memory = process.sockets(), process.memory()
        stalled = [
            held.enter_context(_begin_reading(process.url, account, job, index)) for index in range(count)
        ]
        await _still_serves(process.url, account)
        grown = process.memory() - memory

        async def all_reset() -> bool:
            return all(_was_reset(connection) for connection in stalled)

        await eventually(all_reset, seconds=90)

        async def all_gone() -> bool:
            return process.sockets() <= before + 1

        await eventually(all_gone)
        assert grown < mebibytes * _MIB, f"{count} stalled readers cost {grown / _MIB:.0f} MiB"
        await _still_serves(process.url, account)


def _begin_reading(url: str, account: Account, job: Job, index: int) -> socket.socket:
    """Return a connection on which an answer has begun: a stream, and each third time the log."""
    connection = connect(url, receive_buffer=4096)
    path = f"/jobs/{job.id}/log" if index % 3 == 0 else f"/jobs/{job.id}/stream?from_beginning=true"
    connection.sendall(head("GET", path, Authorization=f"Bearer {account.secret}"))
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


async def _still_serves(url: str, account: Account | None = None) -> None:
    async with client(url, account) as http, asyncio.timeout(_OURS_SECONDS):
        response = await http.get("/jobs?limit=1" if account else "/health")
    assert response.status_code == 200


def _was_reset(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLERR | select.POLLHUP)
    return bool(poll.poll(0))
