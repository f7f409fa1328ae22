"""An agent's job source at a real server: logs that arrive whole whatever happens on the way, trees, stale claims."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ci_agent import job_source
from ci_agent.job_source import HttpJobSource
from ci_agent.link import ServerLink
from ci_agent.log_shipping import LogShipping
from ci_common.clock import utcnow
from ci_common.errors import Unavailable
from ci_common.job_terms import JobOptions, JobStatus, Reason
from ci_common.models import AgentProfile, AgentState, Attempt, Fence, Job, LogSeal, Scope
from ci_common.verdict import verdict
from ci_controller.lease import Superseded
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_validator import open_archive
from ci_persistence.log_store import FileLogStore
from tests.support.server import (
    PROJECT,
    Account,
    Site,
    client,
    eventually,
    open_site,
    serving,
    upload,
    zipped,
)

PROFILE = AgentProfile("rack-1", "gpu", slots=2)
GPU = JobOptions(pool="gpu")


@dataclass
class Rack:
    """An agent that is registered, and what it was told."""

    source: HttpJobSource
    link: ServerLink
    logs: FileLogStore
    left: list[None]

    async def running(self) -> Attempt:
        """A job was claimed and runs."""
        [attempt] = await self.source.claim(1, utcnow())
        assert await self.source.started(attempt.fence, "container", "image", None, utcnow())
        assert await self.source.begun(attempt.fence, utcnow())
        return attempt

    async def finish(self, attempt: Attempt) -> bool:
        return await self.source.finish(
            attempt.fence, verdict(None, "1 passed", 0), self.seal(attempt), utcnow()
        )

    def write(self, attempt: Attempt, offset: int, data: bytes) -> None:
        with closing(self.source.log_writer(attempt.fence)) as writer:
            writer.write(offset, data)
            writer.append_event(b'{"type": "begun"}\n')

    def seal(self, attempt: Attempt) -> LogSeal:
        with closing(self.source.log_writer(attempt.fence)) as writer:
            return writer.seal()


@pytest.fixture
async def site(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncGenerator[Site, None]:
    """With the settings that the test names, if it does."""
    async with open_site(tmp_path, **getattr(request, "param", {})) as opened:
        yield opened


@pytest.fixture
async def url(site: Site) -> AsyncGenerator[str, None]:
    with serving(site.settings) as url:
        await site.hands.arrive()
        yield url


@pytest.fixture
async def rack(site: Site, url: str, tmp_path: Path) -> AsyncGenerator[Rack, None]:
    account = await site.account("rack", frozenset({Scope.AGENT}))
    link = ServerLink(url, account.secret)
    lease = await asyncio.to_thread(link.register, PROFILE)
    logs, left = FileLogStore(tmp_path / "spool"), list[None]()
    limits = ArchiveLimits(100, 200, 10**6)
    source = HttpJobSource(
        link,
        logs,
        lambda path: open_archive(path, limits),
        tmp_path / "trees",
        timedelta(seconds=lease),
        disk_free=lambda: 10**9,
        left=lambda: left.append(None),
    )
    yield Rack(source, link, logs, left)
    source.close()
    link.close()


async def job_of(site: Site, attempt: Attempt) -> Job:
    found = await site.repository.get_job(attempt.job.id)
    assert found is not None
    return found


def log_at_server(site: Site, fence: Fence) -> bytes:
    return site.stores.logs.read(fence.job_id, fence.attempt, 0, 10**7)


def log_file(site: Site, fence: Fence) -> Path:
    """Return where the server keeps it."""
    return site.settings.data_path / "logs" / fence.job_id / f"{fence.attempt}.log"


async def arrives(site: Site, fence: Fence, log: bytes) -> None:
    """The server comes to have exactly that."""

    async def arrived() -> bool:
        return log_at_server(site, fence) == log

    assert await eventually(arrived)


async def test_a_heartbeat_on_a_dead_connection_does_not_outlast_the_lease(tmp_path: Path) -> None:
    """What is between the two may forget a connection and tell nobody."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        link = ServerLink(f"http://127.0.0.1:{mute.getsockname()[1]}", "ci_no_key")
        source = HttpJobSource(
            link,
            FileLogStore(tmp_path),
            lambda path: open_archive(path, ArchiveLimits(1, 1, 1)),
            tmp_path,
            timedelta(seconds=1),
            disk_free=lambda: None,
            left=lambda: None,
        )
        with pytest.raises(Unavailable):
            async with asyncio.timeout(10):
                await source.heartbeat(None, utcnow())
        link.close()


