"""What is particular to PostgreSQL: races of real sessions, lost connections, its errors, its schema."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from ci_common.errors import (
    CIError,
    Conflict,
    DatabaseBusy,
    DatabaseCorrupt,
    InvalidRequest,
    OutcomeUnknown,
    QueueFull,
    SchemaMissing,
    SchemaTooNew,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ci_common.job_terms import JobOptions, JobStatus, Reason, new_id
from ci_common.models import ControllerLease, JobFilter, QueueLimits
from ci_common.stores import Subscription
from ci_common.verdict import verdict
from ci_persistence import postgres_connection, postgres_database, sql_connection
from ci_persistence.dialect import LOCKED, for_postgresql
from ci_persistence.log_store import FileLogStore
from ci_persistence.postgres_change_hub import PostgresChangeHub
from ci_persistence.postgres_connection import Connection, connect
from ci_persistence.postgres_errors import CommitUnanswered, translate, translated
from ci_persistence.postgres_repository import PostgresJobRepository
from tests.support.database import new_database
from tests.support.eventually import eventually
from tests.support.postgres import cluster, drop_postgres, is_locked, new_postgres
from tests.support.postgres_fixtures import repository, story, url
from tests.support.repository_contract.blobs import ONE, a_pack
from tests.support.repository_contract.story import Story, at, make_job, make_key, make_user

__all__ = ["repository", "story", "url"]

SOON, NEVER = 10.0, 0.05  # seconds
SECRET = "s3cr3t-p4ss"
NOWHERE = f"postgresql://ci:{SECRET}@127.0.0.1:1/ci"  # nothing listens there


# -- statements and schema ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("SELECT a FROM b WHERE c = ? AND d = :some_1", b"SELECT a FROM b WHERE c = %s AND d = %(some_1)s"),
        (f"SELECT 1 {LOCKED}", b"SELECT 1 FOR NO KEY UPDATE"),
        ("SELECT a::text /* why */", b"SELECT a::text /* why */"),
        ("SELECT a % 2", b"SELECT a %% 2"),
        ("a CROSS JOIN b ON c", b"a JOIN b ON c"),
    ],
)
def test_a_statement_says_the_same_to_both(ours: str, theirs: bytes) -> None:
    assert for_postgresql(ours) == theirs


def test_both_schemas_have_the_same_tables_and_columns(url: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(new_database(tmp_path))) as db:
        query = (
            "SELECT t.name, c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c "
            "WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
        )
        ours = {(table, column) for table, column in db.execute(query)}
    with psycopg.connect(url) as db:
        rows = db.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        )
        assert {(str(table), str(column)) for table, column in rows} == ours


def test_text_is_ordered_byte_by_byte_in_whatever_language(url: str) -> None:
    with psycopg.connect(url) as db:
        other = db.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
            "AND table_name <> 'schema_version' AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'"
        ).fetchall()
    assert other == []


async def test_nothing_is_created_before_the_controller_does_it() -> None:
    url = new_postgres(migrated=False)
    server, controller = PostgresJobRepository(url), PostgresJobRepository(url)
    for call in (server.check(), server.get_user("x"), server.create_user(make_user())):
        with pytest.raises(SchemaMissing, match="start ci-controller"):
            await call
    await asyncio.gather(*(controller.initialize() for _ in range(4)))
    await server.check()
    await server.create_user(make_user())
    await server.close()
    await controller.close()
    drop_postgres(url)


async def test_a_newer_schema_is_left_alone(url: str) -> None:
    with psycopg.connect(url) as db:
        db.execute("INSERT INTO schema_version VALUES (99, '')")
    repository = PostgresJobRepository(url)
    for call in (repository.check(), repository.initialize(), repository.list_users()):
        with pytest.raises(SchemaTooNew, match="99"):
            await call
    await repository.close()


async def test_rewriting_loses_nothing(story: Story) -> None:
    job = await story.queue()
    await story.repository.rewrite()
    assert await story.job(job.id) == job


# -- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.LockNotAvailable("x"), DatabaseBusy),
        (errors.DeadlockDetected("x"), DatabaseBusy),
        (errors.TooManyConnections("x"), DatabaseBusy),
        (errors.DiskFull("x"), StorageFull),
        (errors.DataCorrupted("x"), DatabaseCorrupt),
        (errors.UndefinedTable("x"), SchemaMissing),
        (errors.CheckViolation("x"), Conflict),
        (errors.CharacterNotInRepertoire("x"), InvalidRequest),
        (errors.AdminShutdown("x"), Unavailable),
        (errors.InvalidPassword("x"), Unavailable),
        (psycopg.OperationalError("x"), Unavailable),
        (CommitUnanswered(), OutcomeUnknown),
    ],
)
def test_errors_of_the_driver_become_ours(error: Exception, kind: type[CIError]) -> None:
    found = translate(error, NOWHERE)
    assert type(found) is kind
    assert SECRET not in f"{found.detail} {found.public_detail} {found.extra}"
    assert "127.0.0.1" not in found.public_detail


def test_every_error_of_the_driver_is_translated() -> None:
    for kind in (psycopg.Error, *psycopg.Error.__subclasses__(), *psycopg.DatabaseError.__subclasses__()):
        with pytest.raises(CIError), translated(NOWHERE):
            raise kind("made up")


async def test_who_cannot_be_reached_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_database, "_PATIENCE", 0)
    repository = PostgresJobRepository(NOWHERE)
    with pytest.raises(Unavailable, match="refused") as refused:
        await repository.check()
    assert SECRET not in refused.value.detail
    assert refused.value.retry_after
    await repository.close()


async def test_what_text_cannot_hold_is_refused(story: Story) -> None:
    for name in ("a\0b", "a\ud800b"):
        with pytest.raises(InvalidRequest):
            await story.repository.create_user(replace(make_user("new"), name=name))


async def test_no_thread_and_no_connection_outlives_close(url: str) -> None:
    repository = PostgresJobRepository(url)
    await asyncio.gather(*(repository.list_users() for _ in range(40)))
    assert _our_threads()
    await asyncio.gather(repository.close(), repository.close())
    assert _our_threads() == []
    await asyncio.to_thread(eventually, lambda: _sessions(url) == 0, what="the end of the server's processes")


def _our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("postgres")]


def _sessions(url: str) -> int:
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with psycopg.connect(url) as db:
        row = db.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def test_sessions_are_set_up_by_our_rules(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("ALTER ROLE CURRENT_USER SET synchronous_commit = off")
    try:
        with connect(url) as db:
            names = ("synchronous_commit", "lock_timeout", "idle_in_transaction_session_timeout")
            found = [db.execute(f"SHOW {name}").fetchone()[0] for name in names]
    finally:
        with psycopg.connect(url, autocommit=True) as db:
            db.execute("ALTER ROLE CURRENT_USER RESET synchronous_commit")
    assert found == ["on", "10s", "30s"]


# -- races of several sessions -------------------------------------------------------------------------------


async def at_once(*calls: Awaitable[object]) -> list[object]:
    """Return what each of them returned or raised, having run at the same time."""
    return list(await asyncio.gather(*calls, return_exceptions=True))


async def test_a_cancel_and_a_claim_of_the_same_job_agree(story: Story) -> None:
    repository = story.repository
    for n in range(40):
        job = await story.queue(n)
        outcomes = await at_once(
            repository.request_cancel(job.id, None, "ada", at(99)),
            repository.claim_jobs(story.lease, 1, at(99)),
        )
        assert not [one for one in outcomes if isinstance(one, BaseException)]
        found = await story.job(job.id)
        open_ = [one for one in await repository.open_attempts() if one.job.id == job.id]
        assert found.cancel_requested_at is not None
        assert found.status is (JobStatus.CLAIMED if open_ else JobStatus.CANCELLED)


async def test_a_deactivated_user_has_no_job_that_waits(story: Story) -> None:
    repository = story.repository
    for n in range(20):
        user = make_user(f"user{n}")
        await repository.create_user(user)
        submitted = [repository.create_job(make_job(user)) for _ in range(4)]
        outcomes = await at_once(
            *submitted, repository.set_user_active(user.id, active=False, now=at(1)), repository.list_users()
        )
        assert {type(one) for one in outcomes if isinstance(one, BaseException)} <= {Unauthorized}
        jobs = (await repository.list_jobs(JobFilter(user_id=user.id))).jobs
        assert {job.status for job in jobs} <= {JobStatus.CANCELLED}


async def test_a_claim_and_a_takeover_leave_no_attempt_to_the_predecessor(story: Story) -> None:
    repository, lease = story.repository, story.lease
    for n in range(20):
        for _ in range(3):
            await story.queue(n)
        claims = asyncio.gather(*(repository.claim_jobs(lease, 1, at(99)) for _ in range(3)))
        successor = await repository.take_over(f"holder{n}", at(99))
        claimed = await claims
        held = {attempt.fence for claim in claimed for attempt in claim}
        valid = {attempt.fence for attempt in await repository.open_attempts()}
        assert not held & valid
        lease = successor


async def test_what_ends_while_its_agent_is_given_up_was_not_given_back(story: Story, url: str) -> None:
    """And is not waited for: who ends it comes to the agent's row, which the expiry has locked."""
    ending_one, other = [await story.queue(n, options=JobOptions(pool="gpu")) for n in range(2)]
    agent = await story.agent(slots=2)
    assert len(await story.repository.claim_for_agent(agent.lease, 2, at(2))) == 2

    async def expire() -> list[str]:
        held = await story.repository.find_agent(agent.id)
        assert held is not None
        return await story.repository.expire_agent(story.lease, held, 3, at(40))

    with psycopg.connect(url) as ending:
        ending.execute("UPDATE attempts SET ended_at = claimed_at WHERE job_id = %s", (ending_one.id,))
        assert await expire() == [other.id]
        ending.rollback()
    assert await expire() == [ending_one.id], "it did not end after all"


