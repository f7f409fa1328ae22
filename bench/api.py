"""What one server process answers per second, and what 1000 viewers of one job cost it."""

import asyncio
import tempfile
import time
from pathlib import Path

from bench.place import Place
from bench.report import Row
from bench.server_load import VIEWERS, Viewer, fill, form_of, rate, request_of, serving, until
from tests.support.process_usage import usage_of
from tests.support.server import zipped

LINES = 20


def rates(place: Place) -> list[Row]:
    """`GET /jobs` of 1000 jobs, and `POST /submit-async` of a tiny archive; one worker, full durability."""
    rounds = 1 if place.quick else 3
    with (
        tempfile.TemporaryDirectory(dir=place.root) as first,
        tempfile.TemporaryDirectory(dir=place.root) as other,
    ):
        listed = asyncio.run(_list_rate(Path(first), rounds))
        submitted = asyncio.run(_submit_rate(Path(other), rounds))
    return [
        Row("`GET /jobs` of 1000 jobs, 4 clients", "1/s", listed, key="api/list", more_is_better=True),
        Row("`POST /submit-async`, tiny, 8 clients", "1/s", submitted, key="api/submit", more_is_better=True),
    ]


async def _list_rate(root: Path, rounds: int) -> tuple[float, ...]:
    async with serving(root) as (site, account, process):
        await fill(site, account)
        request = request_of(account, "GET", "/jobs")
        return tuple(
            [(await asyncio.to_thread(rate, process, request, 4))["per_second"] for _ in range(rounds)]
        )


async def _submit_rate(root: Path, rounds: int) -> tuple[float, ...]:
    async with serving(root) as (_, account, process):
        body, kind = form_of(zipped())
        request = request_of(account, "POST", "/submit-async", body, kind)
        return tuple(
            [(await asyncio.to_thread(rate, process, request, 8))["per_second"] for _ in range(rounds)]
        )


def viewers(place: Place) -> list[Row]:
    """How old a line is when each of 1000 viewers has it, and how much the server grew by each."""
    with tempfile.TemporaryDirectory(dir=place.root) as root:
        return asyncio.run(_viewers(Path(root)))


async def _viewers(root: Path) -> list[Row]:
    async with serving(root) as (site, account, process):
        await site.hands.arrive()
        job = await site.queue_job(account)
        attempt = await site.hands.start()
        before, ages, connected = usage_of(process.popen.pid), list[float](), [0]

        def seen() -> None:
            connected[0] += 1

        host, port = process.url.removeprefix("http://").split(":")
        request = request_of(account, "GET", f"/jobs/{job.id}/stream?from_beginning=1")
        loop = asyncio.get_running_loop()
        for number in range(VIEWERS):
            await loop.create_connection(lambda: Viewer(request, ages, seen), host, int(port))
            if number % 50 == 0:
                await until(lambda number=number: connected[0] >= number - 50)
        await until(lambda: connected[0] >= VIEWERS)
        after = usage_of(process.popen.pid)
        for number in range(1, LINES + 1):
            site.hands.write(attempt, f"{time.time():.6f}\n".encode())
            await until(lambda number=number: len(ages) >= number * VIEWERS)
            await asyncio.sleep(0.2)
    assert before is not None
    assert after is not None
    grown = (after.rss - before.rss) / 1024 / VIEWERS
    return [
        Row(
            f"{VIEWERS} viewers: age of a line at each",
            "ms",
            tuple(1000 * age for age in ages),
            key="viewers/age",
        ),
        Row(f"{VIEWERS} viewers: server memory for each", "KB", (grown,), key="viewers/memory"),
    ]