async def test_what_is_written_arrives_while_the_job_runs_and_whole_at_its_end(
    site: Site, ada: Account, rack: Rack
) -> None:
    await site.queue_job(ada, options=GPU)
    attempt = await rack.running()
    rack.write(attempt, 0, b"hello ")
    await arrives(site, attempt.fence, b"hello ")
    rest = b"\xff\x00" * 700_000  # more than one piece
    rack.write(attempt, 6, rest)
    assert await rack.finish(attempt)
    job = await job_of(site, attempt)
    assert (job.status, job.log_size) == (JobStatus.COMPLETED, 6 + len(rest))
    assert job.log_sha256 == hashlib.sha256(b"hello " + rest).hexdigest()
    assert log_at_server(site, attempt.fence) == b"hello " + rest
    events = site.stores.logs.read_events(*_names(attempt.fence), 99)
    assert events == b'{"type": "begun"}\n' * 2


class NoisyLogs(FileLogStore):
    """A spool whose job writes a line more whenever somebody has read, as long as it has any."""

    def __init__(self, root: Path, lines: int) -> None:
        super().__init__(root)
        self.lines = lines

    def read(self, job_id: str, attempt: int, offset: int, length: int) -> bytes:
        found = super().read(job_id, attempt, offset, length)
        if self.lines:
            self.lines -= 1
            with closing(self.writer(job_id, attempt)) as writer:
                writer.write(writer.size(), b"noise\n")
        return found


async def test_a_log_that_grows_while_it_is_sent_waits_for_more_instead_of_going_out_line_by_line(
    site: Site, ada: Account, rack: Rack, tmp_path: Path
) -> None:
    await site.queue_job(ada, options=GPU)
    fence = (await rack.running()).fence
    logs = NoisyLogs(tmp_path / "noisy", lines=30)
    with closing(logs.writer(*_names(fence))) as writer:
        writer.write(0, b"noise\n")
    shipping = LogShipping(rack.link, logs)
    await asyncio.to_thread(shipping.deliver, fence)
    assert (log_at_server(site, fence), logs.lines) == (b"noise\n", 29)
    await asyncio.to_thread(shipping.deliver, fence)
    assert (log_at_server(site, fence), logs.lines) == (b"noise\n" * 2, 28)
    shipping.keep(())


@pytest.mark.parametrize("damage", [b"", b"hel", b"hullo world"])
async def test_what_the_server_lost_of_a_log_is_sent_again(
    site: Site, ada: Account, rack: Rack, damage: bytes
) -> None:
    await site.queue_job(ada, options=GPU)
    attempt = await rack.running()
    rack.write(attempt, 0, b"hello world")
    await arrives(site, attempt.fence, b"hello world")
    log_file(site, attempt.fence).write_bytes(damage)
    assert await rack.finish(attempt)
    assert log_at_server(site, attempt.fence) == b"hello world"


async def test_a_log_of_which_the_server_lost_everything_is_sent_again_while_it_grows(
    site: Site, ada: Account, rack: Rack
) -> None:
    await site.queue_job(ada, options=GPU)
    attempt = await rack.running()
    rack.write(attempt, 0, b"hello ")
    await arrives(site, attempt.fence, b"hello ")
    log_file(site, attempt.fence).write_bytes(b"")
    rack.write(attempt, 6, b"world")
    assert await rack.finish(attempt)
    assert log_at_server(site, attempt.fence) == b"hello world"


@pytest.mark.parametrize("left", [b"", b"hello", b"hullo"])
async def test_an_agent_that_lost_the_end_of_a_log_ends_its_job_and_the_server_keeps_what_it_has(
    site: Site, ada: Account, rack: Rack, left: bytes
) -> None:
    await site.queue_job(ada, options=GPU)
    attempt = await rack.running()
    rack.write(attempt, 0, b"hello world")
    await arrives(site, attempt.fence, b"hello world")
    rack.source.close()  # it crashed with its host: what the disk had not got is gone
    rack.logs.delete(attempt.job.id)
    rack.write(attempt, 0, left)
    assert await rack.finish(attempt)
    job = await job_of(site, attempt)
    assert (job.status, job.log_size, job.log_truncated) == (JobStatus.COMPLETED, 11, True)
    assert log_at_server(site, attempt.fence) == left + b"hello world"[len(left) :]