async def test_verdicts_and_the_loss_of_their_agent_do_not_wait_for_each_other(
    story: Story, url: str
) -> None:
    """Each is the agent's word or given back; no deadlock, which the server would have to find."""
    another = PostgresJobRepository(url)
    for n in range(3):
        agent = await story.agent(f"rack-{n}", slots=20, pool=f"pool-{n}")
        for _ in range(20):
            await story.queue(n, options=JobOptions(pool=agent.profile.pool))
        attempts = await story.repository.claim_for_agent(agent.lease, 20, at(20))
        held = await story.repository.find_agent(agent.id)
        assert held is not None
        finishes = [
            story.repository.finish_attempt(one.fence, verdict(Reason.BAD_ARCHIVE), None, at(30))
            for one in attempts
        ]
        expiry = another.expire_agent(story.lease, held, 3, at(31))
        given_back, ended = await asyncio.gather(expiry, asyncio.gather(*finishes))
        assert len(given_back) + sum(ended) <= 20
    await story.repository.close()
    await another.close()
    await asyncio.to_thread(eventually, lambda: _sessions(url) == 0, what="what they counted")
    with psycopg.connect(url) as db:
        query = b"SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert db.execute(query).fetchone() == (0,)


async def test_limits_hold_however_many_users_submit(story: Story) -> None:
    repository = story.repository
    users = [make_user(f"user{n}") for n in range(8)]
    await asyncio.gather(*(repository.create_user(user) for user in users))
    limits = QueueLimits(per_user=3, total=10)
    outcomes = await at_once(
        *(repository.create_job(make_job(user), limits=limits) for _ in range(5) for user in users)
    )
    assert {type(one) for one in outcomes if isinstance(one, BaseException)} <= {TooManyRequests, QueueFull}
    jobs = (await repository.list_jobs(JobFilter())).jobs
    assert len(jobs) == 10
    assert max(sum(job.user_id == user.id for job in jobs) for user in users) <= 3


