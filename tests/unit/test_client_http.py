"""The client's own HTTP: events however they are cut, connections used again, proxies of the environment."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_client._http import ProtocolError
from ci_client.client import CIClient
from ci_client.retry import RetryPolicy
from ci_client.sse import EventTooLong, SentEvent, events_of
from ci_common.errors import InvalidRequest, NotFound, QueueFull, ServerUnreachable
from tests.support.http_peer import JOB_ID, KEY, Answer, HttpPeer

QUICK = RetryPolicy(first_delay=0.001, max_delay=0.01, first_contact=0.05, patience=20.0)
STREAM = (
    ": ping\n\n"
    "id: 1:4\ndata: plain\n\n"
    "data: no id of its own\r\n\r\n"
    "event: x\rid: 1:9\rdata:no blank\rdata:  two lines, ü\r\r"
    "id: without data\n\n"
    "data\n\n"
    "data: cut off"
).encode()
EVENTS = [
    SentEvent("plain", "1:4"),
    SentEvent("no id of its own", "1:4"),
    SentEvent("no blank\n two lines, ü", "1:9"),
    SentEvent("", "without data"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_however_the_stream_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(places)]
    assert list(events_of(pieces)) == EVENTS


@pytest.mark.parametrize("piece", [b"x" * 65_536, b"data: " + b"x" * 65_536 + b"\n"])
def test_an_event_that_does_not_end_is_given_up(piece: bytes) -> None:
    with pytest.raises(EventTooLong):
        list(events_of([b"data: ", *[piece] * 300]))


@pytest.fixture
def peer() -> Iterator[HttpPeer]:
    with HttpPeer() as peer:
        yield peer


def test_one_connection_serves_one_request_after_the_other(peer: HttpPeer) -> None:
    with CIClient(peer.url, KEY, retry=QUICK) as client:
        for _ in range(5):
            client.get_job(JOB_ID)
        list(client.follow(JOB_ID, from_beginning=True))
    assert peer.accepted == 1


def test_a_connection_that_the_server_has_closed_meanwhile_is_not_used(peer: HttpPeer) -> None:
    told: list[str] = []
    with CIClient(peer.url, KEY, retry=RetryPolicy(patience=0), on_outage=told.append) as client:
        client.get_job(JOB_ID)
        peer.stop()
        peer.start()
        client.get_job(JOB_ID)
    assert peer.accepted == 2
    assert told == []


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
def test_a_proxy_of_the_environment_is_asked(peer: HttpPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", peer.url.replace("://", "://ada:s%40cret@"))
    with (
        CIClient("http://ci.invalid/prefix", KEY, retry=QUICK) as client,
        pytest.raises(NotFound),
    ):
        client.get_job(JOB_ID)
    (request,) = peer.received
    assert request.path == f"/prefix/jobs/{JOB_ID}"
    assert request.headers["host"] == "ci.invalid"
    assert request.headers["proxy-authorization"] == "Basic YWRhOnNAY3JldA=="


@pytest.mark.usefixtures("no_proxies")
def test_no_proxy_is_asked_for_what_is_exempt_or_on_this_machine(
    peer: HttpPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with CIClient(peer.url, KEY, retry=QUICK) as client:
        client.get_job(JOB_ID)
    monkeypatch.setenv("http_proxy", peer.url)
    monkeypatch.setenv("no_proxy", "ci.invalid")
    with CIClient("http://ci.invalid", KEY, retry=QUICK) as client, pytest.raises(ServerUnreachable):
        client.get_job(JOB_ID)
    assert len(peer.received) == 1


@pytest.mark.usefixtures("no_proxies")
def test_a_proxy_of_another_kind_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(InvalidRequest, match="socks5"):
        CIClient("http://ci.invalid", KEY)


DEEP = b"[" * 200_000  # deeper than any recursion


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (Answer(200, DEEP), ServerUnreachable, "not as a CI server"),
        (Answer(500, DEEP), ServerUnreachable, "not as a CI server"),
        (Answer(200, b'"' + b"x" * (17 << 20)), ProtocolError, "is longer than"),
    ],
)
def test_an_answer_that_is_made_to_hurt_is_an_error_like_others(
    peer: HttpPeer, answer: Answer, error: type[Exception], said: str
) -> None:
    peer.script.faults.append(answer)
    with (
        CIClient(peer.url, KEY, retry=RetryPolicy(patience=0)) as client,
        pytest.raises(error, match=said),
    ):
        client.get_job(JOB_ID)


@pytest.mark.parametrize("stream", [b"data: " + DEEP + b"\n\n", b"data: x\n" * 3_000_000])
def test_events_that_are_made_to_hurt_are_an_error_like_others(peer: HttpPeer, stream: bytes) -> None:
    peer.script.faults.append(Answer(200, stream, {"Content-Type": "text/event-stream"}))
    with CIClient(peer.url, KEY, retry=QUICK) as client, pytest.raises(ProtocolError):
        list(client.follow(JOB_ID, from_beginning=True))


@pytest.mark.parametrize(("asked", "meant"), [("7", 7), ("9" * 5000, 3600), ("\u0661", None), ("-1", None)])
def test_no_server_makes_a_client_wait_for_ever(peer: HttpPeer, asked: str, meant: int | None) -> None:
    full = Answer.problem(429, "queue_full", "Full.", **{"Retry-After": asked.encode().decode("latin-1")})
    peer.script.faults.append(full)
    with CIClient(peer.url, KEY, retry=RetryPolicy(patience=0)) as client, pytest.raises(QueueFull) as found:
        client.get_job(JOB_ID)
    assert found.value.retry_after == meant
