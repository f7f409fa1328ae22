"""A store whose n-th statement fails, for every n of every write of the repository: all of it stands or nothing.

And row 46 of the fault catalogue: what writes opens its transaction with BEGIN IMMEDIATE.
"""

import inspect
import re
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ci_common.blobs import Blob, Pack
from ci_common.errors import CIError
from ci_common.job_terms import JobOptions, Priority, Reason
from ci_common.models import (
    Agent,
    AgentState,
    APIKey,
    Attempt,
    AuditAction,
    AuditEvent,
    ControllerState,
    Fence,
    Job,
    JobEvent,
    LimitChange,
    QueueLimits,
    Repeat,
)
from ci_common.repository import JobRepository
from ci_common.verdict import verdict
from ci_persistence.sqlite_connection import connect
from ci_persistence.sqlite_repository import SQLiteJobRepository
from tests.support.database import new_database
from tests.support.in_memory import home
from tests.support.repository_contract.story import (
    PROFILE,
    SEAL,
    START,
    Story,
    at,
    make_job,
    make_key,
    make_user,
)

__all__ = ["home"]

SQLITE_FULL, SQLITE_IOERR = 13, 10
ROOT = Path(__file__).parents[2]


class FailingConnection(sqlite3.Connection):
    """A connection whose n-th statement from now on fails once, for all connections together."""

    left: ClassVar[int] = 0  # statements until the failure; 0: none fails
    after: ClassVar[bool] = False  # whether the statement takes effect before it fails
    code: ClassVar[int] = SQLITE_FULL
    statements: ClassVar[list[str]] = []

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        FailingConnection.statements.append(sql)
        if not sql.startswith("PRAGMA") and FailingConnection.left:
            FailingConnection.left -= 1
            if not FailingConnection.left:
                if FailingConnection.after:
                    super().execute(sql, parameters)
                raise _error()
        return super().execute(sql, parameters)


def _error() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("made up by the test")
    error.sqlite_errorcode = FailingConnection.code
    return error


@dataclass
class Cast:
    """Whom and what the writes are about."""

    repository: JobRepository
    story: Story
    queued: Job
    claimed: Attempt
    running: Attempt
    ended: Job
    key: APIKey
    cancel: int  # its row in the audit trail
    agent: Agent  # holds a job, and could claim another one
    idle_agent: Agent

    @property
    def fence(self) -> Fence:
        return self.running.fence


Write = Callable[[Cast], Awaitable[object]]
PACK = Pack("pack", 10, [Blob(bytes(32), 0, 10, 20, 1)])
NEW_PACK = Pack("new", 10, [Blob(b"1" * 32, 0, 10, 20, 1)])
# Many short transactions, each whole: nobody waits for all of them, and the next prune goes on where one ended.
IN_STEPS = {"remove_packs"}
AUDIT = AuditEvent(at(50), "operator", AuditAction.BACKUP, "database")


async def dead_letter(cast: Cast) -> object:
    await cast.repository.mark_begun(cast.fence, at(39))
    return await cast.story.release(cast.fence, 40, max_attempts=1)


