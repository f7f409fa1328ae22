"""Faults of clients, connections and replicas against real `ci-server` processes (no engine is needed)."""

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import AsyncGenerator, Coroutine, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from ci_common.clock import utcnow
from ci_common.models import JobFilter
from ci_server.app import create_app
from tests.support.bad_clients import hold_slow_heads, hold_stalled_readers
from tests.support.raw_http import connect, form_of, rest_of, upload_head
from tests.support.server import (
    Account,
    Site,
    client,
    eventually,
    open_site,
    read_to_end,
    serving,
    stream,
    upload,
    zipped,
)
from tests.support.server_process import answers, server_process

ONCE = {"Idempotency-Key": "once"}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site, None]:
    async with open_site(tmp_path) as opened:
        yield opened


@pytest.fixture
async def ada(site: Site) -> Account:
    return await site.account("ada")


async def job_ids(site: Site) -> list[str]:
    return [job.id for job in (await site.repository.list_jobs(JobFilter())).jobs]


# -- 13: kill -9 in the middle of an upload ------------------------------------------------------------


async def test_13_a_server_killed_half_way_through_an_upload_leaves_no_job_and_a_retry_makes_one(
    site: Site, ada: Account
) -> None:
    archive = zipped({"test_a.py": "def test_a(): pass\n", "data": "x" * 8_000_000})
    form = form_of(archive)
    incoming = site.settings.data_path / "archives"

    async def half_arrived() -> bool:
        return incoming.exists() and any(path.stat().st_size > 0 for path in incoming.iterdir())

    with server_process(site) as process:
        await answers(process)
        with connect(process.url) as connection:
            connection.sendall(upload_head("/submit-async", ada.secret, len(form), Idempotency_Key="once"))
            connection.sendall(form[: len(form) // 2])
            await eventually(half_arrived, seconds=30)
            process.kill()
    assert await job_ids(site) == []
    with serving(site.settings) as url:
        async with client(url, ada) as http:
            first = await http.post("/submit-async", files=upload(archive), headers=ONCE)
            again = await http.post("/submit-async", files=upload(archive), headers=ONCE)
    assert first.status_code == 200, first.text
    assert await job_ids(site) == [first.json()["job_id"]] == [again.json()["job_id"]]
    assert len(list(incoming.iterdir())) == 2, "what the first one left is there until it is old"
    site.stores.archives.remove_unfinished(older_than_seconds=0)
    assert len(list(incoming.iterdir())) == 1


# -- 15: the same submission many times at once --------------------------------------------------------


async def test_15_fifty_equal_submissions_at_three_replicas_are_one_job(site: Site, ada: Account) -> None:
    with server_process(site) as one, server_process(site) as other, serving(site.settings) as url:
        await answers(one)
        await answers(other)
        urls = (one.url, other.url, url)

        async def submit(number: int) -> str:
            async with client(urls[number % 3], ada) as http:
                response = await http.post("/submit-async", files=upload(), headers=ONCE)
            assert response.status_code == 200, response.text
            return str(response.json()["job_id"])

        told = await asyncio.gather(*(submit(number) for number in range(50)))
    assert set(told) == set(await job_ids(site))
    assert len(set(told)) == 1
    assert len(list((site.settings.data_path / "archives").iterdir())) == 1


# -- 16: the request is cancelled at each of its awaits ------------------------------------------------


class CancelledAt:
    """Runs a coroutine and cancels its task when it waits for the n-th time."""

    def __init__(self, work: Coroutine[Any, Any, None], nth: int) -> None:
        self._work = work
        self._nth = nth
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, None]:
        thrown: BaseException | None = None
        while True:
            try:
                waited_for: Any = self._work.throw(thrown) if thrown else self._work.send(None)
            except StopIteration:
                return
            self.waits += 1
            if self.waits == self._nth:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            thrown = None
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001 - handed on to the coroutine
                thrown = error


async def test_16_a_submission_cancelled_at_any_await_is_whole_or_absent_and_blocks_nobody(
    site: Site, ada: Account
) -> None:
    app = create_app(site.settings)
    form = form_of(zipped())
    async with app.router.lifespan_context(app):
        nth, finished, found = 0, False, None
        while not finished:
            nth += 1
            key = f"key-{nth}"
            finished = await _submission_cancelled_at(app, ada, form, key, nth)
            _assert_nobody_holds_the_write_lock(site)
            found = await site.repository.find_idempotent(ada.user.id, key)
            assert found is None or site.stores.archives.open(found[0].archive_ref)
    assert nth > 10, "the request has more awaits than that"
    assert found is not None, "the one that was not cancelled is there"


async def _submission_cancelled_at(
    app: Any, account: Account, form: bytes, idempotency_key: str, nth: int
) -> bool:
    """Return True when the request was over before it had waited so often."""
    pieces = [form[:50], form[50:150], form[150:]]

    async def receive() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(_: Message) -> None:
        await asyncio.sleep(0)

    headers = {
        "authorization": f"Bearer {account.secret}",
        "content-type": "multipart/form-data; boundary=B",
        "idempotency-key": idempotency_key,
    }
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/submit-async",
        "raw_path": b"/submit-async",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "state": {},
    }
    run = CancelledAt(app(scope, receive, send), nth)

    async def request() -> None:
        await run

    results = await asyncio.gather(request(), return_exceptions=True)
    assert results[0] is None or isinstance(results[0], asyncio.CancelledError), results[0]
    return run.waits < nth