@pytest.mark.parametrize("site", [{"max_agent_log_bytes": 1000}], indirect=True)
@pytest.mark.parametrize("written", [1000, 1001, 2_500_000])
async def test_of_a_log_that_is_longer_than_the_server_takes_it_keeps_the_beginning(
    site: Site, ada: Account, rack: Rack, written: int
) -> None:
    """An agent may be told to keep more than the server: that must not keep its jobs from their ends."""
    await site.queue_job(ada, options=GPU)
    attempt = await rack.running()
    log = hashlib.shake_256(b"log").digest(written)
    rack.write(attempt, 0, log)
    assert await rack.finish(attempt)
    job = await job_of(site, attempt)
    assert (job.status, job.log_size, job.log_truncated) == (
        JobStatus.COMPLETED,
        min(1000, written),
        written > 1000,
    )
    assert log_at_server(site, attempt.fence) == log[:1000]


async def test_a_server_that_is_away_delays_a_verdict_and_no_more(
    site: Site, ada: Account, rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer never waits for it; who reports is told to try again."""
    await site.queue_job(ada, options=GPU)
    attempt = await rack.running()
    away = ServerLink("http://127.0.0.1:9", "ci_no_key")
    with monkeypatch.context() as cut:
        cut.setattr(rack.link, "_http", away._http)  # pyright: ignore[reportPrivateUsage] - the cable
        rack.write(attempt, 0, b"hello")
        for call in (rack.finish(attempt), rack.source.held(), rack.source.heartbeat(None, utcnow())):
            with pytest.raises(Unavailable):
                await call
    assert await rack.finish(attempt)
    assert log_at_server(site, attempt.fence) == b"hello"


async def test_what_an_engine_says_at_length_or_with_nul_keeps_no_attempt_from_its_end(
    site: Site, ada: Account, rack: Rack
) -> None:
    long = "OCI runtime create failed: \0" * 200
    await site.queue_job(ada, options=GPU)
    attempt = await rack.running()
    assert await rack.source.record_stop(attempt.fence, Reason.TIMEOUT, long, utcnow()) is not None
    status = await rack.source.release(attempt.fence, Reason.INFRA, long, None, None, utcnow())
    assert status is JobStatus.QUEUED
    [again] = await rack.source.claim(1, utcnow())
    assert await rack.source.finish(again.fence, verdict(Reason.BAD_ARCHIVE, long), None, utcnow())
    assert (await job_of(site, again)).message == long[:1000].replace("\0", "\ufffd")


async def test_what_is_held_is_what_the_server_says(site: Site, ada: Account, rack: Rack) -> None:
    await site.queue_job(ada, options=GPU)
    await site.queue_job(ada, options=GPU)
    attempt = await rack.running()
    await site.repository.request_cancel(attempt.job.id, None, "ada", utcnow())
    stop = await rack.source.record_stop(attempt.fence, Reason.CANCELLED, "by ada", utcnow())
    assert stop is not None
    [held] = await rack.source.held()
    assert (held.fence, held.container_id, held.image_id) == (attempt.fence, "container", "image")
    assert held.job.options == GPU
    assert held.started_at
    assert abs(utcnow() - held.started_at) < timedelta(seconds=30)
    assert held.job.cancel_requested_by == "ada"
    assert held.stop
    assert (held.stop.reason, held.stop.message) == (Reason.CANCELLED, "by ada")
    assert await rack.source.count_claimable(utcnow()) == 1
    assert list(await rack.source.image_uses()) == ["image"]
    released = rack.source.release(attempt.fence, Reason.INFRA, "gone", None, None, utcnow())
    assert await released is JobStatus.CANCELLED
    assert await rack.source.ended(["container", "unknown"]) == {"container": (attempt.job.id, 1)}


async def test_a_tree_is_fetched_and_leaves_nothing_behind(
    site: Site, ada: Account, url: str, rack: Rack, tmp_path: Path
) -> None:
    async with client(url, ada) as http:
        await http.post("/submit-async", data={"pool": "gpu"}, files=upload())
    [attempt] = await rack.source.claim(1, utcnow())

    def read() -> dict[str, bytes | None]:
        with rack.source.open_archive(attempt) as archive:
            return {entry.path: archive.read(entry.path, 999) for entry in archive.entries}

    assert await asyncio.to_thread(read) == {name: text.encode() for name, text in PROJECT.items()}
    assert list((tmp_path / "trees").iterdir()) == []


async def test_a_tree_that_only_the_agent_refuses_is_not_its_owners_fault(
    site: Site, ada: Account, url: str, rack: Rack
) -> None:
    """Its limits may be stricter than the server's: the core takes this for what infrastructure lost."""
    async with client(url, ada) as http:
        many = zipped({**PROJECT, **{f"data/{n}.txt": "" for n in range(200)}})
        await http.post("/submit-async", data={"pool": "gpu"}, files=upload(many))
    [attempt] = await rack.source.claim(1, utcnow())
    with (
        pytest.raises(OSError, match="the agent refuses it: The archive has 202 entries") as refused,
        rack.source.open_archive(attempt),
    ):
        pass
    assert refused.value.strerror


async def test_a_byte_that_was_damaged_on_the_way_is_not_its_owners_fault(
    site: Site, ada: Account, url: str, rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client(url, ada) as http:
        data = zipped({**PROJECT, "data.txt": "needle"})
        await http.post("/submit-async", data={"pool": "gpu"}, files=upload(data))
    [attempt] = await rack.source.claim(1, utcnow())
    fetch = rack.link.archive

    @contextmanager
    def damaged(fence: Fence) -> Generator[Iterator[bytes]]:
        with fetch(fence) as pieces:
            yield iter([b"".join(pieces).replace(b"needle", b"poodle", 1)])

    monkeypatch.setattr(rack.link, "archive", damaged)
    with (
        pytest.raises(OSError, match=r"the agent refuses it: .*data\.txt"),
        rack.source.open_archive(attempt),
    ):
        pass


async def test_what_is_claimed_while_the_spool_is_pruned_is_kept_and_sent(
    site: Site, ada: Account, rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.queue_job(ada, options=GPU)
    loop, ask, claimed = asyncio.get_running_loop(), rack.link.ask, list[Attempt]()

    async def begin() -> None:
        claimed.append(await rack.running())
        await rack.source.held()  # as the loop does before anything starts
        rack.write(claimed[0], 0, b"hello")

    def late(what: str, params: Any = None) -> Any:
        answer = ask(what, params)
        if not claimed:
            monkeypatch.undo()
            asyncio.run_coroutine_threadsafe(begin(), loop).result()
        return answer

    monkeypatch.setattr(rack.link, "ask", late)
    await rack.source.prune(utcnow())
    rack.write(claimed[0], 5, b" world")
    await arrives(site, claimed[0].fence, b"hello world")


async def test_a_claim_that_was_lost_writes_nothing_and_its_log_goes(
    site: Site, ada: Account, rack: Rack
) -> None:
    await site.queue_job(ada, options=GPU)
    attempt = await rack.running()
    rack.write(attempt, 0, b"hello")
    agent = await site.repository.find_agent(rack.link.agent_id)
    assert agent is not None
    await site.repository.expire_agent(None, agent, 3, utcnow())
    assert not await rack.finish(attempt)
    assert not await rack.source.begun(attempt.fence, utcnow())
    assert await rack.source.record_stop(attempt.fence, Reason.TIMEOUT, None, utcnow()) is None
    assert await rack.source.held() == []
    await rack.source.prune(utcnow())
    assert list(rack.logs.items()) == []


async def test_who_drains_leaves_once_nothing_is_held(site: Site, ada: Account, rack: Rack) -> None:
    await site.queue_job(ada, options=GPU)
    attempt = await rack.running()
    rack.source.drain()
    await rack.source.held()
    await rack.source.ended([])
    assert (rack.left, await rack.source.count_claimable(utcnow())) == ([], 0)
    assert await rack.finish(attempt)
    await rack.source.held()
    await rack.source.ended(["container"])  # which is still there
    assert rack.left == []
    await rack.source.ended([])
    assert rack.left == [None]


async def test_an_agent_that_is_removed_or_registered_anew_is_told(site: Site, rack: Rack) -> None:
    await site.repository.register_agent(rack.link.agent_id, PROFILE, utcnow())
    assert not await rack.source.heartbeat(None, utcnow())
    with pytest.raises(Superseded):
        await rack.source.held()
    assert not rack.source.is_removed
    await site.repository.set_agent_state(rack.link.agent_id, AgentState.REMOVED, utcnow())
    assert not await rack.source.heartbeat(None, utcnow())
    assert rack.source.is_removed


def _names(fence: Fence) -> tuple[str, int]:
    return fence.job_id, fence.attempt


@pytest.mark.parametrize("ahead", [timedelta(minutes=10), timedelta(minutes=-10)])
async def test_an_agents_clock_may_be_another_than_the_servers(
    ahead: timedelta, site: Site, ada: Account, rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a job has run is told by one clock, whichever: deadlines count from there."""
    await site.queue_job(ada, options=GPU)
    await rack.running()
    monkeypatch.setattr(job_source, "utcnow", lambda: utcnow() + ahead)
    [held] = await rack.source.held()
    assert held.started_at
    assert abs(utcnow() + ahead - held.started_at) < timedelta(seconds=30)
