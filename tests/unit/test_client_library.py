"""The client library against a real HTTP server: what is sent, what comes back, and what breaks on the way."""

import hashlib
import io
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ci_client.client import CIClient, submit_tests_streaming
from ci_client.retry import RetryPolicy
from ci_common.errors import (
    ArchiveTooLarge,
    CIError,
    InternalError,
    InvalidArchive,
    InvalidRequest,
    JobNotFound,
    ServerUnreachable,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ci_common.events import (
    CompleteEvent,
    ErrorEvent,
    JobIdEvent,
    LogEvent,
    Position,
    StatusEvent,
    StreamEvent,
)
from ci_common.job_terms import JobOptions, JobStatus, Priority
from tests.support.http_peer import JOB_ID, KEY, PASSED, Answer, Cut, HangUp, HttpPeer, Script

QUICK = RetryPolicy(first_delay=0.001, max_delay=0.01, first_contact=0.05, patience=20.0)
IMPATIENT = RetryPolicy(first_delay=0.001, max_delay=0.01, first_contact=0.05, patience=0.2)


@pytest.fixture
def peer() -> Iterator[HttpPeer]:
    with HttpPeer() as peer:
        yield peer


@pytest.fixture
def client(peer: HttpPeer) -> Iterator[CIClient]:
    with CIClient(peer.url, KEY, retry=QUICK) as client:
        yield client


def archive(data: bytes = b"a zip") -> io.BytesIO:
    return io.BytesIO(data)


def output(events: Iterator[StreamEvent]) -> bytes:
    """Return the output, having checked that one verdict ends it."""
    seen = list(events)
    assert [event for event in seen if isinstance(event, CompleteEvent)] == [seen[-1]]
    return b"".join(event.data for event in seen if isinstance(event, LogEvent))


def test_submitting_and_following_gives_every_event(peer: HttpPeer, client: CIClient) -> None:
    peer.script.piece = 100
    assert list(client.submit_stream(archive())) == [
        JobIdEvent(JOB_ID),
        StatusEvent(JobStatus.RUNNING, 1),
        LogEvent(peer.script.log, Position(1, len(peer.script.log))),
        PASSED,
    ]


def test_what_is_sent(peer: HttpPeer, client: CIClient, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"\x00zip\r\n\xff")
    progress: list[tuple[int, int]] = []
    options = JobOptions(("-k", "one two", "-x"), 90.0, fresh=True, priority=Priority.HIGH)
    options = replace(options, max_attempts=1, queue_timeout_seconds=600.0)
    job_id = client.submit(
        tmp_path / "a.zip",
        options,
        idempotency_key="mine",
        on_progress=lambda sent, total: progress.append((sent, total)),
    )
    (request,) = peer.requests("POST", "/submit-async")
    assert job_id == JOB_ID
    assert request.form == {
        "file": [b"\x00zip\r\n\xff"],
        "pytest_args": [b"-k", b"one two", b"-x"],
        "timeout": [b"90"],
        "fresh": [b"true"],
        "priority": [b"high"],
        "max_attempts": [b"1"],
        "queue_timeout": [b"600"],
    }
    assert request.headers["idempotency-key"] == "mine"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert progress[-1] == (7, 7)


@pytest.mark.parametrize("seed", range(6))
def test_connections_cut_anywhere_lose_and_repeat_nothing(
    peer: HttpPeer, client: CIClient, seed: int
) -> None:
    chance = random.Random(seed)
    peer.script.log = chance.randbytes(20_000)  # mostly not UTF-8
    peer.script.piece = 997
    peer.script.faults.extend(Cut(chance.randrange(9_000)) for _ in range(25))
    got = output(client.submit_stream(archive()))
    assert hashlib.sha256(got).digest() == hashlib.sha256(peer.script.log).digest()
    assert not peer.script.faults
    assert (
        len({request.headers["idempotency-key"] for request in peer.requests("POST", "/submit-stream")}) == 1
    )


def test_servers_that_are_away_for_a_moment_are_waited_for(peer: HttpPeer, client: CIClient) -> None:
    busy = Answer.problem(503, "database_busy", "busy")
    gateway = Answer(502, b"<html>Bad gateway</html>", {"Content-Type": "text/html"})
    peer.script.faults.extend([Cut(200), busy, gateway, HangUp(), Cut(0), busy])
    assert output(client.submit_stream(archive())) == peer.script.log


def test_a_server_that_restarts_is_found_again(peer: HttpPeer, client: CIClient) -> None:
    peer.script.log = bytes(1000)
    peer.script.hold_after = 500
    events = client.submit_stream(archive())
    seen: list[StreamEvent] = []
    while not seen or not is_at(seen[-1], 500):
        seen.append(next(events))
    peer.stop()
    restart = threading.Timer(0.1, peer.start)
    restart.start()
    peer.released.set()
    rest = list(events)
    restart.join()
    sizes = [len(event.data) for event in (*seen, *rest) if isinstance(event, LogEvent)]
    assert sum(sizes) == 1000
    (again,) = peer.requests("GET", f"/jobs/{JOB_ID}/stream")
    assert again.headers["last-event-id"] == "1:512"


def is_at(event: StreamEvent, offset: int) -> bool:
    return isinstance(event, LogEvent) and event.position.offset >= offset


def test_a_server_that_stays_away_is_reported(peer: HttpPeer) -> None:
    peer.script.faults.append(Cut(300))
    with CIClient(peer.url, KEY, retry=IMPATIENT) as client:
        events = client.submit_stream(archive())
        assert next(events) == JobIdEvent(JOB_ID)
        peer.stop()
        with pytest.raises(ServerUnreachable, match="cannot be reached"):
            list(events)


def test_a_server_that_is_not_there_is_reported_soon(peer: HttpPeer, client: CIClient) -> None:
    peer.stop()
    with pytest.raises(ServerUnreachable, match=peer.url):
        next(client.submit_stream(archive()))


def test_new_output_only_is_not_lost_between_connections(peer: HttpPeer, client: CIClient) -> None:
    peer.script.log = b"old"
    peer.script.hold_after = 3
    events = client.follow(JOB_ID)
    assert next(events) == StatusEvent(JobStatus.RUNNING, 1)
    peer.script.log += b" and new"  # written while the connection is lost
    peer.stop()
    peer.start()
    peer.released.set()
    assert output(events) == b" and new"


def test_following_from_a_position(peer: HttpPeer, client: CIClient) -> None:
    assert output(client.follow(JOB_ID, position=Position(1, 5))) == peer.script.log[5:]
    assert output(client.follow(JOB_ID, from_beginning=True)) == peer.script.log


@pytest.mark.parametrize(
    ("answer", "error", "requests"),
    [
        (Answer.problem(401, "unauthorized", "no"), Unauthorized, 1),
        (Answer.problem(404, "job_not_found", "no"), JobNotFound, 1),
        (Answer.problem(429, "too_many_requests", "no"), TooManyRequests, 1),
        (Answer.problem(422, "invalid_archive", "no", rule="x"), InvalidArchive, 1),
        (Answer(302, b"", {"Location": "https://elsewhere.invalid/"}), ServerUnreachable, 1),
        (Answer(404, b"<html>Not found</html>"), ServerUnreachable, 1),
        (Answer(200, b"<html>Hello</html>", {"Content-Type": "text/html"}), ServerUnreachable, 1),
        (Answer(413, b"<html>Too large</html>"), ArchiveTooLarge, 1),
        (Answer.problem(418, "younger_than_this_client", "tea"), InvalidRequest, 1),
        (Answer(200, b"data: nonsense\n\n", {"Content-Type": "text/event-stream"}), InternalError, 1),
    ],
)
def test_answers_that_are_final_are_not_asked_for_again(
    peer: HttpPeer, client: CIClient, answer: Answer, error: type[CIError], requests: int
) -> None:
    peer.script.faults.extend([answer] * 3)
    with pytest.raises(error):
        list(client.submit_stream(archive()))
    assert len(peer.received) == requests


def test_a_problem_becomes_the_same_exception(peer: HttpPeer, client: CIClient) -> None:
    peer.script.faults.append(Answer.problem(429, "too_many_requests", "Later.", **{"Retry-After": "7"}))
    with pytest.raises(TooManyRequests) as caught:
        client.submit(archive())
    assert (caught.value.detail, caught.value.retry_after) == ("Later.", 7)
    assert caught.value.extra["request_id"] == "req-1"


def test_a_busy_server_is_reported_when_it_asks_for_more_time_than_there_is(
    peer: HttpPeer, client: CIClient
) -> None:
    peer.script.faults.append(
        Answer.problem(503, "unavailable", "The queue is full.", **{"Retry-After": "30"})
    )
    with pytest.raises(Unavailable, match="queue is full"):
        client.submit(archive())


def test_an_upload_is_repeated_under_its_key(peer: HttpPeer, client: CIClient) -> None:
    peer.script.faults.extend([HangUp(), Answer(404), Cut(3)])
    assert client.submit(archive(b"x" * 500_000)) == JOB_ID
    posts = peer.requests("POST", "/submit-async")
    assert {post.headers["idempotency-key"] for post in posts} == {posts[0].headers["idempotency-key"]}
    assert all(post.form["file"] == [b"x" * 500_000] for post in posts)
    assert list(peer.jobs.values()) == [JOB_ID]


def test_a_refusal_that_cut_the_upload_off_is_found_out(peer: HttpPeer) -> None:
    peer.script.faults.append(HangUp())
    with CIClient(peer.url, "ci_wrong", retry=QUICK) as client, pytest.raises(Unauthorized):
        client.submit(archive(b"x" * 5_000_000))
    peer.script.max_upload_bytes = 1000
    peer.script.faults.append(HangUp())
    with CIClient(peer.url, KEY, retry=QUICK) as client, pytest.raises(ArchiveTooLarge, match="1000"):
        client.submit(archive(b"x" * 5_000_000))


def test_trouble_of_the_stream_is_passed_on_once(peer: HttpPeer, client: CIClient) -> None:
    peer.script.before = (ErrorEvent("database_busy", "busy"), StatusEvent(JobStatus.RUNNING, 1))
    events = list(client.follow(JOB_ID, from_beginning=True))
    assert events[0] == ErrorEvent("database_busy", "busy")
    assert events[-1] == PASSED


def test_an_outage_is_told(peer: HttpPeer) -> None:
    told: list[str] = []
    peer.script.faults.extend([Cut(0)] * 4)
    with CIClient(peer.url, KEY, retry=QUICK, on_outage=told.append) as client:
        list(client.follow(JOB_ID, from_beginning=True))
    assert len(told) == 1


def test_jobs_come_page_by_page(peer: HttpPeer, client: CIClient) -> None:
    jobs = [{"job_id": str(n), "status": "queued", "success": None, "new_field": n} for n in range(5)]
    peer.script.pages = [jobs[:2], jobs[2:4], jobs[4:]]
    listed = list(client.list_jobs(status=["queued", "running"]))
    assert [job.raw for job in listed] == jobs
    first, second, _ = peer.requests("GET", "/jobs")
    assert first.query["status"] == ["queued", "running"]
    assert second.query["cursor"] == ["1"]
    assert [job.job_id for job in client.list_jobs(limit=3)] == ["0", "1", "2"]


def test_one_job_and_its_cancellation(peer: HttpPeer, client: CIClient) -> None:
    assert client.get_job(JOB_ID).status == JobStatus.RUNNING
    client.cancel(JOB_ID)
    assert len(peer.requests("DELETE", f"/jobs/{JOB_ID}")) == 1
    with pytest.raises(JobNotFound):
        client.get_job("../../etc/passwd")
    assert peer.received[-1].path == "/jobs/..%2F..%2Fetc%2Fpasswd"


@pytest.mark.parametrize("seed", range(3))
def test_a_log_cut_anywhere_arrives_whole(peer: HttpPeer, client: CIClient, seed: int) -> None:
    chance = random.Random(seed)
    peer.script.log = chance.randbytes(300_000)
    peer.script.faults.extend(Cut(chance.randrange(100_000)) for _ in range(5))
    assert b"".join(client.log(JOB_ID)) == peer.script.log


def test_a_log_is_of_one_attempt_whatever_comes_meanwhile(peer: HttpPeer, client: CIClient) -> None:
    first = bytes(range(256)) * 400
    peer.script.log = first
    peer.script.faults.extend([Cut(1 << 30), Cut(50_000)])  # the question about the job, then its log
    chunks = client.log(JOB_ID)
    got = next(chunks)
    peer.script.attempt, peer.script.log = 2, b"a new attempt" * 20_000
    peer.script.earlier_logs = {1: first}
    assert got + b"".join(chunks) == first
    assert [request.query for request in peer.requests("GET", f"/jobs/{JOB_ID}/log")] == [
        {"attempt": ["1"]},
        {"attempt": ["1"]},
    ]


def test_a_job_without_an_attempt_has_no_log_yet(peer: HttpPeer, client: CIClient) -> None:
    peer.script.attempt = 0
    assert list(client.log(JOB_ID)) == []


def test_certificates_are_read_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/absent")
    CIClient("http://ci.example.org", KEY).close()
    with pytest.raises(FileNotFoundError):
        CIClient("https://ci.example.org", KEY)


def test_an_empty_log(peer: HttpPeer, client: CIClient) -> None:
    peer.script.log = b""
    assert b"".join(client.log(JOB_ID)) == b""


def test_the_documented_function(peer: HttpPeer, tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_a(): pass\n")
    events = list(submit_tests_streaming(tmp_path, server_url=peer.url, api_key=KEY))
    assert events[0] == {"type": "job_id", "job_id": JOB_ID}
    assert "".join(event["data"] for event in events if event["type"] == "log") == peer.script.log.decode()
    assert events[-1]["success"] is True
    (request,) = peer.requests("POST", "/submit-tree")
    assert list(peer.shelf.files(request.submission.root)) == ["test_a.py"]


def test_the_oldest_form_of_a_stream_is_understood() -> None:
    events = b"""data: {"type": "job_id", "job_id": "x"}\n\ndata: {"type": "log", "data": "a\\n"}\n
data: {"type": "log", "data": "a\\n"}\n\ndata: {"type": "complete", "success": false}\n\n"""
    script = Script()
    script.faults.append(Answer(200, events, {"Content-Type": "text/event-stream"}))
    with HttpPeer(script) as peer, CIClient(peer.url, KEY, retry=QUICK) as client:
        assert output(client.submit_stream(archive())) == b"a\na\n"
