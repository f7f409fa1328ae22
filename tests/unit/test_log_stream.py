"""Following a job: what a reader gets, over any number of interruptions, is the file and one verdict."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ci_common.clock import SystemClock, utcnow
from ci_common.errors import InvalidOffset, InvalidRequest, JobNotFound, Unauthorized
from ci_common.events import CompleteEvent, ErrorEvent, LogEvent, Position, StatusEvent, StreamEvent
from ci_common.job_terms import JobStatus
from ci_common.models import Job, LogSeal
from ci_common.stores import Subscription
from ci_persistence.change_hub import InotifyChangeHub
from ci_server.log_stream import BATCH_BYTES, Following, follow_job, start_position, without_incomplete_tail
from ci_server.shared_looks import SharedLooks
from ci_server.stream_end import StreamEnd
from tests.support.server import Account, Site, open_site

BEGINNING = Position(0, 0)
PROPERTY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site, None]:
    async with open_site(tmp_path) as opened:
        await opened.stores.hub.start()
        yield opened
        await opened.stores.hub.close()


def surroundings(site: Site) -> Following:
    looks = SharedLooks(site.repository, site.stores.logs, SystemClock())
    return Following(site.repository, site.stores.logs, site.stores.hub, looks, StreamEnd())


def follow(site: Site, job: Job, start: Position = BEGINNING) -> AsyncGenerator[StreamEvent, None]:
    return follow_job(surroundings(site), job.id, job.user_id, start)


async def read(events: AsyncGenerator[StreamEvent, None]) -> list[StreamEvent]:
    async with asyncio.timeout(20):
        return [event async for event in events]


async def following(events: AsyncGenerator[StreamEvent, None]) -> StreamEvent:
    async with asyncio.timeout(20):
        return await anext(events)


def output(events: list[StreamEvent]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, LogEvent))


# -- one reader, undisturbed ---------------------------------------------------------------------------


async def test_a_finished_job_is_its_log_and_one_verdict(site: Site, ada: Account) -> None:
    job = await site.finished_job(ada, b"two\nlines\n")
    assert await read(follow(site, job, Position(1, 0))) == [
        LogEvent(b"two\nlines\n", Position(1, 10)),
        CompleteEvent(True, JobStatus.COMPLETED, 0, None, "said so"),
    ]


async def test_a_job_is_followed_from_the_queue_to_its_verdict(site: Site, ada: Account) -> None:
    await site.hands.arrive()
    job = await site.queue_job(ada)
    async with aclosing(follow(site, job)) as events:
        queued = await following(events)
        assert queued == StatusEvent(JobStatus.QUEUED, 0, "next in the queue, waiting for a free slot")
        attempt = await site.hands.claim()
        assert await following(events) == StatusEvent(JobStatus.CLAIMED, 1, "its container is being prepared")
        await site.hands.mark_started(attempt)
        assert await following(events) == StatusEvent(JobStatus.RUNNING, 1, None)
        site.hands.write(attempt, b"live")
        assert await following(events) == LogEvent(b"live", Position(1, 4))
        await site.hands.finish(attempt)
        assert isinstance(await following(events), CompleteEvent)
        with pytest.raises(StopAsyncIteration):
            await following(events)


async def test_long_output_comes_in_batches(site: Site, ada: Account) -> None:
    text = "é".encode() * BATCH_BYTES
    job = await site.finished_job(ada, b"x" + text)
    pieces = [event for event in await read(follow(site, job, Position(1, 0))) if isinstance(event, LogEvent)]
    assert max(len(piece.data) for piece in pieces) <= BATCH_BYTES
    assert all("data_base64" not in piece.to_json() for piece in pieces), "a character was cut"


async def test_a_job_cancelled_in_the_queue_is_just_a_verdict(site: Site, ada: Account) -> None:
    job = await site.queue_job(ada)
    await site.repository.request_cancel(job.id, ada.user.id, "ada", utcnow())
    [last] = await read(follow(site, job))
    assert isinstance(last, CompleteEvent)
    assert last.status is JobStatus.CANCELLED


async def test_a_log_shorter_than_promised_is_reported_before_the_verdict(site: Site, ada: Account) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    site.hands.write(attempt, b"short")
    await site.hands.finish(attempt, log=LogSeal(9, "0" * 64))
    log, error, complete = await read(follow(site, attempt.job, Position(1, 0)))
    assert log == LogEvent(b"short", Position(1, 5))
    assert error == ErrorEvent("log_incomplete", "The stored log lacks its last 4 of 9 bytes.")
    assert isinstance(complete, CompleteEvent)


async def test_nothing_after_the_sealed_size_is_sent(site: Site, ada: Account) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    site.hands.write(attempt, b"sealed")
    seal = site.hands.seal(attempt)
    site.hands.write(attempt, b" and more")
    await site.hands.finish(attempt, log=seal)
    assert output(await read(follow(site, attempt.job, Position(1, 0)))) == b"sealed"


# -- characters ----------------------------------------------------------------------------------------


async def test_a_character_half_written_waits_for_its_rest(site: Site, ada: Account) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    site.hands.write(attempt, b"price: \xe2\x82")
    async with aclosing(follow(site, attempt.job, Position(1, 0))) as events:
        await following(events)  # running
        assert await following(events) == LogEvent(b"price: ", Position(1, 7))
        site.hands.write(attempt, b"\xac")
        assert await following(events) == LogEvent("€".encode(), Position(1, 10))


async def test_half_a_character_at_the_very_end_is_sent_with_the_verdict(site: Site, ada: Account) -> None:
    job = await site.finished_job(ada, b"end \xe2\x82")
    assert output(await read(follow(site, job, Position(1, 0)))) == b"end \xe2\x82"


@given(st.binary(max_size=12))
def test_only_an_unfinished_last_character_is_held_back(data: bytes) -> None:
    whole = without_incomplete_tail(data)
    assert data.startswith(whole)
    assert len(data) - len(whole) <= 3


@given(st.text(max_size=8), st.integers(0, 3))
def test_what_is_held_back_is_the_beginning_of_a_character(text: str, cut: int) -> None:
    encoded = text.encode()
    data = encoded[: len(encoded) - cut] if cut else encoded
    assert without_incomplete_tail(data).decode() == data.decode(errors="ignore")


# -- resuming ------------------------------------------------------------------------------------------


@PROPERTY
@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=6))
async def test_pieces_read_from_any_offsets_make_the_file(
    site: Site, ada: Account, data: bytes, cuts: list[int]
) -> None:
    job = await site.finished_job(ada, data)
    borders = sorted({0, *(cut for cut in cuts if cut <= len(data))})
    for border in borders:
        events = await read(follow(site, job, Position(1, border)))
        assert output(events) == data[border:]
        assert sum(isinstance(event, CompleteEvent) for event in events) == 1


@PROPERTY
@given(pieces=st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=8), patience=st.integers(1, 3))
async def test_a_reader_that_loses_its_stream_all_the_time_gets_the_file(
    site: Site, ada: Account, pieces: list[bytes], patience: int
) -> None:
    """The reader goes away after `patience` log events, while the log grows, and comes back with the last id."""
    await site.queue_job(ada)
    attempt = await site.hands.start()

    async def write() -> None:
        for piece in pieces:
            site.hands.write(attempt, piece)
            await asyncio.sleep(0)
        await site.hands.finish(attempt)

    writing = asyncio.create_task(write())
    position, got, complete = Position(1, 0), b"", False
    async with asyncio.timeout(20):
        while not complete:
            async with aclosing(follow(site, attempt.job, position)) as events:
                seen = 0
                async for event in events:
                    complete = complete or isinstance(event, CompleteEvent)
                    if isinstance(event, LogEvent):
                        got, position, seen = got + event.data, event.position, seen + 1
                    if seen == patience:
                        break
    await writing
    assert got == b"".join(pieces)


async def test_a_reader_of_a_lost_attempt_gets_its_rest_and_then_the_new_one(
    site: Site, ada: Account
) -> None:
    job = await site.queue_job(ada)
    first = await site.hands.start()
    site.hands.write(first, b"first try \xe2")
    await site.hands.lose(first)
    second = await site.hands.start()
    site.hands.write(second, b"second try")
    await site.hands.finish(second)
    assert await read(follow(site, job, Position(1, 6))) == [
        LogEvent(b"try \xe2", Position(1, 11)),
        StatusEvent(JobStatus.COMPLETED, 2, None),
        LogEvent(b"second try", Position(2, 10)),
        CompleteEvent(True, JobStatus.COMPLETED, 0, None, "said so"),
    ]


async def test_a_reader_is_taken_along_to_the_next_attempt(site: Site, ada: Account) -> None:
    job = await site.queue_job(ada)
    first = await site.hands.start()
    site.hands.write(first, b"one")
    async with aclosing(follow(site, job, Position(1, 0))) as events:
        assert await following(events) == StatusEvent(JobStatus.RUNNING, 1, None)
        assert await following(events) == LogEvent(b"one", Position(1, 3))
        await site.hands.lose(first)
        requeued = await following(events)
        assert isinstance(requeued, StatusEvent)
        assert (requeued.status, requeued.attempt) == (JobStatus.QUEUED, 1)
        second = await site.hands.start()
        site.hands.write(second, b"two")
        said: list[StreamEvent] = []
        while not isinstance(event := await following(events), LogEvent):
            said.append(event)
        assert said[-1] == StatusEvent(JobStatus.RUNNING, 2, None)
        assert event == LogEvent(b"two", Position(2, 3))


# -- where to begin ------------------------------------------------------------------------------------


async def test_last_event_id_beats_offset_beats_from_beginning(site: Site, ada: Account) -> None:
    job = await site.finished_job(ada, b"0123456789")
    logs = site.stores.logs
    both = start_position(job, logs, last_event_id="1:7", offset=3, from_beginning=True)
    assert both == Position(1, 7)
    assert start_position(job, logs, last_event_id=None, offset=3, from_beginning=True) == Position(1, 3)
    assert start_position(job, logs, last_event_id="", offset=None, from_beginning=True) == Position(1, 0)
    assert start_position(job, logs, last_event_id=None, offset=None, from_beginning=False) == Position(1, 10)


async def test_a_reader_of_new_output_begins_before_a_half_written_character(
    site: Site, ada: Account
) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    site.hands.write(attempt, b"abc\xe2\x82")
    job = replace(attempt.job, status=JobStatus.RUNNING)
    start = start_position(job, site.stores.logs, last_event_id=None, offset=None, from_beginning=False)
    assert start == Position(1, 3)


@pytest.mark.parametrize("last_event_id", ["x", "1", "1:-2", "1:2:3", "\u0661:\u0662"])
async def test_an_id_that_was_never_ours_is_refused(site: Site, ada: Account, last_event_id: str) -> None:
    job = await site.queue_job(ada)
    with pytest.raises(InvalidRequest):
        start_position(job, site.stores.logs, last_event_id=last_event_id, offset=None, from_beginning=False)


@pytest.mark.parametrize("last_event_id", ["1:11", "2:0", "0:1"])
async def test_a_place_outside_the_log_is_refused(site: Site, ada: Account, last_event_id: str) -> None:
    job = await site.finished_job(ada, b"0123456789")
    with pytest.raises(InvalidOffset):
        start_position(job, site.stores.logs, last_event_id=last_event_id, offset=None, from_beginning=False)


async def test_new_output_of_a_finished_job_is_the_verdict_alone(site: Site, ada: Account) -> None:
    job = await site.finished_job(ada, b"old news")
    [event] = await read(follow(site, job, Position(1, 8)))
    assert isinstance(event, CompleteEvent)


# -- waiting -------------------------------------------------------------------------------------------


async def test_a_queued_job_says_that_no_controller_has_run(site: Site, ada: Account) -> None:
    job = await site.queue_job(ada)
    async with aclosing(follow(site, job)) as events:
        event = await following(events)
    assert isinstance(event, StatusEvent)
    assert event.message is not None
    assert event.message.endswith("no controller has run on this database yet: start ci-controller")


async def test_a_queued_job_says_that_the_controller_stopped(site: Site, ada: Account) -> None:
    await site.hands.arrive()
    assert site.hands.lease is not None
    await site.repository.heartbeat(site.hands.lease, utcnow() - timedelta(seconds=16))
    job = await site.queue_job(ada)
    async with aclosing(follow(site, job)) as events:
        event = await following(events)
    assert isinstance(event, StatusEvent)
    assert "the controller is not running (last seen " in str(event.message)


async def test_a_queued_job_passes_on_what_the_controller_complains_about(site: Site, ada: Account) -> None:
    await site.hands.arrive(note="the Docker engine does not answer")
    await site.queue_job(ada)
    job = await site.queue_job(ada)
    async with aclosing(follow(site, job)) as events:
        event = await following(events)
    assert event == StatusEvent(
        JobStatus.QUEUED,
        0,
        "waiting in the queue, about 1 other job before it; the Docker engine does not answer",
    )


async def test_a_requested_cancel_is_news(site: Site, ada: Account) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    async with aclosing(follow(site, attempt.job, Position(1, 0))) as events:
        await following(events)
        await site.repository.request_cancel(attempt.job.id, ada.user.id, "ada@example.org", utcnow())
        event = await following(events)
    assert event == StatusEvent(JobStatus.RUNNING, 1, "a cancel was requested by ada@example.org")


# -- ending early --------------------------------------------------------------------------------------


async def test_a_stopped_stream_ends_at_once_and_without_a_verdict(site: Site, ada: Account) -> None:
    job = await site.queue_job(ada)
    around = surroundings(site)
    events = follow_job(around, job.id, job.user_id, Position(0, 0))
    assert isinstance(await following(events), StatusEvent)
    waiting = asyncio.create_task(read(events))
    around.end.come()
    async with asyncio.timeout(1):
        assert await waiting == []


async def test_a_stream_of_much_output_can_be_stopped_in_between(site: Site, ada: Account) -> None:
    job = await site.finished_job(ada, b"x" * 10 * BATCH_BYTES)
    around = surroundings(site)
    events = follow_job(around, job.id, job.user_id, Position(1, 0))
    await following(events)
    around.end.come()
    assert await read(events) == []


async def test_access_is_asked_for_while_output_flows(site: Site, ada: Account) -> None:
    job = await site.finished_job(ada, b"x" * 10 * BATCH_BYTES)
    asked = 0

    async def check() -> None:
        nonlocal asked
        asked += 1
        if asked > 3:
            raise Unauthorized("revoked")

    around = replace(surroundings(site), check_access=check)
    events = follow_job(around, job.id, job.user_id, Position(1, 0))
    assert isinstance(await following(events), LogEvent)
    with pytest.raises(Unauthorized):
        await read(events)
    assert asked == 4


async def test_a_job_of_somebody_else_is_none(site: Site, ada: Account) -> None:
    job = await site.queue_job(ada)
    bob = await site.account("bob")
    with pytest.raises(JobNotFound):
        await read(follow_job(surroundings(site), job.id, bob.user.id, Position(0, 0)))


async def test_output_that_never_rests_does_not_hide_what_became_of_the_job(site: Site, ada: Account) -> None:
    """Also where the news itself was lost: here nobody hears of commits."""
    await site.queue_job(ada)
    attempt = await site.hands.start()
    around = replace(surroundings(site), hub=_DeafHub(), look_again_after=0.2)
    async with (
        asyncio.timeout(20),
        aclosing(follow_job(around, attempt.job.id, ada.user.id, Position(1, 0))) as events,
    ):
        assert isinstance(await anext(events), StatusEvent)
        site.hands.write(attempt, b"said\n")
        assert isinstance(await anext(events), LogEvent)
        await site.hands.finish(attempt)
        assert isinstance(await anext(events), CompleteEvent)


class _DeafHub(InotifyChangeHub):
    """A hub that tells of output all the time and of nothing else."""

    def __init__(self) -> None:
        super().__init__(Path("none"), Path("none"))

    @contextmanager
    def log(self, job_id: str) -> Generator[Subscription]:
        with super().log(job_id) as changes:
            yield _Babble(changes)


class _Babble(Subscription):
    def __init__(self, changes: Subscription) -> None:
        self._changes = changes
        self.only_log = False

    async def wait(self, seconds: float) -> bool:
        await self._changes.wait(min(seconds, 0.02))
        self.only_log = True
        return True

    def wake(self) -> None:
        self._changes.wake()
