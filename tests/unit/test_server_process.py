"""The server as operators start it: `ci-server` or a plain uvicorn, its workers, its end by SIGTERM."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from ci_common.models import JobFilter
from tests.support.server import (
    Account,
    Received,
    Site,
    client,
    read_to_end,
    serving,
    stream,
    upload,
)
from tests.support.server_process import CI_SERVER, PLAIN_UVICORN, answers, server_process
from tests.support.soak import soak_only


async def _rest(events: AsyncGenerator[Received, None]) -> list[Received]:
    return [event async for event in events]


@pytest.mark.parametrize(
    ("command", "workers", "ends"),
    [
        pytest.param(PLAIN_UVICORN, "1", -signal.SIGTERM, marks=soak_only),
        pytest.param(PLAIN_UVICORN, "2", 0, marks=soak_only),
        (CI_SERVER, "1", 0),
        pytest.param(CI_SERVER, "2", 0, marks=soak_only),
    ],
)
async def test_sigterm_ends_open_streams_in_good_order_and_they_resume(
    site: Site, ada: Account, command: tuple[str, ...], workers: str, ends: int
) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    path = f"/jobs/{attempt.job.id}/stream?from_beginning=true"
    site.hands.write(attempt, b"before ")
    with server_process(site, "--workers", workers, command=command) as process:
        await answers(process)
        async with client(process.url, ada) as http, stream(http, path) as events:
            seen = [await anext(events)]
            while seen[-1].type != "log":
                seen.append(await anext(events))
            ending = asyncio.create_task(asyncio.to_thread(process.terminate))
            rest = await _rest(events)  # ends, and does not break off
            code = await ending
        # A single uvicorn that ended in good order raises the signal again.
        assert code == ends, process.log.read_text()
        # Nothing of the job; but a machine may be so slow that the only heartbeat there is grows old.
        assert {event.type for event in rest} <= {"status"}, rest
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
    with server_process(site, CI_LOG_FORMAT="console") as process:
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
    with server_process(site, CI_CRASH_AT=point) as process:
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


async def test_fault_49_over_a_damaged_database_it_says_what_to_do_and_is_not_ready(
    site: Site, ada: Account
) -> None:
    """Whoever asks reads which kind of damage it is and how it is mended, and learns no path; the log has the path."""
    await site.repository.close()
    database = site.settings.db_path
    for leftover in database.parent.glob(f"{database.name}-*"):
        leftover.unlink()  # what a log of pages would put right is not what this is about
    data = bytearray(database.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)  # the header is whole: it still says that it is a database
    database.write_bytes(data)
    with server_process(site) as process:
        await answers(process)
        async with client(process.url, ada) as http:
            ready, submitted, listed = [
                await http.get("/ready"),
                await http.post("/submit-async", files=upload()),
                await http.get("/jobs"),
            ]
            assert (await http.get("/health")).status_code == 200, "alive, and restarting would not help"
        assert process.terminate() == 0
    assert (ready.status_code, ready.json()["status"]) == (503, "failing")
    checked = ready.json()["checks"]["database"]
    assert (checked["status"], checked["code"]) == ("failing", "database_corrupt")
    assert "ci-admin restore" in ready.json()["reasons"][0]
    for answer in (submitted, listed):
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (503, "database_corrupt"), answer.text
        assert "ci-admin restore" in problem["detail"]
        assert "stop every process that uses it" in problem["detail"]
    for answer in (ready, submitted, listed):
        assert str(database.parent) not in answer.text
    log = process.log.read_text()
    assert str(database) in log
    assert "Traceback" not in log
    assert bytes(data) == database.read_bytes(), "nothing was written to it"
