"""What one server process does under load: requests per second, a long log, and many viewers of one job.

`python -m bench.server_load [listing job submit log viewers idle …]` prints a line per measurement, in numbers of this
machine: compare those of two versions that were measured by turns. The limits of rates and streams are raised.
"""

import asyncio
import json
import re
import resource
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ci_common.models import Job
from tests.support.process_usage import usage_of
from tests.support.server import Account, Site, open_site, zipped
from tests.support.server_process import CI_SERVER, Process, answers, server_process

JOBS = 1_000
VIEWERS = 1_000
LOG_BYTES = 100 * 1024**2
SECONDS = 3.0
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_NO_LIMITS = {
    "CI_MAX_CONNECTIONS": "10000",
    "CI_MAX_CONNECTIONS_PER_ADDRESS": "10000",
    "CI_MAX_STREAMS_PER_USER": "10000",
    "CI_MAX_QUEUED_PER_USER": "1000000",
    "CI_MAX_QUEUED": "1000000",
    "CI_LOG_LEVEL": "warning",
}


@asynccontextmanager
async def serving(root: Path) -> AsyncGenerator[tuple[Site, Account, Process], None]:
    """A server of its own answers over an empty database."""
    async with open_site(root) as site:
        account = await site.account()
        with server_process(site, command=CI_SERVER, **_NO_LIMITS) as process:
            await answers(process)
            yield site, account, process


# -- requests --------------------------------------------------------------------------------------------


def request_of(
    account: Account, method: str, path: str, body: bytes = b"", kind: str = "text/plain"
) -> bytes:
    """Return a whole request, as bytes."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {account.secret}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def form_of(archive: bytes) -> tuple[bytes, str]:
    """Return the form that submits an archive, and its content type."""
    head = 'Content-Disposition: form-data; name="file"; filename="project.zip"'
    return b"--bench\r\n" + head.encode() + b"\r\n\r\n" + archive + b"\r\n--bench--\r\n", (
        "multipart/form-data; boundary=bench"
    )


def connected(process: Process) -> socket.socket:
    """Return a connection to the server."""
    host, port = process.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(connection: socket.socket, request: bytes, room: memoryview) -> int:
    """Return the size of the answer's body, which was read to its end; only a success has one."""
    connection.sendall(request)
    got = connection.recv_into(room)
    while (end := bytes(room[: min(got, 8192)]).find(b"\r\n\r\n")) < 0:
        got += connection.recv_into(room[got:])
    head = bytes(room[:end])
    assert head.startswith(b"HTTP/1.1 20"), head
    found = _LENGTH.search(head)
    if found is None:
        return _chunked(connection, bytes(room[:got]))
    size = int(found[1])
    left = end + 4 + size - got
    while left > 0:
        left -= connection.recv_into(room, min(left, len(room)))
    return size


def _chunked(connection: socket.socket, data: bytes) -> int:
    size, tail = len(data), data[-7:]
    while tail != b"\r\n0\r\n\r\n":
        data = connection.recv(1024**2)
        size, tail = size + len(data), (tail + data)[-7:]
    return size


def rate(process: Process, request: bytes, connections: int) -> dict[str, float]:
    """Return answers per second over so many connections, the median of their times, the server's CPU for each."""
    taken: list[float] = []
    ends = time.monotonic() + SECONDS

    def ask() -> None:
        room = memoryview(bytearray(1024**2))
        with connected(process) as connection:
            while time.monotonic() < ends:
                began = time.monotonic()
                exchange(connection, request, room)
                taken.append((time.monotonic() - began) * 1000)

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    began, spent = time.monotonic(), cpu_seconds(process)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "per_second": len(taken) / (time.monotonic() - began),
        "ms": statistics.median(taken),
        "cpu_ms": 1000 * (cpu_seconds(process) - spent) / len(taken),
    }


def say(what: str, **found: float) -> None:
    print(f"{what:32}", *(f"{name}={value:.2f}" for name, value in found.items()), flush=True)


async def fill(site: Site, account: Account) -> Job:
    """Return one of the many jobs that the account has."""
    jobs = [await site.finished_job(account, b"1 passed\n") for _ in range(JOBS)]
    return jobs[0]


async def listing(root: Path) -> None:
    """`GET /jobs` of all jobs: again and again, and while others submit."""
    async with serving(root) as (site, account, process):
        job = await fill(site, account)
        for path in ("/jobs", "/jobs?limit=1000", "/jobs?limit=20", f"/jobs/{job.id}"):
            request = request_of(account, "GET", path)
            for connections in (1, 4):
                found = await asyncio.to_thread(rate, process, request, connections)
                say(f"GET {path[:20]} by {connections}", **found)
        await _listing_beside_writes(site, account, process)