# What must have happened before, for a write to have something to do that is not true of the others.
BEFORE: dict[str, Write] = {
    "resume_queue": lambda cast: cast.repository.pause_queue("why", at(40)),
    "requeue_dead": dead_letter,
}
WRITES: dict[str, Write] = {
    "create_user": lambda cast: cast.repository.create_user(make_user("new")),
    "set_user_active": lambda cast: cast.repository.set_user_active(
        cast.story.user.id, active=False, now=at(50)
    ),
    "set_user_limits": lambda cast: cast.repository.set_user_limits(
        cast.story.user.id, LimitChange(Priority.HIGH), at(50)
    ),
    "create_api_key": lambda cast: cast.repository.create_api_key(
        make_key(cast.story.user, id="new", key_hash="new", prefix="new")
    ),
    "rotate_api_key": lambda cast: cast.repository.rotate_api_key(
        cast.key.id, make_key(cast.story.user, id="new", key_hash="new", prefix="new"), at(60)
    ),
    "revoke_api_key": lambda cast: cast.repository.revoke_api_key(cast.key.id, at(50)),
    "touch_api_key": lambda cast: cast.repository.touch_api_key(cast.key.id, at(50)),
    "record_audit": lambda cast: cast.repository.record_audit(AUDIT),
    "create_job": lambda cast: cast.repository.create_job(
        make_job(cast.story.user, at(50), id="new"), limits=QueueLimits(10, 10)
    ),
    "request_cancel": lambda cast: cast.repository.request_cancel(cast.queued.id, None, "somebody", at(50)),
    "set_priority": lambda cast: cast.repository.set_priority(
        cast.queued.id, None, Priority.HIGH, "somebody", at(50)
    ),
    "add_event": lambda cast: cast.repository.add_event(cast.queued.id, JobEvent("note", at(50))),
    "repeat_jobs": lambda cast: cast.repository.repeat_jobs(
        cast.story.user.id,
        [Repeat(cast.queued.id, "new", {}), Repeat(cast.running.job.id, "newer", {"fresh": True})],
        at(50),
        QueueLimits(10, 10),
    ),
    "requeue_dead": lambda cast: cast.repository.requeue_dead({cast.running.job.id: "new"}, at(50)),
    "pause_queue": lambda cast: cast.repository.pause_queue("why", at(50)),
    "resume_queue": lambda cast: cast.repository.resume_queue(at(50)),
    "limit_pool": lambda cast: cast.repository.limit_pool("gpu", 3, at(50)),
    "take_over": lambda cast: cast.repository.take_over("successor", at(50)),
    "succeed": lambda cast: cast.repository.succeed(
        ControllerState(cast.story.lease.epoch, cast.story.lease.holder, START), "successor", at(50)
    ),
    "release": lambda cast: cast.repository.release(cast.story.lease, "stopped", at(50)),
    "heartbeat": lambda cast: cast.repository.heartbeat(cast.story.lease, at(50), "note"),
    "claim_jobs": lambda cast: cast.repository.claim_jobs(cast.story.lease, 2, at(50)),
    "expire_queued": lambda cast: cast.repository.expire_queued(cast.story.lease, timedelta(0), at(50)),
    "register_agent": lambda cast: cast.repository.register_agent("key-rack", PROFILE, at(50)),
    "heartbeat_agent": lambda cast: cast.repository.heartbeat_agent(cast.agent.lease, "note", 7, at(50)),
    "set_agent_state": lambda cast: cast.repository.set_agent_state(
        cast.agent.id, AgentState.REMOVED, at(50)
    ),
    "deregister_agent": lambda cast: cast.repository.deregister_agent(cast.idle_agent.lease, at(50)),
    "claim_for_agent": lambda cast: cast.repository.claim_for_agent(cast.agent.lease, 2, at(50)),
    "expire_agent": lambda cast: cast.repository.expire_agent(cast.story.lease, cast.agent, 3, at(50)),
    "mark_started": lambda cast: cast.repository.mark_started(cast.claimed.fence, "c9", "image", at(50)),
    "mark_begun": lambda cast: cast.repository.mark_begun(cast.fence, at(50)),
    "record_stop": lambda cast: cast.repository.record_stop(cast.fence, Reason.TIMEOUT, None, at(50)),
    "finish_attempt": lambda cast: cast.repository.finish_attempt(cast.fence, verdict(None), SEAL, at(50)),
    "release_attempt": lambda cast: cast.story.release(cast.fence, 50),
    "mark_pruned": lambda cast: cast.repository.mark_pruned(
        cast.story.lease, archives=[cast.ended.id], logs=[cast.ended.id], now=at(50)
    ),
    "remove_jobs": lambda cast: cast.repository.remove_jobs(cast.story.lease, [cast.ended.id]),
    "add_pack": lambda cast: cast.repository.add_pack(cast.story.user.id, NEW_PACK, at(50)),
    "forget_packs": lambda cast: cast.repository.forget_packs(cast.story.user.id, [PACK.name]),
    "remove_cancels": lambda cast: cast.repository.remove_cancels(cast.story.lease, [cast.cancel]),
}


def test_every_write_of_the_repository_is_here() -> None:
    methods = inspect.getmembers(SQLiteJobRepository, inspect.iscoroutinefunction)
    writing = re.compile(r"_db\.write\(|\.answer\(")
    assert {name for name, method in methods if writing.search(inspect.getsource(method))} == {
        *WRITES,
        *IN_STEPS,
    }


async def cast_in(repository: JobRepository, write: str = "") -> Cast:
    """In the database, which was empty, the write of that name has something to do."""
    story = Story(repository)
    await story.begin()
    key = make_key(story.user, id="key", key_hash="hash", prefix="prefix")
    await repository.create_api_key(key)
    for number, name in enumerate(("ended", "running", "claimed", "queued", "queued2")):
        await story.queue(number, id=name)
    done = await story.run("c1", 10)
    await repository.finish_attempt(done.fence, verdict(None), SEAL, at(11))
    both = {"archives": ["ended"], "logs": ["ended"]}
    await repository.mark_pruned(story.lease, **both, now=at(12))
    running = await story.claim(13)
    await repository.mark_started(running.fence, "c2", "image", at(13))
    claimed = await story.claim(14)
    await repository.request_cancel((await story.queue(14, id="cancelled")).id, None, "somebody", at(15))
    [cancel] = await repository.audited_cancels()
    await repository.add_pack(story.user.id, PACK, at(16))
    queued, ended = await story.job("queued"), await story.job("ended")
    for name in ("agent1", "agent2"):
        await story.queue(17, id=name, options=JobOptions(pool="gpu"))
    agent, idle_agent = await story.agent("rack"), await story.agent("idle", pool="other")
    await repository.claim_for_agent(agent.lease, 1, at(18))
    cast = Cast(repository, story, queued, claimed, running, ended, key, cancel.id, agent, idle_agent)
    if write in BEFORE:
        await BEFORE[write](cast)
    return cast