async def test_a_pack_that_a_job_needs_is_not_pruned_under_it(story: Story) -> None:
    repository = story.repository
    for n in range(20):
        name = f"pack{n}"
        await repository.add_pack(story.user.id, a_pack(name, bytes([n]) * 32), at(1))
        job = make_job(story.user)
        await at_once(repository.create_job(job, packs=[name]), repository.remove_packs(story.lease, [name]))
        created = await repository.get_job(job.id) is not None
        assert await repository.known_packs([name]) == ({name} if created else set())


async def test_equal_contents_at_once_are_stored_once(story: Story) -> None:
    outcomes = await at_once(
        *(story.repository.add_pack(story.user.id, a_pack(f"pack{n}", ONE), at(1)) for n in range(12))
    )
    assert sorted(map(str, outcomes)) == ["0"] * 11 + ["1"]


async def test_a_key_has_one_successor_however_often_it_is_rotated(story: Story) -> None:
    key = make_key(story.user)
    await story.repository.create_api_key(key)
    successors = [make_key(story.user, name=key.name) for _ in range(6)]
    outcomes = await at_once(
        *(story.repository.rotate_api_key(key.id, successor, at(60)) for successor in successors)
    )
    assert sum(isinstance(one, Conflict) for one in outcomes) == 5
    assert len(await story.repository.list_api_keys(story.user.id)) == 2


