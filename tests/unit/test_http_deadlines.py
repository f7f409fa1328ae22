"""Slow and greedy clients against the protocol that `ci-server` serves with: every connection has its deadlines."""

import asyncio
import json
import select
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from ci_server.connections import ConnectionLimits
from tests.support.raw_http import connect, form_of, head, rest_of, upload_head
from tests.support.server import Account, Site, client, make_settings, open_site, serving, zipped


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site, None]:
    changes: dict[str, Any] = {"header_timeout": 0.5, "upload_timeout": 1.0, "stream_send_timeout": 0.5}
    async with open_site(tmp_path, **changes, max_connections_per_address=20) as opened:
        yield opened


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    with serving(site.settings) as url:
        yield url


async def ended(connection: socket.socket) -> bytes:
    """Return what came until the server ended the connection."""
    return await asyncio.to_thread(rest_of, connection)


# -- heads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: test\r\n", b"\r\n\r\n"]
)
async def test_a_head_that_does_not_come_ends_the_connection(url: str, sent: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(sent)
        assert await ended(connection) == b""


async def test_a_head_that_trickles_has_no_longer_than_one_that_is_silent(url: str) -> None:
    """Each byte comes in time for itself; the deadline is that of the whole head."""
    with connect(url) as connection:

        def trickle() -> bool:
            """Return True when the server hangs up; the loop is bounded by the test's own time-out."""
            connection.settimeout(0.05)
            while True:
                try:
                    connection.sendall(b"x")
                    if connection.recv(1) == b"":
                        return True
                except TimeoutError:
                    continue
                except ConnectionError:
                    return True

        connection.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        assert await asyncio.to_thread(trickle)


async def test_the_second_request_of_a_connection_has_a_deadline_too(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(head("GET", "/health"))
        assert (await asyncio.to_thread(connection.recv, 1 << 16)).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /health HT")
        assert await ended(connection) == b""


async def test_a_body_that_goes_on_after_the_answer_ends_the_connection(url: str) -> None:
    """Refused by its head, a client that sends its upload nevertheless cannot do so for ever."""
    with connect(url) as connection:
        connection.sendall(upload_head("/submit-async", "ci_wrong", 1 << 30))

        def push() -> bytes:
            connection.settimeout(0.05)
            received = bytearray()
            while True:
                try:
                    connection.sendall(b"x" * 100)
                    if not (chunk := connection.recv(1 << 16)):
                        return bytes(received)
                    received += chunk
                except TimeoutError:
                    continue
                except ConnectionError:
                    return bytes(received)

        answer = await asyncio.to_thread(push)
    assert b" 401 " in answer


async def test_a_head_without_end_is_refused(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 70_000)
        answer = await ended(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert problem_in(answer)["code"] == "invalid_request"


async def test_what_is_no_http_is_a_problem_document(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(b"rubbish\r\n\r\n")
        answer = await ended(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert problem_in(answer)["request_id"]


def problem_in(answer: bytes) -> dict[str, str]:
    headers, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in headers.lower()
    return json.loads(body)


# -- how many ----------------------------------------------------------------------------------------------


async def test_an_address_has_so_many_connections_and_gets_them_back(site: Site, url: str) -> None:
    with ExitStack() as held:
        for _ in range(site.settings.max_connections_per_address):
            held.enter_context(connect(url)).sendall(b"GET ")
        with connect(url) as one_too_many:
            answer = await ended(one_too_many)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in answer
    assert problem_in(answer)["code"] == "unavailable"
    async with client(url) as http, asyncio.timeout(10):
        while True:
            try:
                if (await http.get("/health")).status_code == 200:
                    return
            except httpx.TransportError:  # refused while we were sending
                continue


def test_the_total_holds_for_everybody_and_the_address_not_for_proxies(tmp_path: Path) -> None:
    changes = {"max_connections": 5, "max_connections_per_address": 2, "trusted_proxies": "192.0.2.1, ::1"}
    limits = ConnectionLimits(make_settings(tmp_path, **changes))
    assert [limits.admit("192.0.2.9") for _ in range(3)] == [True, True, False]
    assert [limits.admit("192.0.2.1") for _ in range(4)] == [True, True, True, False]
    limits.release("192.0.2.1")
    assert not limits.admit("192.0.2.9")
    limits.release("192.0.2.9")
    assert limits.admit("192.0.2.9")
    assert limits.admit("::1")
    assert not limits.admit("192.0.2.8")


def test_the_addresses_of_one_ipv6_network_are_one(tmp_path: Path) -> None:
    """Whoever has a /64 has more addresses than there are places; a proxy in it takes none of theirs."""
    limits = ConnectionLimits(
        make_settings(tmp_path, max_connections_per_address=2, trusted_proxies="2001:db8::ff")
    )
    assert [limits.admit("2001:db8::ff") for _ in range(3)] == [True, True, True]
    assert [limits.admit(f"2001:db8::{host}") for host in range(3)] == [True, True, False]
    assert limits.admit("2001:db8:0:1::1")
    limits.release("2001:db8::ff")
    assert not limits.admit("2001:db8::9")
    limits.release("2001:db8::1")
    assert limits.admit("2001:db8::9")


# -- bodies ------------------------------------------------------------------------------------------------


async def test_an_upload_has_a_total_deadline(site: Site, ada: Account, url: str) -> None:
    """It never stands still for as long as it may, and still is not complete in time."""
    form = form_of(zipped() + b"\0" * 4096)
    with connect(url) as connection:
        connection.sendall(upload_head("/submit-async", ada.secret, len(form)))

        def trickle() -> bytes:
            connection.settimeout(0.02)
            for at in range(len(form)):
                try:
                    connection.sendall(form[at : at + 1])
                    return connection.recv(1 << 16)
                except TimeoutError:
                    continue
            raise AssertionError("the whole body was taken")

        answer = await asyncio.to_thread(trickle)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"upload_too_slow" in answer
    assert list((site.settings.data_path / "archives").iterdir()) == []


async def test_an_upload_must_keep_a_pace(site: Site, ada: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grace is half a minute for people; here it is none, so the first bytes are judged."""
    monkeypatch.setattr("ci_server.uploads._RATE_GRACE", 0.0)
    settings = site.settings.model_copy(update={"upload_min_rate": 1 << 40})
    with serving(settings) as url, connect(url) as connection:
        form = form_of(zipped())
        connection.sendall(upload_head("/submit-async", ada.secret, len(form)) + form[:100])
        answer = await asyncio.to_thread(connection.recv, 1 << 16)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"bytes per second" in answer


# -- readers -----------------------------------------------------------------------------------------------


async def test_a_reader_of_a_log_that_takes_nothing_is_cut_off(site: Site, ada: Account, url: str) -> None:
    """Not only streams: any answer. And the socket is really gone, with what was waiting for it."""
    job = await site.finished_job(ada, b"x" * 20_000_000)
    with connect(url, receive_buffer=4096) as connection:
        connection.sendall(head("GET", f"/jobs/{job.id}/log", Authorization=f"Bearer {ada.secret}"))
        assert connection.recv(1) == b"H"
        connection.settimeout(20)
        await asyncio.to_thread(_until_reset, connection)


def _until_reset(connection: socket.socket) -> None:
    """The server has reset the connection; nothing of it was read meanwhile."""
    poll = select.poll()
    poll.register(connection, select.POLLERR | select.POLLHUP)
    assert poll.poll(20_000), "the connection is still open"