def _assert_nobody_holds_the_write_lock(site: Site) -> None:
    other = sqlite3.connect(site.settings.db_path, isolation_level=None, timeout=5)
    try:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    finally:
        other.close()


# -- 18: the replica that a reader reads from dies -----------------------------------------------------


async def test_18_when_a_replica_is_killed_its_reader_goes_on_at_another_without_a_gap(
    site: Site, ada: Account
) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    path = f"/jobs/{attempt.job.id}/stream?from_beginning=true"
    first, second = "äöü first\n".encode() * 1000, "second €\n".encode() * 1000
    site.hands.write(attempt, first)
    with server_process(site) as one, serving(site.settings) as other:
        await answers(one)
        seen, position = bytearray(), ""
        async with client(one.url, ada) as http, stream(http, path) as events:
            async for event in events:
                if event.type == "log":
                    seen += event.data["data"].encode()
                    position = event.id
                    break
            one.kill()
        site.hands.write(attempt, second)
        await site.hands.finish(attempt)
        async with client(other, ada) as http:
            rest = await read_to_end(http, path, headers={"Last-Event-ID": position})
    for event in rest:
        if event.type == "log":
            seen += event.data["data"].encode()
    assert hashlib.sha256(seen).digest() == hashlib.sha256(first + second).digest()
    assert [event.type for event in rest].count("complete") == 1


# -- 19, 20: readers that do not read, writers that do not write ---------------------------------------


async def test_19_stalled_readers_cost_little_disturb_nobody_and_are_reset(site: Site, ada: Account) -> None:
    await hold_stalled_readers(site, ada, 20, mebibytes=50)


async def test_20_slow_heads_do_not_stop_service_and_are_closed_by_the_deadline(site: Site) -> None:
    await hold_slow_heads(site, 200)


# -- 45: somebody locks the database -------------------------------------------------------------------


async def test_45_a_locked_database_is_503_with_the_time_to_come_back_and_then_all_is_well(
    site: Site, ada: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is held until the server has answered; its patience of ten seconds is cut short."""
    monkeypatch.setattr("ci_persistence.sqlite_connection.BUSY_TIMEOUT_MS", 300)
    with serving(site.settings) as url:
        async with client(url, ada) as http:
            assert (await http.get("/jobs")).status_code == 200
            locker = sqlite3.connect(site.settings.db_path, isolation_level=None)
            try:
                locker.execute("BEGIN EXCLUSIVE")
                submitting = asyncio.create_task(_submit(http))
                assert (await http.get("/jobs")).status_code == 200, "reading goes on"
                refused = await submitting
            finally:
                locker.close()
            assert (refused.status_code, refused.json()["code"]) == (503, "database_busy")
            assert int(refused.headers["retry-after"]) > 0
            assert list((site.settings.data_path / "archives").iterdir()) == []
            again = await http.post("/submit-async", files=upload(), headers=ONCE)
            assert again.status_code == 200, again.text
    assert await job_ids(site) == [again.json()["job_id"]]


async def _submit(http: httpx.AsyncClient) -> httpx.Response:
    return await http.post("/submit-async", files=upload(), headers=ONCE)


# -- 64: a key is revoked meanwhile --------------------------------------------------------------------


async def test_64_a_key_revoked_meanwhile_ends_the_stream_and_refuses_the_upload(
    site: Site, ada: Account
) -> None:
    job = await site.queue_job(ada)
    form = form_of(zipped())
    with serving(site.settings.model_copy(update={"stream_ping_interval": 1.0})) as url:
        async with client(url, ada) as http, stream(http, f"/jobs/{job.id}/stream") as events:
            assert (await anext(events)).type == "status"
            with connect(url) as uploading:
                uploading.sendall(upload_head("/submit-async", ada.secret, len(form), Connection="close"))
                uploading.sendall(form[:-1])
                await site.repository.revoke_api_key(ada.key.id, utcnow())
                last = [event async for event in events][-1]
                assert (last.type, last.data["code"]) == ("error", "unauthorized")
                uploading.sendall(form[-1:])
                answer = await asyncio.to_thread(rest_of, uploading)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "unauthorized"
    assert await job_ids(site) == [job.id]