async def test_sessions_in_each_others_way_are_tried_again(story: Story, url: str) -> None:
    """Two that take the same rows in the opposite order: the server ends one, which begins anew."""
    one, two = await story.queue(1), await story.queue(2)
    gate = threading.Barrier(2)
    waited: list[bool] = []

    def work(first: str, second: str) -> sql_connection.Work[None]:
        def both(db: sql_connection.Connection) -> None:
            db.execute(f"SELECT 1 FROM jobs WHERE id = ? {LOCKED}", (first,))
            if not waited:
                gate.wait(10)
                waited.append(True)
            db.execute("UPDATE jobs SET message = coalesce(message, '') || 'x' WHERE id = ?", (second,))

        return both

    database = postgres_database.PostgresDatabase(url)
    await asyncio.gather(database.write(work(one.id, two.id)), database.write(work(two.id, one.id)))
    await database.close()
    assert [(await story.job(job.id)).message for job in (one, two)] == ["x", "x"]


# -- lost connections ----------------------------------------------------------------------------------------


async def test_connections_that_were_lost_are_replaced_unnoticed(story: Story, url: str) -> None:
    await asyncio.gather(*(story.queue(n) for n in range(8)))
    for _ in range(3):
        _end_all_sessions(url)
        assert len((await story.repository.list_jobs(JobFilter())).jobs) == 8
        _end_all_sessions(url)
        await story.repository.touch_api_key(new_id(), at(1))


