"""Many viewers of one job share what they look at, and each gets the file nevertheless."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from ci_common.clock import SystemClock
from ci_common.events import CompleteEvent, LogEvent, Position, StatusEvent, StreamEvent
from ci_common.models import Job
from ci_server.event_stream import frame
from ci_server.log_stream import BATCH_BYTES, Following, follow_job
from ci_server.shared_looks import Look, SharedLooks, Tail
from ci_server.stream_end import StreamEnd
from tests.support.server import Account, Site, open_site


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site, None]:
    async with open_site(tmp_path) as opened:
        await opened.stores.hub.start()
        yield opened
        await opened.stores.hub.close()


@pytest.fixture
def around(site: Site) -> Following:
    looks = SharedLooks(site.repository, site.stores.logs, SystemClock())
    return Following(site.repository, site.stores.logs, site.stores.hub, looks, StreamEnd())


async def until_the_end(events: AsyncGenerator[StreamEvent, None]) -> bytes:
    """Return the output of a stream that ends with a verdict."""
    async with asyncio.timeout(30), aclosing(events):
        found = [event async for event in events]
    assert isinstance(found[-1], CompleteEvent)
    return b"".join(event.data for event in found if isinstance(event, LogEvent))


async def first_output(events: AsyncGenerator[StreamEvent, None]) -> LogEvent:
    async with asyncio.timeout(30):
        async for event in events:
            if isinstance(event, LogEvent):
                return event
    raise AssertionError("the stream ended without output")


async def test_many_viewers_from_any_place_get_the_same_file(
    site: Site, ada: Account, around: Following
) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    job, output = attempt.job, "".join(f"line {n} é\n" for n in range(400)).encode()
    site.hands.write(attempt, output[:1000])
    begins = [0, 0, 1, 999, 1000, *range(0, 1000, 50)]
    viewers = [
        asyncio.create_task(until_the_end(follow_job(around, job.id, ada.user.id, Position(1, begin))))
        for begin in begins
    ]
    for at in range(1000, len(output), 7):  # also in the middle of characters
        site.hands.write(attempt, output[at : at + 7])
        await asyncio.sleep(0)
    await site.hands.finish(attempt)
    assert await asyncio.gather(*viewers) == [output[begin:] for begin in begins]


async def test_viewers_at_one_place_are_sent_the_same_bytes(
    site: Site, ada: Account, around: Following
) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    viewers = [follow_job(around, attempt.job.id, ada.user.id, Position(1, 0)) for _ in range(3)]
    for viewer in viewers:
        assert isinstance(await anext(viewer), StatusEvent)
    site.hands.write(attempt, b"to all of you\n")
    first, *others = [await first_output(viewer) for viewer in viewers]
    assert all(other is first for other in others)
    assert all(frame(other) is frame(first) for other in others)
    for viewer in viewers:
        await viewer.aclose()


async def test_a_slow_reader_reads_the_file_itself(site: Site, ada: Account, around: Following) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    job, output = attempt.job, bytes(range(65, 90)) * (BATCH_BYTES // 5)  # more than the tail keeps
    slow = follow_job(around, job.id, ada.user.id, Position(1, 0))
    assert isinstance(await anext(slow), StatusEvent)
    site.hands.write(attempt, output[:100])
    begun = await first_output(slow)
    quick = asyncio.create_task(until_the_end(follow_job(around, job.id, ada.user.id, Position(1, 0))))
    for at in range(100, len(output), 50_000):
        site.hands.write(attempt, output[at : at + 50_000])
        await asyncio.sleep(0)
    await site.hands.finish(attempt)
    assert await quick == output
    assert begun.data + await until_the_end(slow) == output


async def test_a_superseded_attempt_is_never_taken_for_its_successor(
    site: Site, ada: Account, around: Following
) -> None:
    await site.queue_job(ada)
    lost = await site.hands.start()
    viewers = [follow_job(around, lost.job.id, ada.user.id, Position(1, 0)) for _ in range(2)]
    site.hands.write(lost, b"first try\n")
    assert [(await first_output(viewer)).data for viewer in viewers] == [b"first try\n"] * 2
    await site.hands.lose(lost)
    second = await site.hands.start()
    site.hands.write(second, b"next turn\n")
    await site.hands.finish(second)
    assert [await until_the_end(viewer) for viewer in viewers] == [b"next turn\n"] * 2


async def test_a_log_that_is_pruned_is_not_read_from_memory(
    site: Site, ada: Account, around: Following
) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    async with aclosing(follow_job(around, attempt.job.id, ada.user.id, Position(1, 0))) as first:
        site.hands.write(attempt, b"here today\n")
        await first_output(first)  # the tail has it, and stays while that one follows
        await site.hands.finish(attempt)
        site.stores.logs.delete(attempt.job.id)
        late = follow_job(around, attempt.job.id, ada.user.id, Position(1, 0))
        async with asyncio.timeout(30):
            found = [event async for event in late]
    assert not any(isinstance(event, LogEvent) for event in found)
    assert isinstance(found[-1], CompleteEvent)


async def test_a_look_is_shared_by_those_of_one_moment_and_not_by_later_ones(
    site: Site, ada: Account, around: Following
) -> None:
    job = await site.queue_job(ada)
    first, same = await asyncio.gather(*(around.looks.look(job.id, ada.user.id) for _ in range(2)))
    assert first is same
    assert await around.looks.look(job.id, ada.user.id) is not first


async def test_a_look_is_the_owners_only(site: Site, ada: Account, around: Following) -> None:
    job, bob = await site.queue_job(ada), await site.account("bob")
    mine, his = await asyncio.gather(
        around.looks.look(job.id, ada.user.id), around.looks.look(job.id, bob.user.id)
    )
    assert isinstance(mine.job, Job)
    assert his.job is None


async def test_a_reader_who_leaves_does_not_end_the_look_of_others(
    site: Site, ada: Account, around: Following
) -> None:
    job = await site.queue_job(ada)
    leaving, staying = (asyncio.create_task(around.looks.look(job.id, ada.user.id)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).job == job
    assert leaving.cancelled()


class _CountingLooks(SharedLooks):
    looked = 0

    async def look(self, job_id: str, user_id: str | None) -> Look:
        self.looked += 1
        return await super().look(job_id, user_id)


async def test_output_alone_asks_nothing_of_the_database(site: Site, ada: Account, around: Following) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    looks = _CountingLooks(site.repository, site.stores.logs, SystemClock())
    patient = replace(around, looks=looks, look_again_after=3600.0)
    async with aclosing(follow_job(patient, attempt.job.id, ada.user.id, Position(1, 0))) as events:
        site.hands.write(attempt, b"0")
        await first_output(events)
        await _calm(site, attempt.job.id)
        looked = looks.looked
        for number in range(1, 10):
            site.hands.write(attempt, b"%d" % number)
            assert (await first_output(events)).data == b"%d" % number
        assert looks.looked <= looked + 1, "only for what was still on its way"
        await site.hands.finish(attempt)
        assert await until_the_end(events) == b""
    assert looks.looked > looked


async def _calm(site: Site, job_id: str) -> None:
    """Nothing of what has happened is still on its way to who waits."""
    with site.stores.hub.log(job_id) as changes:
        while await changes.wait(0.6):  # longer than the hub looks for a commit
            pass


async def test_the_end_of_a_log_is_looked_up_once_for_all_of_one_turn(site: Site, ada: Account) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    tail = Tail(site.stores.logs, attempt.job.id)
    site.hands.write(attempt, b"12345")
    assert tail.end(1) == 5
    site.hands.write(attempt, b"678")
    assert tail.end(1) == 5
    await asyncio.sleep(0)
    assert tail.end(1) == 8


def test_a_tail_keeps_few_pieces_and_none_beyond_the_end(site: Site) -> None:
    tail = Tail(site.stores.logs, "any")
    pieces = [LogEvent(b"x", Position(1, n + 1)) for n in range(5)]
    for n, piece in enumerate(pieces):
        tail.keep(1, n, piece)
    assert tail.piece(1, 0, 5) is None
    assert tail.piece(1, 4, 5) is pieces[4]
    assert tail.piece(1, 4, 4) is None
    assert tail.piece(2, 4, 5) is None


async def test_streams_end_when_they_are_stopped_while_nothing_happens(
    site: Site, ada: Account, around: Following
) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    patient = replace(around, look_again_after=3600.0)
    async with asyncio.timeout(30):
        events = follow_job(patient, attempt.job.id, ada.user.id, Position(1, 0))
        assert isinstance(await anext(events), StatusEvent)
        waiting = asyncio.create_task(anext(events, None))
        await asyncio.sleep(0)
        patient.end.come()
        assert await waiting is None