@asynccontextmanager
async def a_cast(directory: Path, name: str = "") -> AsyncGenerator[Cast]:
    """A database in which the write of that name has something to do, always the same but for its tokens."""
    directory.mkdir()
    FailingConnection.left = 0
    repository = SQLiteJobRepository(new_database(directory))
    try:
        yield await cast_in(repository, name)
    finally:
        FailingConnection.left = 0
        await repository.close()


def dump(directory: Path) -> dict[str, list[str]]:
    """Return everything in the database but what is random."""
    db = sqlite3.connect(directory / "ci_jobs.db")
    db.row_factory = sqlite3.Row
    try:
        names = [row["name"] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {
            name: [
                str({column: row[column] for column in row.keys() if column not in ("token", "instance_id")})  # noqa: SIM118
                for row in db.execute(f"SELECT * FROM {name}")
            ]
            for name in names
        }
    finally:
        db.close()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's connections fail on demand."""
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=FailingConnection))
    monkeypatch.setattr(FailingConnection, "statements", [])


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("name", WRITES)
async def test_a_write_whose_nth_statement_fails_did_nothing_or_all(name: str, home: Path) -> None:
    async with a_cast(home / "whole", name) as cast:
        before = dump(home / "whole")
        await WRITES[name](cast)
        after = dump(home / "whole")
    nth, failures = 0, 0
    while failures == nth:  # until there is no n-th statement
        nth += 1
        failures += await _fails_at(name, nth, home / str(nth), before, after)
    assert nth > 3, "at least BEGIN, one statement and COMMIT were made to fail"


async def _fails_at(
    name: str, nth: int, directory: Path, before: dict[str, list[str]], after: dict[str, list[str]]
) -> bool:
    """Return whether the write came to an n-th statement; a second try then does what the first should have."""
    async with a_cast(directory, name) as cast:
        FailingConnection.code = (SQLITE_FULL, SQLITE_IOERR)[nth % 2]
        FailingConnection.left = nth
        try:
            await WRITES[name](cast)
        except CIError:
            failed = True
        else:
            failed = False
        FailingConnection.left = 0
        _nothing_is_open(directory)
        if not failed:
            return False
        assert dump(directory) == before
        await WRITES[name](cast)
        assert dump(directory) == after
    return True


def _nothing_is_open(directory: Path) -> None:
    """I8: no transaction outlives its call."""
    db = connect(directory / "ci_jobs.db", busy_timeout_ms=0)
    db.execute("BEGIN IMMEDIATE")
    db.close()


@pytest.mark.usefixtures("failing")
async def test_a_commit_whose_answer_is_lost_is_whole(home: Path) -> None:
    """The caller is told of an error, and all of it stands."""
    async with a_cast(home / "it") as cast:
        before = dump(home / "it")
        FailingConnection.statements.clear()
        FailingConnection.after = True
        try:
            FailingConnection.left = await _count_of(
                cast.repository.add_event("queued", JobEvent("a", at(1)))
            )
            with pytest.raises(CIError):
                await cast.repository.add_event("queued", JobEvent("b", at(1)))
        finally:
            FailingConnection.after = False
        assert len(dump(home / "it")["job_events"]) == len(before["job_events"]) + 2
        _nothing_is_open(home / "it")


async def _count_of(write: Awaitable[object]) -> int:
    await write
    return len([sql for sql in FailingConnection.statements if not sql.startswith("PRAGMA")])


# -- row 46 ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("name", WRITES)
async def test_row_46_a_write_begins_immediately(name: str, home: Path) -> None:
    async with a_cast(home / "it", name) as cast:
        FailingConnection.statements.clear()
        await WRITES[name](cast)
        first = next(sql for sql in FailingConnection.statements if not sql.startswith("PRAGMA"))
        assert first == "BEGIN IMMEDIATE"


def test_row_46_no_other_transaction_is_opened_anywhere() -> None:
    """One plain BEGIN of SQLite's is left, where nothing is written: a snapshot to read from."""
    found = {
        (path.relative_to(ROOT).as_posix(), match)
        for package in ROOT.glob("ci_*")
        for path in package.rglob("*.py")
        if not path.name.startswith("postgres_")  # which has locks of rows instead
        for match in re.findall(r"""["'](BEGIN[^"']*)["']""", path.read_text())
    }
    allowed = {("ci_persistence/sqlite_connection.py", "BEGIN")}
    assert {one for one in found if one[1] not in ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE")} == allowed


def test_row_46_a_connection_that_reads_cannot_write() -> None:
    source = inspect.getsource(__import__("ci_persistence.sqlite_database", fromlist=["x"]))
    assert "PRAGMA query_only = ON" in source