def _end_all_sessions(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@pytest.mark.parametrize("done", [False, True])
async def test_a_commit_without_an_answer_is_not_tried_again(
    story: Story, url: str, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """The server goes while it commits, before or after it did: the caller learns that nobody knows."""
    real = postgres_connection.Connection.execute
    commits: list[str] = []

    def execute(self: Connection, query: object, *arguments: object) -> object:
        if query == postgres_connection.TELL_AND_COMMIT and not commits:
            commits.append("COMMIT")
            if done:
                real(self, query)
            _end_all_sessions(url)
        return real(self, query, *arguments)

    monkeypatch.setattr(postgres_connection.Connection, "execute", execute)
    job = make_job(story.user)
    with pytest.raises(OutcomeUnknown, match="looked up") as unknown:
        await story.repository.create_job(job)
    assert "public" not in unknown.value.public_detail
    assert (await story.repository.get_job(job.id) is not None) == done
    assert not is_locked(url)


async def test_a_server_that_is_started_again_interrupts_nobody(story: Story) -> None:
    """Writers go on through a restart and a crash of the server: what they were told stands, and once."""
    told: list[str] = []
    unknown: list[str] = []
    progress = asyncio.Queue[None]()

    async def write() -> None:
        while True:
            job = make_job(story.user)
            try:
                told.append((await story.repository.create_job(job)).id)
            except OutcomeUnknown:
                unknown.append(job.id)
            except Unavailable:
                continue  # on a busy machine a start takes longer than we wait: then nothing was done
            progress.put_nowait(None)

    async def some_writes() -> None:
        for _ in range(20):
            await progress.get()

    writers = [asyncio.create_task(write()) for _ in range(4)]
    for hard in (False, True):
        await some_writes()
        await asyncio.to_thread(cluster().stop, hard=hard)
        cluster().start()  # not in a thread: the server ends with the one that started it
        await some_writes()
    for writer in writers:
        writer.cancel()
    await asyncio.wait(writers)
    told_or_not = {*told, *unknown}
    found = [job.id for job in (await story.repository.list_jobs(JobFilter())).jobs]
    assert len(found) == len(set(found))
    assert set(told) <= set(found)
    assert len(set(found) - told_or_not) <= len(writers), "of calls that were cancelled nobody was told"
    for job_id in found:
        assert await story.timeline(job_id) == ["submitted"]


# -- wake-ups ------------------------------------------------------------------------------------------------


@pytest.fixture
async def hub(url: str, tmp_path: Path) -> AsyncIterator[PostgresChangeHub]:
    hub = PostgresChangeHub(url, tmp_path / "no file", tmp_path / "logs")
    await hub.start()
    yield hub
    await hub.close()


async def settle(subscription: Subscription) -> None:
    """Nothing that happened so far will wake the subscription any more."""
    while await subscription.wait(NEVER):
        pass


async def test_who_waits_is_woken_by_every_commit_that_wrote(hub: PostgresChangeHub, story: Story) -> None:
    with hub.database() as changes, hub.log("job") as follower:
        await settle(changes)
        await settle(follower)
        for n in range(5):
            await story.queue(n)
            assert await changes.wait(SOON)
            assert await follower.wait(SOON)
        await settle(changes)
        await story.repository.list_jobs(JobFilter())
        assert await story.repository.claim_jobs(ControllerLease(0, "stale"), 1, at(1)) == []
        with pytest.raises(Conflict):
            await story.repository.create_user(story.user)
        assert not await changes.wait(NEVER)


async def test_a_burst_of_commits_is_few_wake_ups(hub: PostgresChangeHub, story: Story) -> None:
    with hub.database() as changes:
        await settle(changes)
        commits = asyncio.gather(*(story.queue(n) for n in range(100)))
        hints = 0
        while not commits.done() and await changes.wait(SOON):
            hints += 1
        await commits
    assert 1 <= hints < 100


async def test_listening_goes_on_after_the_connection_was_lost(
    hub: PostgresChangeHub, story: Story, url: str
) -> None:
    with hub.database() as changes:
        await settle(changes)
        _end_all_sessions(url)
        assert await changes.wait(SOON), "whoever listens again has to look"
        await settle(changes)
        await story.queue()
        assert await changes.wait(SOON)


async def test_a_log_wakes_its_followers(hub: PostgresChangeHub, tmp_path: Path) -> None:
    writer = FileLogStore(tmp_path / "logs").writer("job", 1)
    with hub.log("job") as follower:
        await settle(follower)
        writer.write(0, b"line\n")
        assert await follower.wait(SOON)
    writer.close()


async def test_bytes_of_a_log_are_told_from_commits(
    hub: PostgresChangeHub, story: Story, tmp_path: Path
) -> None:
    writer = FileLogStore(tmp_path / "logs").writer("job", 1)
    with hub.log("job") as follower:
        await story.queue()
        assert await follower.wait(SOON), "it listens"
        await settle(follower)
        writer.write(0, b"line\n")
        assert await follower.wait(SOON)
        assert follower.only_log
        await settle(follower)
        await story.queue()
        assert await follower.wait(SOON)
        assert not follower.only_log
    writer.close()


async def test_who_hears_of_no_commits_does_not_say_that_there_was_none(tmp_path: Path) -> None:
    hub = PostgresChangeHub(NOWHERE, tmp_path / "no file", tmp_path / "logs")
    await hub.start()
    writer = FileLogStore(tmp_path / "logs").writer("job", 1)
    with hub.log("job") as follower:
        await settle(follower)
        writer.write(0, b"line\n")
        assert await follower.wait(SOON)
        assert not follower.only_log
    writer.close()
    await hub.close()


async def test_the_version_is_another_one_after_every_commit(story: Story, url: str) -> None:
    other = PostgresJobRepository(url)
    seen = [await story.repository.version()]
    assert await other.version() == seen[0]
    for n in range(5):
        await (story.repository, other)[n % 2].create_job(make_job(story.user))
        seen.append(await story.repository.version())
    assert len(set(seen)) == 6
    await other.close()
