"""The submit routes: what is accepted, what is refused and when, and that a retry is the same job."""

import asyncio
import contextlib
import hashlib
import socket
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ci_common.clock import utcnow
from ci_common.job_terms import JobStatus
from ci_common.models import JobFilter, Scope
from tests.support.archives import HOSTILE
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

LIMIT = 200_000
SUBMIT_ROUTES = ("/submit", "/submit-stream", "/submit-async")


@pytest.fixture
def patience() -> float:
    """Seconds that an upload may stand still; tests of what comes of it say less."""
    return 30.0


@pytest.fixture
async def site(tmp_path: Path, patience: float) -> AsyncGenerator[Site, None]:
    async with open_site(
        tmp_path, max_upload_bytes=LIMIT, max_queued_per_user=25, upload_read_timeout=patience
    ) as opened:
        yield opened


def stored(site: Site) -> list[str]:
    """Return what is in the archive store's directory, unfinished uploads included."""
    return sorted(path.name for path in (site.settings.data_path / "archives").iterdir())


async def jobs_of(site: Site, account: Account) -> int:
    return len((await site.repository.list_jobs(JobFilter(user_id=account.user.id))).jobs)


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.json()


# -- accepted ------------------------------------------------------------------------------------------


async def test_submit_async_answers_with_the_id_of_a_queued_job(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    data = zipped()
    response = await http.post("/submit-async", files=upload(data))
    assert response.status_code == 200
    assert list(response.json()) == ["job_id"]
    job = await site.repository.get_job(response.json()["job_id"], ada.user.id)
    assert job is not None
    assert job.status is JobStatus.QUEUED
    assert stored(site) == [job.archive_ref]
    with site.stores.archives.open(job.archive_ref) as archive:
        assert [entry.path for entry in archive.entries] == ["requirements.txt", "tests/test_it.py"]


async def test_the_form_may_carry_arguments_and_a_timeout_on_either_side_of_the_file(
    site: Site, http: httpx.AsyncClient
) -> None:
    form = {"pytest_args": ["-x", "-k", "ä b"], "timeout": "90.5", "from_the_future": "skipped"}
    response = await http.post("/submit-async", data=form, files=upload())
    job = await site.repository.get_job(response.json()["job_id"])
    assert job is not None
    assert job.options.pytest_args == ("-x", "-k", "ä b")
    assert job.options.timeout_seconds == 90.5


@pytest.mark.parametrize(
    ("form", "fresh"),
    [({}, False), ({"fresh": "true"}, True), ({"fresh": "false"}, False), ({"fresh": ""}, False)],
)
async def test_a_job_may_be_to_use_nothing_that_is_kept(
    site: Site, http: httpx.AsyncClient, form: dict[str, str], fresh: bool
) -> None:
    response = await http.post("/submit-async", data=form, files=upload())
    job = await site.repository.get_job(response.json()["job_id"])
    assert job is not None
    assert job.options.fresh is fresh
    assert (await http.get(f"/jobs/{job.id}")).json()["fresh"] is fresh


async def test_fresh_is_true_or_false(http: httpx.AsyncClient) -> None:
    response = await http.post("/submit-async", data={"fresh": "maybe"}, files=upload())
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


async def test_a_fresh_submission_is_another_one(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "mine"}
    data = zipped()
    first = await http.post("/submit-async", files=upload(data), headers=headers)
    assert first.status_code == 200
    again = await http.post("/submit-async", data={"fresh": "true"}, files=upload(data), headers=headers)
    assert again.json()["code"] == "idempotency_conflict"


async def test_an_upload_in_small_pieces_without_a_length_is_taken(http: httpx.AsyncClient) -> None:
    body, headers = multipart({"file": zipped()})

    async def dripping() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    response = await http.post("/submit-async", content=dripping(), headers=headers)
    assert response.status_code == 200


async def test_submit_stream_names_the_job_first_and_submit_does_not(
    site: Site, http: httpx.AsyncClient
) -> None:
    async def run_jobs() -> None:
        for _ in range(2):
            await eventually(lambda: site.repository.count_queued(utcnow()))
            attempt = await site.hands.start()
            site.hands.write(attempt, b"Running tests...\n")
            await site.hands.finish(attempt)

    running = asyncio.create_task(run_jobs())
    named = await read_to_end(http, "/submit-stream", method="POST", files=upload())
    plain = await read_to_end(http, "/submit", method="POST", files=upload())
    await running
    assert [event.type for event in named if event.type != "status"] == ["job_id", "log", "complete"]
    assert named[0].data.keys() == {"type", "job_id"}
    assert [event.data for event in plain if event.type == "log"] == [
        {"type": "log", "data": "Running tests...\n"}
    ]
    assert "job_id" not in [event.type for event in plain]
    assert plain[-1].data["success"] is True


async def test_the_stream_has_the_headers_that_keep_proxies_from_holding_it_back(
    http: httpx.AsyncClient,
) -> None:
    async with http.stream("POST", "/submit-stream", files=upload()) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache, no-store"
        assert response.headers["x-accel-buffering"] == "no"
        first = await anext(response.aiter_text())
    assert first.startswith('data: {"type": "job_id", "job_id": "')
    assert "\r" not in first


# -- refused before the body ---------------------------------------------------------------------------


async def test_who_has_no_key_is_refused_before_sending_the_body(site: Site) -> None:
    with serving(site.settings) as url:
        for route in SUBMIT_ROUTES:
            answer = await _answer_to_headers_only(url, route, {"Content-Length": str(LIMIT)})
            assert answer.startswith(b"HTTP/1.1 401 "), route


async def test_too_large_a_body_is_refused_before_it_is_sent(site: Site, ada: Account) -> None:
    headers = {"Content-Length": str(LIMIT * 10), **ada.headers, "Content-Type": "multipart/form-data"}
    with serving(site.settings) as url:
        for route in SUBMIT_ROUTES:
            answer = await _answer_to_headers_only(url, route, headers)
            assert answer.startswith(b"HTTP/1.1 413 "), route


async def test_a_client_that_expects_100_is_told_to_go_on(site: Site, ada: Account) -> None:
    body, form_headers = multipart({"file": zipped()})
    with serving(site.settings) as url:
        headers = {**ada.headers, **form_headers, "Content-Length": str(len(body)), "Expect": "100-continue"}
        answer = await _answer_to_headers_only(url, "/submit-async", headers)
    assert answer.startswith(b"HTTP/1.1 100 ")


async def test_a_key_without_the_scope_may_not_submit(site: Site) -> None:
    reader = await site.account("reader", frozenset({Scope.READ}))
    with serving(site.settings) as url:
        async with client(url, reader) as http:
            response = await http.post("/submit-async", files=upload())
            assert (response.status_code, problem(response)["code"]) == (403, "forbidden")
            assert (await http.get("/jobs")).status_code == 200
    assert stored(site) == []


async def test_a_full_queue_is_refused_with_the_time_to_come_back(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    for _ in range(site.settings.max_queued_per_user):
        await site.queue_job(ada)
    response = await http.post("/submit-async", files=upload())
    assert (response.status_code, problem(response)["code"]) == (429, "too_many_requests")
    assert int(response.headers["retry-after"]) > 0


async def test_a_queue_that_fills_during_the_upload_is_full(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    body, headers = multipart({"file": zipped()})

    async def overtaken() -> AsyncIterator[bytes]:
        yield body[:-30]
        await eventually(lambda: _async(bool(stored(site))))  # there was room when it began
        for _ in range(site.settings.max_queued_per_user):
            await site.queue_job(ada)
        yield body[-30:]

    response = await http.post("/submit-async", content=overtaken(), headers=headers)
    assert (response.status_code, problem(response)["code"]) == (429, "too_many_requests")
    assert stored(site) == []


async def test_a_repetition_has_its_place_in_a_full_queue_already(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    headers = {"Idempotency-Key": "one"}
    first = await http.post("/submit-async", files=upload(), headers=headers)
    for _ in range(site.settings.max_queued_per_user):
        await site.queue_job(ada)
    again = await http.post("/submit-async", files=upload(), headers=headers)
    assert (again.status_code, again.json()) == (200, first.json())


# -- refused bodies ------------------------------------------------------------------------------------


def multipart(parts: dict[str, bytes], *, closed: bool = True) -> tuple[bytes, dict[str, str]]:
    """Return a form as bytes and the header that goes with it."""
    body = b""
    for name, value in parts.items():
        disposition = f'Content-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'
        body += b"--sep\r\n" + disposition.encode() + value + b"\r\n"
    return body + (b"--sep--\r\n" if closed else b""), {"Content-Type": "multipart/form-data; boundary=sep"}


FORM = {"Content-Type": "multipart/form-data; boundary=sep"}


EMPTY_ARGUMENT = b"--sep\r\nContent-Disposition:form-data;name=pytest_args\r\n\r\n\r\n"

BAD_UPLOADS: list[tuple[str, bytes, dict[str, str], int, str]] = [
    ("JSON", b"{}", {"Content-Type": "application/json"}, 422, "invalid_request"),
    ("nothing", b"", {}, 422, "invalid_request"),
    ("a bare zip", zipped(), {"Content-Type": "application/zip"}, 422, "invalid_request"),
    ("no boundary", b"x", {"Content-Type": "multipart/form-data"}, 422, "invalid_request"),
    (
        "a boundary too long",
        b"x",
        {"Content-Type": "multipart/form-data; boundary=" + "b" * 300},
        422,
        "invalid_request",
    ),
    ("rubbish", b"rubbish", FORM, 422, "invalid_request"),
    ("an empty form", b"--sep--\r\n", FORM, 422, "invalid_request"),
    ("a part without a name", b"--sep\r\nX-Y: z\r\n\r\nv\r\n--sep--\r\n", FORM, 422, "invalid_request"),
    ("no field file", multipart({"other": zipped()})[0], FORM, 422, "invalid_request"),
    ("cut off", multipart({"file": zipped()}, closed=False)[0], FORM, 422, "invalid_request"),
    (
        "an idempotency key with a space",
        multipart({"file": zipped()})[0],
        {**FORM, "Idempotency-Key": "a b"},
        422,
        "invalid_request",
    ),
    ("timeout: words", multipart({"file": zipped(), "timeout": b"soon"})[0], FORM, 422, "invalid_request"),
    ("timeout: NaN", multipart({"file": zipped(), "timeout": b"nan"})[0], FORM, 422, "invalid_request"),
    ("timeout: negative", multipart({"file": zipped(), "timeout": b"-1"})[0], FORM, 422, "invalid_request"),
    ("timeout: too long", multipart({"file": zipped(), "timeout": b"1e9"})[0], FORM, 422, "invalid_request"),
    (
        "an argument that is not UTF-8",
        multipart({"file": zipped(), "pytest_args": b"\xff"})[0],
        FORM,
        422,
        "invalid_request",
    ),
    (
        "an argument with NUL",
        multipart({"file": zipped(), "pytest_args": b"a\0b"})[0],
        FORM,
        422,
        "invalid_request",
    ),
    (
        "arguments too long",
        multipart({"file": zipped(), "pytest_args": b"a" * 140_000})[0],
        FORM,
        422,
        "invalid_request",
    ),
    (
        "arguments that are long once they are stored",
        multipart({"file": zipped(), "pytest_args": b"\x01" * 6_000})[0],
        FORM,
        422,
        "invalid_request",
    ),
    (
        "arguments too many",
        EMPTY_ARGUMENT * 1001 + multipart({"file": zipped()})[0],
        FORM,
        422,
        "invalid_request",
    ),
    (
        "fields too many, all of them empty",
        b"--sep\r\nContent-Disposition:form-data;name=x\r\n\r\n\r\n" * 3000
        + multipart({"file": zipped()})[0],
        FORM,
        422,
        "invalid_request",
    ),
    ("an empty archive", multipart({"file": b""})[0], FORM, 422, "invalid_archive"),
    ("no archive", multipart({"file": b"not a zip"})[0], FORM, 422, "invalid_archive"),
    ("a path that leads out", multipart({"file": zipped({"../x": "y"})})[0], FORM, 422, "invalid_archive"),
    (
        "a file too large",
        multipart({"file": zipped({"big": "x" * (LIMIT + 1)})})[0],
        FORM,
        413,
        "archive_too_large",
    ),
    ("a body too large", multipart({"file": zipped()})[0] * 2000, FORM, 413, "archive_too_large"),
]


@pytest.mark.parametrize(
    "name",
    [
        "parent",
        "symlink",
        "duplicate",
        "differs in case",
        "bomb",
        "overlapping",
        "trailing data",
        "encrypted",
    ],
)
async def test_a_hostile_archive_is_refused_by_its_rule_and_leaves_nothing(
    name: str, site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    data, rule = HOSTILE[name]
    response = await http.post("/submit-async", files=upload(data))
    assert (response.status_code, problem(response)["code"]) == (422, "invalid_archive")
    assert problem(response)["rule"] == rule
    assert stored(site) == []
    assert await jobs_of(site, ada) == 0


async def test_a_bad_upload_says_what_is_wrong_and_leaves_nothing(
    site: Site, ada: Account, http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for name, body, headers, status, code in BAD_UPLOADS:
        with subtests.test(name):
            response = await http.post("/submit-async", content=body, headers=headers)
            assert (response.status_code, problem(response)["code"]) == (status, code), response.text
            assert len(problem(response)["detail"]) > 20
            assert stored(site) == []
    assert await jobs_of(site, ada) == 0


async def test_as_many_arguments_as_may_be_are_taken(site: Site, http: httpx.AsyncClient) -> None:
    body = EMPTY_ARGUMENT * 1000 + multipart({"file": zipped()})[0]
    response = await http.post("/submit-async", content=body, headers=FORM)
    assert response.status_code == 200, response.text
    job = await site.repository.get_job(response.json()["job_id"])
    assert job is not None
    assert job.options.pytest_args == ("",) * 1000


async def test_two_files_are_one_too_many(site: Site, http: httpx.AsyncClient) -> None:
    part = b'--sep\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + zipped() + b"\r\n"
    response = await http.post("/submit-async", content=part + part + b"--sep--\r\n", headers=FORM)
    assert (response.status_code, problem(response)["code"]) == (422, "invalid_request")
    assert stored(site) == []


async def test_too_large_a_body_is_refused_while_it_comes(site: Site, http: httpx.AsyncClient) -> None:
    start, headers = multipart({"file": b""}, closed=False)

    async def endless() -> AsyncIterator[bytes]:
        yield start
        for _ in range(1000):
            yield b"x" * 10_000

    response = await http.post("/submit-async", content=endless(), headers=headers)
    assert (response.status_code, problem(response)["code"]) == (413, "archive_too_large")
    assert stored(site) == []


@pytest.mark.parametrize("patience", [1.0])
async def test_an_upload_that_stands_still_is_given_up(site: Site, http: httpx.AsyncClient) -> None:
    body, headers = multipart({"file": zipped()})

    async def stalling() -> AsyncIterator[bytes]:
        yield body[:-30]
        await eventually(lambda: _async(bool(stored(site))))
        await eventually(lambda: _async(not stored(site)))  # the server lost patience
        yield body[-30:]

    response = await http.post("/submit-async", content=stalling(), headers=headers)
    assert (response.status_code, problem(response)["code"]) == (503, "unavailable")
    assert int(response.headers["retry-after"]) > 0


async def test_a_client_that_leaves_during_the_upload_leaves_nothing(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    url = http.base_url
    body, form_headers = multipart({"file": zipped({"test_it.py": "#" * 100_000})})
    headers = {**ada.headers, **form_headers, "Content-Length": str(len(body))}
    request = _head("/submit-async", headers) + body[:-30]
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(request)
    await writer.drain()
    await eventually(lambda: _async(bool(stored(site))))  # the upload has begun
    writer.close()
    await eventually(lambda: _async(not stored(site)))
    assert await jobs_of(site, ada) == 0


# -- locked out meanwhile, and a database that fails ---------------------------------------------------


async def test_a_key_revoked_during_the_upload_starts_nothing(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    body, headers = multipart({"file": zipped()})

    async def revoking() -> AsyncIterator[bytes]:
        yield body[:-30]
        await eventually(lambda: _async(bool(stored(site))))  # authenticated, and reading
        await site.repository.revoke_api_key(ada.key.id, utcnow())
        yield body[-30:]

    response = await http.post("/submit-async", content=revoking(), headers=headers)
    assert (response.status_code, problem(response)["code"]) == (401, "unauthorized")
    assert stored(site) == []


async def test_a_database_that_fails_after_the_upload_leaves_nothing(
    site: Site, http: httpx.AsyncClient
) -> None:
    body, headers = multipart({"file": zipped()})

    async def breaking() -> AsyncIterator[bytes]:
        yield body[:-30]
        await eventually(lambda: _async(bool(stored(site))))
        _run_sql(site, "ALTER TABLE jobs RENAME TO jobs_elsewhere")
        yield body[-30:]

    response = await http.post("/submit-async", content=breaking(), headers=headers)
    assert (response.status_code, problem(response)["code"]) == (503, "schema_missing")
    assert int(response.headers["retry-after"]) > 0
    assert stored(site) == []
    _run_sql(site, "ALTER TABLE jobs_elsewhere RENAME TO jobs")
    assert (await http.post("/submit-async", files=upload())).status_code == 200


def _run_sql(site: Site, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(site.settings.db_path, timeout=10)) as db, db:
        db.execute(statement)


# -- the same submission again -------------------------------------------------------------------------


async def test_twenty_at_once_under_one_key_are_one_job(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    headers = {"Idempotency-Key": "one"}
    responses = await asyncio.gather(
        *(http.post("/submit-async", files=upload(), headers=headers) for _ in range(20))
    )
    assert {response.status_code for response in responses} == {200}
    [job_id] = {response.json()["job_id"] for response in responses}
    assert await jobs_of(site, ada) == 1
    job = await site.repository.get_job(job_id)
    assert job is not None
    assert stored(site) == [job.archive_ref]


async def test_a_replay_on_another_route_follows_the_first_job(site: Site, http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "one"}
    first = (await http.post("/submit-async", files=upload(), headers=headers)).json()["job_id"]
    async with stream(http, "/submit-stream", method="POST", files=upload(), headers=headers) as events:
        assert (await anext(events)).data["job_id"] == first
    assert len(stored(site)) == 1


async def test_who_repeats_a_submission_may_follow_it_again_and_nothing_else(site: Site) -> None:
    """Otherwise a key that may only submit would lose its verdict with its connection."""
    robot = await site.account("robot", frozenset({Scope.SUBMIT}))
    headers = {"Idempotency-Key": "one"}
    with serving(site.settings) as url:
        async with client(url, robot) as http:
            job_id = (await http.post("/submit-async", files=upload(), headers=headers)).json()["job_id"]
            attempt = await site.hands.start()
            site.hands.write(attempt, b"out")
            await site.hands.finish(attempt)
            again = await read_to_end(http, "/submit", method="POST", files=upload(), headers=headers)
            assert [event.data["data"] for event in again if event.type == "log"] == ["out"]
            other = await http.post("/submit", files=upload(zipped({"tests/test_b.py": ""})), headers=headers)
            assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
            assert (await http.get(f"/jobs/{job_id}/stream")).status_code == 403


@pytest.mark.parametrize(
    "other",
    [{"files": upload(zipped({"tests/test_b.py": ""}))}, {"files": upload(), "data": {"timeout": "9"}}],
)
async def test_one_key_for_two_things_is_a_conflict(
    site: Site, http: httpx.AsyncClient, other: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "one"}
    assert (await http.post("/submit-async", files=upload(), headers=headers)).status_code == 200
    response = await http.post("/submit-async", headers=headers, **other)
    assert (response.status_code, problem(response)["code"]) == (409, "idempotency_conflict")
    assert len(stored(site)) == 1


async def test_keys_of_two_users_are_two_jobs(site: Site, http: httpx.AsyncClient) -> None:
    bob = await site.account("bob")
    mine = await http.post("/submit-async", files=upload(), headers={"Idempotency-Key": "one"})
    his = await http.post("/submit-async", files=upload(), headers={"Idempotency-Key": "one", **bob.headers})
    assert mine.json()["job_id"] != his.json()["job_id"]


async def test_what_is_stored_is_what_was_sent(site: Site, http: httpx.AsyncClient) -> None:
    data = zipped({f"tests/test_{number}.py": "x = 1\n" * number for number in range(100)})
    job_id = (await http.post("/submit-async", files=upload(data))).json()["job_id"]
    job = await site.repository.get_job(job_id)
    assert job is not None
    kept = (site.settings.data_path / "archives" / job.archive_ref).read_bytes()
    assert hashlib.sha256(kept).digest() == hashlib.sha256(data).digest()


# -- raw HTTP ------------------------------------------------------------------------------------------


async def _async(value: bool) -> bool:
    return value


def _head(route: str, headers: dict[str, str]) -> bytes:
    lines = [f"POST {route} HTTP/1.1", "Host: ci", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def _answer_to_headers_only(url: str, route: str, headers: dict[str, str]) -> bytes:
    """Return the beginning of the answer that comes although not a byte of the body was sent."""
    target = httpx.URL(url)
    reader, writer = await asyncio.open_connection(target.host, target.port, family=socket.AF_INET)
    try:
        writer.write(_head(route, headers))
        async with asyncio.timeout(10):
            return await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()