async def _listing_beside_writes(site: Site, account: Account, process: Process) -> None:
    """The same while the database changes 100 times per second: nothing that was kept is of use for long."""
    request = request_of(account, "GET", "/jobs")
    asking = asyncio.create_task(asyncio.to_thread(rate, process, request, 2))
    while not asking.done():
        await site.queue_job(await site.account("bob"))
        await asyncio.sleep(0.01)
    found = await asking
    say("GET /jobs beside writes", **found)


async def submit(root: Path) -> None:
    """`POST /submit-async` of a tiny archive."""
    async with serving(root) as (_, account, process):
        body, kind = form_of(zipped())
        request = request_of(account, "POST", "/submit-async", body, kind)
        for connections in (1, 8, 32):
            found = await asyncio.to_thread(rate, process, request, connections)
            say(f"POST /submit-async by {connections}", **found)


async def log(root: Path) -> None:
    """A long log through `GET /jobs/{id}/log`."""
    async with serving(root) as (site, account, process):
        job = await site.finished_job(account, b"a line of output, as they come\n" * (LOG_BYTES // 31))
        request = request_of(account, "GET", f"/jobs/{job.id}/log")

        def once() -> float:
            with connected(process) as connection:
                began = time.monotonic()
                size = exchange(connection, request, memoryview(bytearray(1024**2)))
                return size / 1e6 / (time.monotonic() - began)

        found = [await asyncio.to_thread(once) for _ in range(7)]
        say("GET /jobs/{id}/log", megabytes_per_second=statistics.median(found))


# -- viewers ---------------------------------------------------------------------------------------------


class Viewer(asyncio.Protocol):
    """A reader of events that notes how old the times in them are."""

    def __init__(self, request: bytes, ages: list[float], seen: Callable[[], None]) -> None:
        self._request, self._ages, self._seen = request, ages, seen
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: ") and (event := json.loads(line[6:]))["type"] in {"log", "status"}:
                self._seen()
                now = time.time()
                self._ages.extend(now - float(said) for said in event.get("data", "").split())


async def until(holds: Callable[[], bool]) -> None:
    """It holds; raises TimeoutError when it does not come about."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - set by callbacks that know no event of ours
            await asyncio.sleep(0.001)


async def viewers(root: Path) -> None:
    """Many viewers of one running job: how long a line takes to all of them, and what each costs."""
    async with serving(root) as (site, account, process):
        await site.hands.arrive()
        job = await site.queue_job(account)
        attempt = await site.hands.start()
        before, ages, count = usage_of(process.popen.pid), list[float](), 0

        def seen() -> None:
            nonlocal count
            count += 1

        host, port = process.url.removeprefix("http://").split(":")
        request = request_of(account, "GET", f"/jobs/{job.id}/stream?from_beginning=1")
        loop = asyncio.get_running_loop()
        for number in range(VIEWERS):
            await loop.create_connection(lambda: Viewer(request, ages, seen), host, int(port))
            await until(lambda: count >= number - 50)  # noqa: B023 - over before the next turn
        await until(lambda: count >= VIEWERS)
        after = usage_of(process.popen.pid)
        assert before is not None
        assert after is not None
        say_cpu = 0.0
        for number in range(1, 21):
            spent = cpu_seconds(process)
            site.hands.write(attempt, f"{time.time():.6f}\n".encode())
            await until(lambda: len(ages) >= number * VIEWERS)  # noqa: B023
            say_cpu = cpu_seconds(process) - spent
            await asyncio.sleep(0.3)
        ages.sort()
        say(
            f"{VIEWERS} viewers",
            p50_ms=1000 * ages[len(ages) // 2],
            p99_ms=1000 * ages[len(ages) * 99 // 100],
            kilobytes_each=(after.rss - before.rss) / 1024 / VIEWERS,
            cpu_ms_per_line=1000 * say_cpu,
        )
        spent = cpu_seconds(process)
        await asyncio.sleep(5)
        say(f"{VIEWERS} silent viewers", percent_of_core=100 * (cpu_seconds(process) - spent) / 5)


# -- nothing at all --------------------------------------------------------------------------------------


def cpu_seconds(process: Process) -> float:
    """Return the CPU time that the server has used."""
    fields = Path(f"/proc/{process.popen.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def idle(root: Path) -> None:
    """A server that nobody asks for anything."""
    async with serving(root) as (_, _, process):
        await asyncio.sleep(1)
        spent = cpu_seconds(process)
        await asyncio.sleep(10)
        used = usage_of(process.popen.pid)
        assert used is not None
        say(
            "idle server", megabytes=used.rss / 1e6, percent_of_core=100 * (cpu_seconds(process) - spent) / 10
        )


MEASUREMENTS: dict[str, Callable[[Path], Coroutine[Any, Any, None]]] = {
    "listing": listing,
    "submit": submit,
    "log": log,
    "viewers": viewers,
    "idle": idle,
}


def main() -> None:
    """The measurements that were asked for, or all of them, are printed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for name in sys.argv[1:] or MEASUREMENTS:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(MEASUREMENTS[name](Path(directory)))


if __name__ == "__main__":
    main()
