"""The server as operators start it: `python -m uvicorn ci_server.app:app`, its workers, its end by SIGTERM."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from ci_common.models import JobFilter
from tests.support.server import (
    Account,
    Received,
    Site,
    client,
    eventually,
    read_to_end,
    serving,
    stream,
    upload,
)


@dataclass
class Process:
    """A uvicorn of its own and what it wrote."""

    popen: subprocess.Popen[bytes]
    url: str
    log: Path

    def terminate(self) -> int:
        """Return the exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(20)


@contextmanager
def uvicorn(site: Site, *args: str, **environment: str) -> Generator[Process, None, None]:
    """A server process answers at its URL; it is killed if it is still there afterwards."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    listener.set_inheritable(True)
    log = site.settings.db_path.with_name("server.log")
    command = [sys.executable, "-m", "uvicorn", "ci_server.app:app", "--fd", str(listener.fileno()), *args]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CI_")}
    ours = {"CI_DB_PATH": str(site.settings.db_path), "CI_DATA_DIR": str(site.settings.data_path)}
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command,
            env={**inherited, **ours, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(listener.fileno(),),
        )
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    try:
        yield Process(popen, url, log)
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait(20)


async def answers(process: Process) -> None:
    async def healthy() -> bool:
        assert process.popen.poll() is None, process.log.read_text()
        async with client(process.url) as http:
            try:
                return (await http.get("/health")).status_code == 200
            except httpx.TransportError:
                return False

    await eventually(healthy, seconds=30)


async def _rest(events: AsyncGenerator[Received, None]) -> list[Received]:
    return [event async for event in events]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sigterm_ends_open_streams_in_good_order_and_they_resume(
    site: Site, ada: Account, workers: str
) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    path = f"/jobs/{attempt.job.id}/stream?from_beginning=true"
    site.hands.write(attempt, b"before ")
    with uvicorn(site, "--workers", workers) as process:
        await answers(process)
        async with client(process.url, ada) as http, stream(http, path) as events:
            seen = [await anext(events)]
            while seen[-1].type != "log":
                seen.append(await anext(events))
            ending = asyncio.create_task(asyncio.to_thread(process.terminate))
            rest = await _rest(events)  # ends, and does not break off
            code = await ending
        # A single uvicorn that ended in good order raises the signal again; with workers it returns 0.
        assert code in (0, -signal.SIGTERM), process.log.read_text()
        assert rest == []
        log = process.log.read_text()
        assert "Traceback" not in log
        assert '"level": "error"' not in log
    site.hands.write(attempt, b"after")
    await site.hands.finish(attempt)
    with serving(site.settings) as url:
        async with client(url, ada) as http:
            resumed = await read_to_end(http, path, headers={"Last-Event-ID": seen[-1].id})
    assert "".join(event.data["data"] for event in resumed if event.type == "log") == "after"


async def test_the_log_has_the_format_that_was_asked_for(site: Site) -> None:
    with uvicorn(site, CI_LOG_FORMAT="console") as process:
        await answers(process)
        async with client(process.url) as http:
            assert (await http.get("/jobs")).status_code == 401
        process.terminate()
    [line] = [line for line in process.log.read_text().splitlines() if "path=/jobs" in line]
    assert not line.startswith("{")
    assert "\x1b" not in line, "colours are for terminals"


@pytest.mark.parametrize(("point", "jobs"), [("after_archive_saved", 0), ("after_job_created", 1)])
async def test_a_server_killed_before_its_answer_makes_one_job_of_a_retry(
    site: Site, ada: Account, point: str, jobs: int
) -> None:
    headers = {"Idempotency-Key": "once"}
    with uvicorn(site, CI_CRASH_AT=point) as process:
        await answers(process)
        async with client(process.url, ada) as http:
            with pytest.raises(httpx.TransportError):
                await http.post("/submit-async", files=upload(), headers=headers)
        assert process.popen.wait(20) == 137
    assert len((await site.repository.list_jobs(JobFilter())).jobs) == jobs
    with serving(site.settings) as url:
        async with client(url, ada) as http:
            response = await http.post("/submit-async", files=upload(), headers=headers)
    assert response.status_code == 200
    [job] = (await site.repository.list_jobs(JobFilter())).jobs
    assert job.id == response.json()["job_id"]
    with site.stores.archives.open(job.archive_ref) as archive:
        assert archive.entries


def test_importing_the_app_touches_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import ci_server.app, os; print(os.listdir())"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        env={**os.environ, "CI_DB_PATH": str(tmp_path / "ci.db")},
        timeout=60,
    )
    assert done.stdout.strip() == b"[]"
