"""`/jobs/{id}/stream` over real HTTP: resuming, several replicas, limits, keys that are withdrawn."""

import asyncio
import hashlib
import random
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from ci_common.clock import utcnow
from ci_common.models import Job
from tests.support.server import (
    Account,
    Received,
    Site,
    client,
    eventually,
    open_site,
    read_to_end,
    serving,
    stream,
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site, None]:
    async with open_site(
        tmp_path, stream_ping_interval=0.2, stream_send_timeout=1.0, max_streams_per_user=3
    ) as opened:
        yield opened


def text(events: list[Received]) -> str:
    return "".join(event.data["data"] for event in events if event.type == "log")


async def test_a_finished_job_is_replayed_or_only_judged(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.finished_job(ada, b"all of it\n")
    replayed = await read_to_end(http, f"/jobs/{job.id}/stream?from_beginning=true")
    assert [event.data for event in replayed] == [
        {"type": "log", "data": "all of it\n"},
        {
            "type": "complete",
            "success": True,
            "status": "completed",
            "exit_code": 0,
            "reason": None,
            "message": "said so",
        },
    ]
    assert [event.id for event in replayed] == ["1:10", "1:10"], "the id stays until there is another"
    [judged] = await read_to_end(http, f"/jobs/{job.id}/stream")
    assert judged.type == "complete"


async def test_bytes_that_are_no_text_travel_beside_it(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.finished_job(ada, b"\xff\n")
    events = await read_to_end(http, f"/jobs/{job.id}/stream?offset=0")
    assert events[0].data == {"type": "log", "data": "\ufffd\n", "data_base64": "/wo="}


async def test_a_hundred_reconnects_at_random_places_make_the_file(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    """The log grows meanwhile; the reader takes a few events each time and comes back with the last id."""
    dice = random.Random(17)
    await site.queue_job(ada)
    attempt = await site.hands.start()
    written, got, position = bytearray(), bytearray(), ""
    for _ in range(100):
        piece = "äöü€𝄞 line\n".encode() * dice.randint(1, 40)
        border = dice.randint(0, len(piece))
        site.hands.write(attempt, piece[:border])
        site.hands.write(attempt, piece[border:])
        written += piece
        headers = {"Last-Event-ID": position} if position else {}
        path = f"/jobs/{attempt.job.id}/stream?from_beginning=true"
        async with stream(http, path, headers=headers) as events:
            async for event in events:
                if event.type == "log":
                    got += event.data["data"].encode()
                    position = event.id
                    break
    await site.hands.finish(attempt)
    rest = await read_to_end(http, f"/jobs/{attempt.job.id}/stream", headers={"Last-Event-ID": position})
    got += text(rest).encode()
    assert [event.type for event in rest].count("complete") == 1
    assert hashlib.sha256(got).digest() == hashlib.sha256(written).digest()


async def test_a_stream_begun_at_one_replica_goes_on_at_another(site: Site, ada: Account) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    path = f"/jobs/{attempt.job.id}/stream?from_beginning=true"
    site.hands.write(attempt, b"first ")
    with serving(site.settings) as one, serving(site.settings) as other:
        async with client(one, ada) as http, stream(http, path) as events:
            seen = [event async for event in _until_log(events)]
        site.hands.write(attempt, b"second")
        await site.hands.finish(attempt)
        async with client(other, ada) as http:
            rest = await read_to_end(http, path, headers={"Last-Event-ID": seen[-1].id})
    assert (text(seen), text(rest)) == ("first ", "second")


async def test_who_is_cut_off_before_the_first_output_misses_none_of_it(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    """A reader of new output only: where it began is named by the very first event."""
    await site.queue_job(ada)
    attempt = await site.hands.start()
    site.hands.write(attempt, b"old ")
    path = f"/jobs/{attempt.job.id}/stream"
    async with stream(http, path) as events:
        first = await anext(events)
    assert (first.type, first.id) == ("status", "1:4")
    site.hands.write(attempt, b"new")
    await site.hands.finish(attempt)
    assert text(await read_to_end(http, path, headers={"Last-Event-ID": first.id})) == "new"


async def _until_log(events: AsyncGenerator[Received, None]) -> AsyncGenerator[Received, None]:
    async for event in events:
        yield event
        if event.type == "log":
            return


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("", {"Last-Event-ID": "rubbish"}, 422, "invalid_request"),
        ("", {"Last-Event-ID": "7:0"}, 416, "invalid_offset"),
        ("?offset=11", {}, 416, "invalid_offset"),
        ("?offset=-1", {}, 422, "invalid_request"),
        ("?from_beginning=perhaps", {}, 422, "invalid_request"),
    ],
)
async def test_a_bad_place_to_begin_is_a_problem_not_a_stream(
    site: Site,
    ada: Account,
    http: httpx.AsyncClient,
    query: str,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    job = await site.finished_job(ada, b"0123456789")
    response = await http.get(f"/jobs/{job.id}/stream{query}", headers=headers)
    assert (response.status_code, response.json()["code"]) == (status, code)


async def test_a_quiet_stream_is_kept_alive_by_pings(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.queue_job(ada)
    async with http.stream("GET", f"/jobs/{job.id}/stream") as response, asyncio.timeout(10):
        async for line in response.aiter_lines():
            if line.startswith(": ping"):
                return
    pytest.fail("the stream ended")


async def test_a_revoked_key_ends_its_streams(site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    job = await site.queue_job(ada)
    async with stream(http, f"/jobs/{job.id}/stream") as events, asyncio.timeout(10):
        assert (await anext(events)).type == "status"
        await site.repository.revoke_api_key(ada.key.id, utcnow())
        rest = [event async for event in events]
    assert [(event.type, event.data.get("code")) for event in rest] == [("error", "unauthorized")]
    assert (await http.get(f"/jobs/{job.id}")).status_code == 401


async def test_a_deactivated_user_loses_streams_too(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    async with stream(http, f"/jobs/{attempt.job.id}/stream") as events, asyncio.timeout(10):
        assert (await anext(events)).type == "status"
        await site.repository.set_user_active(ada.user.id, active=False, now=utcnow())
        rest = [event async for event in events]
    assert rest[-1].data["code"] == "unauthorized"


async def test_streams_are_counted_per_user_and_given_back(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    bob = await site.account("bob")
    mine, his = await site.queue_job(ada), await site.queue_job(bob)
    path = f"/jobs/{mine.id}/stream"
    async with AsyncExitStack() as streams:
        for _ in range(site.settings.max_streams_per_user):
            events = await streams.enter_async_context(stream(http, path))
            await anext(events)
        refused = await http.get(path)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        assert int(refused.headers["retry-after"]) > 0
        submitted = await http.post("/submit", files={"file": b"never looked at"})
        assert submitted.status_code == 429
        async with (
            client(str(http.base_url), bob) as other,
            stream(other, f"/jobs/{his.id}/stream") as events,
        ):
            assert (await anext(events)).type == "status"

    async def free_again() -> bool:
        async with http.stream("GET", path) as response:
            return response.status_code == 200

    await eventually(free_again)


async def test_a_reader_that_takes_nothing_loses_its_stream(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    """Seen from the outside: as many as may be open have begun, and still another one gets a place in time."""
    job = await site.finished_job(ada, b"x" * 8_000_000)
    allowed = range(site.settings.max_streams_per_user)
    stalled = [await _stalled_reader(http.base_url, ada, job) for _ in allowed]

    async def accepted() -> bool:
        return await _status(http, job) == 200

    try:
        await eventually(accepted, seconds=30)
    finally:
        for connection in stalled:
            connection.close()


async def _status(http: httpx.AsyncClient, job: Job) -> int:
    async with http.stream("GET", f"/jobs/{job.id}/stream") as response:
        return response.status_code


async def _stalled_reader(url: httpx.URL, account: Account, job: Job) -> socket.socket:
    """Return a connection whose replay has begun, and which reads none of it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (url.host, url.port))
    lines = [
        f"GET /jobs/{job.id}/stream?offset=0 HTTP/1.1",
        "Host: ci",
        f"Authorization: Bearer {account.secret}",
    ]
    await loop.sock_sendall(connection, "\r\n".join([*lines, "", ""]).encode())
    assert await loop.sock_recv(connection, 12) == b"HTTP/1.1 200"
    return connection
