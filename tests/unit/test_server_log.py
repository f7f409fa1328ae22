"""`/jobs/{id}/log`: plain text, whole or in part, of finished and of running jobs."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_common.models import Job
from ci_server.byte_ranges import ByteRange, Unsatisfiable, parse_range
from tests.support.server import Account, Site

OUTPUT = b"0123456789" * 10 + b"\xff\x00"


@pytest.fixture
async def job(site: Site, ada: Account) -> Job:
    return await site.finished_job(ada, OUTPUT)


async def test_the_log_is_the_bytes_as_plain_text(job: Job, http: httpx.AsyncClient) -> None:
    response = await http.get(f"/jobs/{job.id}/log")
    assert response.status_code == 200
    assert response.content == OUTPUT
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-length"] == str(len(OUTPUT))
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["etag"] == f'"{job.log_sha256}"'


async def test_head_tells_the_size_without_the_bytes(job: Job, http: httpx.AsyncClient) -> None:
    response = await http.head(f"/jobs/{job.id}/log")
    assert response.status_code == 200
    assert response.headers["content-length"] == str(len(OUTPUT))
    assert response.content == b""


@pytest.mark.parametrize(
    ("asked", "content", "content_range"),
    [
        ("bytes=0-9", OUTPUT[:10], "bytes 0-9/102"),
        ("bytes=95-", OUTPUT[95:], "bytes 95-101/102"),
        ("bytes=-7", OUTPUT[-7:], "bytes 95-101/102"),
        ("bytes=-500", OUTPUT, "bytes 0-101/102"),
        ("bytes=100-500", OUTPUT[100:], "bytes 100-101/102"),
        ("Bytes = 5 - 5", OUTPUT[5:6], "bytes 5-5/102"),
    ],
)
async def test_a_range_is_answered_with_its_bytes(
    job: Job, http: httpx.AsyncClient, asked: str, content: bytes, content_range: str
) -> None:
    response = await http.get(f"/jobs/{job.id}/log", headers={"Range": asked})
    assert response.status_code == 206
    assert response.content == content
    assert response.headers["content-range"] == content_range


@pytest.mark.parametrize("asked", ["bytes=102-", "bytes=500-600", "bytes=-0"])
async def test_a_range_behind_the_end_is_416_with_the_size(
    job: Job, http: httpx.AsyncClient, asked: str
) -> None:
    response = await http.get(f"/jobs/{job.id}/log", headers={"Range": asked})
    assert (response.status_code, response.json()["code"]) == (416, "invalid_offset")
    assert response.headers["content-range"] == "bytes */102"


@pytest.mark.parametrize("asked", ["lines=1-2", "bytes=9-3", "bytes=0-1,4-5", "bytes=-", "bytes=a-b", "0-5"])
async def test_a_range_we_do_not_understand_is_ignored(job: Job, http: httpx.AsyncClient, asked: str) -> None:
    response = await http.get(f"/jobs/{job.id}/log", headers={"Range": asked})
    assert response.status_code == 200
    assert response.content == OUTPUT


async def test_if_range_keeps_parts_of_two_logs_apart(job: Job, http: httpx.AsyncClient) -> None:
    path = f"/jobs/{job.id}/log"
    same = await http.get(path, headers={"Range": "bytes=5-", "If-Range": f'"{job.log_sha256}"'})
    other = await http.get(path, headers={"Range": "bytes=5-", "If-Range": '"other"'})
    assert (same.status_code, other.status_code) == (206, 200)


async def test_of_a_running_job_there_is_what_there_is_now(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.queue_job(ada)
    path = f"/jobs/{job.id}/log"
    assert (await http.get(path)).content == b""
    attempt = await site.hands.start()
    site.hands.write(attempt, b"one")
    first = await http.get(path)
    assert first.content == b"one"
    assert "etag" not in first.headers
    nothing_new = await http.get(path, headers={"Range": "bytes=3-"})
    assert nothing_new.headers["content-range"] == "bytes */3"
    site.hands.write(attempt, b"two")
    assert (await http.get(path, headers={"Range": "bytes=3-"})).content == b"two"


async def test_an_earlier_attempt_can_be_read(site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    job = await site.queue_job(ada)
    first = await site.hands.start()
    site.hands.write(first, b"lost")
    await site.hands.lose(first)
    second = await site.hands.start()
    site.hands.write(second, b"kept")
    await site.hands.finish(second)
    path = f"/jobs/{job.id}/log"
    assert (await http.get(path)).content == b"kept"
    assert (await http.get(path, params={"attempt": 1})).content == b"lost"
    missing = await http.get(path, params={"attempt": 3})
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


async def test_a_damaged_log_has_no_etag(site: Site, job: Job, http: httpx.AsyncClient) -> None:
    (site.settings.data_path / "logs" / job.id / "1.log").write_bytes(b"short")
    response = await http.get(f"/jobs/{job.id}/log")
    assert response.content == b"short"
    assert "etag" not in response.headers


@given(size=st.integers(0, 50), first=st.none() | st.integers(0, 60), last=st.none() | st.integers(0, 60))
def test_a_range_lies_in_the_file_or_is_refused(size: int, first: int | None, last: int | None) -> None:
    data = bytes(range(size))
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    try:
        found = parse_range(header, size) or ByteRange(0, size)
    except Unsatisfiable:
        assert not size or (first is not None and first >= size) or (first is None and last == 0)
        return
    if first is not None and (last is None or last >= first):
        assert data[found.start : found.end] == data[first : None if last is None else last + 1]
    elif first is None and last is not None:
        assert data[found.start : found.end] == data[-last:]
    else:
        assert (found.start, found.end) == (0, size)
