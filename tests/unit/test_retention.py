"""What is kept and what goes: the rules, what carries them out, what readers are told, and the file that shrinks."""

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_admin.cli import main
from ci_common.blobs import PackUse
from ci_common.clock import SystemClock, utcnow
from ci_common.crash_points import CrashPoint, told_of_crash_points
from ci_common.events import CompleteEvent, ErrorEvent, LogEvent, Position
from ci_common.job_terms import new_id
from ci_common.models import AuditAction, AuditedCancel, ControllerLease, FinishedJob, Job
from ci_controller.pruner import Pruner
from ci_controller.retention import (
    Keep,
    KeepBlobs,
    Prunable,
    Retention,
    Stored,
    abandoned,
    choose,
    choose_cancels,
    choose_packs,
    describe,
)
from ci_controller.settings import ControllerSettings
from ci_persistence.sqlite_connection import connect
from ci_persistence.sqlite_repository import SQLiteJobRepository
from ci_server.log_stream import BATCH_BYTES, Following, follow_job
from ci_server.shared_looks import SharedLooks
from ci_server.stream_end import StreamEnd
from tests.support.controlled import OUTPUT, ControlledSystem, a_run, controlled_system, eventually
from tests.support.controller import NOW, ago
from tests.support.database import new_database
from tests.support.repository_contract.story import Story, at, make_job
from tests.support.server import Account, Site, zipped

DAY = 86400.0
FOREVER = Keep(timedelta(days=10_000), 10**9)
ALL = Retention(FOREVER, FOREVER, FOREVER)
NOTHING = Keep(timedelta(0), 0)


def ended(name: str, days: float, *, archive_pruned: bool = False, log_pruned: bool = False) -> FinishedJob:
    return FinishedJob(
        name, ago(days * DAY), f"{name}.zip", archive_pruned=archive_pruned, log_pruned=log_pruned
    )


def gone(stored: Stored, retention: Retention) -> set[tuple[str, str]]:
    return {(one.kind, one.name) for one in choose(stored, retention, NOW)}


# -- the rules -------------------------------------------------------------------------------------------


def test_by_age() -> None:
    stored = Stored([ended("new", 1), ended("old", 8)], {"old.zip": 5}, {"old": 7})
    week = Keep(timedelta(days=7), 10**9)
    assert choose(stored, Retention(week, FOREVER, FOREVER), NOW) == [
        Prunable("archive", "old", 5, "ended more than 7 d ago")
    ]
    assert gone(stored, Retention(FOREVER, week, FOREVER)) == {("log", "old")}


def test_by_count_the_oldest_go() -> None:
    stored = Stored([ended(str(n), n) for n in range(5)])
    assert gone(stored, Retention(FOREVER, Keep(FOREVER.age, 3), FOREVER)) == {("log", "3"), ("log", "4")}


def test_by_size_the_oldest_go_and_none_that_is_newer_than_one_that_stays() -> None:
    stored = Stored([ended(str(n), n) for n in range(4)], logs={"0": 60, "1": 60, "2": 10, "3": 1})
    chosen = choose(stored, Retention(FOREVER, Keep(FOREVER.age, 9, size=100), FOREVER), NOW)
    assert [(one.name, one.size, one.why) for one in chosen] == [
        (name, size, "they take more than 100 bytes") for name, size in (("1", 60), ("2", 10), ("3", 1))
    ]


def test_what_is_pruned_already_takes_no_room_and_is_not_chosen_again() -> None:
    jobs = [ended("0", 0, log_pruned=True), ended("1", 1), ended("2", 2)]
    assert gone(Stored(jobs), Retention(FOREVER, Keep(FOREVER.age, 1), FOREVER)) == {("log", "2")}


def test_a_job_takes_its_archive_and_log_with_it() -> None:
    jobs = [ended("kept", 1), ended("whole", 99), ended("marked", 100, archive_pruned=True, log_pruned=True)]
    assert gone(Stored(jobs), Retention(FOREVER, FOREVER, Keep(timedelta(days=90), 9))) == {
        ("archive", "whole"),
        ("log", "whole"),
        ("job", "whole"),
        ("job", "marked"),
    }


def test_a_row_stays_while_the_minimum_keeps_its_log() -> None:
    jobs = [ended("a", 100), ended("b", 101)]
    retention = Retention(NOTHING, Keep(timedelta(0), 0, minimum=1), NOTHING)
    assert gone(Stored(jobs), retention) == {
        ("archive", "a"),
        ("archive", "b"),
        ("log", "b"),
        ("job", "b"),
    }


def test_pressure_takes_archives_and_nothing_else() -> None:
    pressed = ALL.under_pressure()
    assert gone(Stored([ended("a", 0.1)]), pressed) == {("archive", "a")}
    assert (pressed.logs, pressed.jobs) == (ALL.logs, ALL.jobs)


def cancel(number: int, days: float, actor: str) -> AuditedCancel:
    return AuditedCancel(number, ago(days * DAY), actor)


@pytest.mark.parametrize(
    ("keep", "numbers"),
    [
        (Keep(timedelta(days=7), 10), {1}),
        (Keep(timedelta(days=99), 2), {2, 1}),
        (Keep(timedelta(days=99), 0), {5, 4, 3, 2, 1}),
        (Keep(timedelta(days=99), 10), set[int]()),
    ],
)
def test_of_each_person_the_audit_trail_keeps_so_many_cancels(keep: Keep, numbers: set[int]) -> None:
    """Who cancels in a loop pushes out nobody else's."""
    cancels = [cancel(n, 10 - 2 * n, "ada") for n in (5, 4)] + [cancel(3, 5, "bob")]
    cancels += [cancel(2, 6, "ada"), cancel(1, 8, "ada")]
    chosen = choose_cancels(cancels, keep, NOW)
    assert {int(one.name) for one in chosen} == numbers
    assert {(one.kind, one.size) for one in chosen} <= {("cancel", 0)}


def test_why_a_cancel_goes_is_said() -> None:
    cancels = [cancel(n, 10 - 4 * n, "ada") for n in (2, 1, 0)]
    assert [one.why for one in choose_cancels(cancels, Keep(timedelta(days=7), 1), NOW)] == [
        "more than 1 of one person are kept",
        "older than 7 d",
    ]


def test_what_one_user_has_beyond_his_limit_takes_nobody_elses_place() -> None:
    keep = KeepBlobs(size=100, size_per_user=60)
    packs = [PackUse(f"bobs-{n}", "bob", 30, at(n), at(n), needed=False) for n in range(9, 3, -1)]
    adas = PackUse("adas", "ada", 40, at(0), at(0), needed=False)
    assert [one.name for one in choose_packs([*packs, adas], keep, at(9) + timedelta(hours=2))] == [
        f"bobs-{n}" for n in (7, 6, 5, 4)
    ]


def test_an_upload_without_a_job_is_abandoned_after_an_hour() -> None:
    ages = {"young": timedelta(minutes=59), "late": timedelta(minutes=61), "used": timedelta(days=9)}
    assert abandoned(ages, {"used"}) == {"late"}


def test_ages_are_said_in_the_largest_unit_that_fits() -> None:
    ages = [timedelta(days=7), timedelta(hours=36), timedelta(minutes=90), timedelta(seconds=1.5)]
    assert [describe(age) for age in ages] == ["7 d", "36 h", "90 min", "1.5 s"]


KEEPS = st.builds(
    Keep,
    st.integers(0, 20).map(lambda days: timedelta(days=days)),
    st.integers(0, 12),
    st.none() | st.integers(0, 300),
    st.integers(0, 8),
)
JOBS = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 50)), max_size=15)


@given(st.builds(Retention, KEEPS, KEEPS, KEEPS), JOBS)
def test_whatever_the_operator_says_the_minimum_stays_and_the_rest_is_within_bounds(
    retention: Retention, rows: list[tuple[bool, bool, int]]
) -> None:
    jobs = [
        ended(f"{n:02}", n, archive_pruned=row[0], log_pruned=row[0] and row[1]) for n, row in enumerate(rows)
    ]
    sizes = {job.id: row[2] for job, row in zip(jobs, rows, strict=True)}
    stored = Stored(jobs, {f"{name}.zip": size for name, size in sizes.items()}, sizes)
    taken = gone(stored, retention)
    kept_archives = [job for job in jobs if not job.archive_pruned and ("archive", job.id) not in taken]
    kept_logs = [job for job in jobs if not job.log_pruned and ("log", job.id) not in taken]
    for kept, there, keep in (
        (kept_archives, [job for job in jobs if not job.archive_pruned], retention.archives),
        (kept_logs, [job for job in jobs if not job.log_pruned], retention.logs),
    ):
        assert kept[: keep.minimum] == there[: keep.minimum]
        above = kept[keep.minimum :]
        assert len(kept) <= max(keep.count, keep.minimum)
        assert all(NOW - job.ended_at <= keep.age for job in above)
        assert not above or keep.size is None or sum(sizes[job.id] for job in kept) <= keep.size
    for job in jobs:
        if ("job", job.id) in taken:
            assert job.archive_pruned or ("archive", job.id) in taken
            assert job.log_pruned or ("log", job.id) in taken
    assert not {("job", job.id) for job in jobs[: retention.jobs.minimum]} & taken


def test_settings_become_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ControllerSettings().retention == ControllerSettings().policy.retention == Retention()
    for name, value in {
        "CI_KEEP_ARCHIVES": "12h",
        "CI_KEEP_LOGS_BYTES": "2GiB",
        "CI_KEEP_JOBS_MIN": "7",
        "CI_KEEP_CANCELS": "90d",
        "CI_KEEP_CANCELS_MAX": "12",
    }.items():
        monkeypatch.setenv(name, value)
    changed = ControllerSettings().retention
    assert changed.archives.age == timedelta(hours=12)
    assert changed.logs.size == 2 * 1024**3
    assert changed.jobs.minimum == 7
    assert changed.cancels == Keep(timedelta(days=90), 12)


# -- carrying them out -----------------------------------------------------------------------------------


def pruner(site: Site, retention: Retention, lease: ControllerLease | None = None) -> Pruner:
    return Pruner(site.repository, site.stores.logs, site.stores.archives, retention, lease)


def files_below(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.suffix in (".zip", ".log")}


async def finished(site: Site, account: Account, output: bytes = b"output\n") -> Job:
    """A finished job whose archive is really there."""
    archive = await _upload(site)
    await queue(site, account, archive)
    attempt = await site.hands.start()
    site.hands.write(attempt, output)
    await site.hands.finish(attempt)
    job = await site.repository.get_job(attempt.job.id)
    assert job is not None
    return job


async def queue(site: Site, account: Account, archive_ref: str) -> Job:
    return await site.repository.create_job(Job(new_id(), account.user.id, utcnow(), archive_ref))


async def _upload(site: Site) -> str:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield zipped()

    return (await site.stores.archives.save(chunks(), 10**6)).ref


async def test_marks_then_files_then_rows(site: Site, ada: Account, tmp_path: Path) -> None:
    job, other = await finished(site, ada), await finished(site, ada)
    seen: list[tuple[CrashPoint, bool, bool, bool]] = []

    def look(point: CrashPoint) -> None:
        db = sqlite3.connect(site.settings.db_path)
        row = db.execute("SELECT log_pruned_at FROM jobs WHERE id = ?", (job.id,)).fetchone()
        db.close()
        seen.append((point, row is not None, row is not None and row[0] is not None, bool(files())))

    def files() -> set[str]:
        return files_below(tmp_path) & {job.archive_ref}

    only_the_other = Keep(timedelta(days=1), 1)
    with told_of_crash_points(look):
        gone = await pruner(site, Retention(only_the_other, only_the_other, only_the_other)).prune(utcnow())
    assert {(one.kind, one.name) for one in gone} == {(kind, job.id) for kind in ("archive", "log", "job")}
    assert seen == [("after_prune_marked", True, True, True), ("after_prune_files", True, True, False)]
    assert await site.repository.get_job(job.id) is None
    assert files_below(tmp_path) == {other.archive_ref, "1.log"}


class Died(Exception):
    """The process is gone."""


@pytest.mark.parametrize("point", ["after_prune_marked", "after_prune_files"])
async def test_the_next_prune_finishes_what_one_that_died_began(
    point: CrashPoint, site: Site, ada: Account, tmp_path: Path
) -> None:
    job = await finished(site, ada)
    kept = await finished(site, ada)

    def die(reached: CrashPoint) -> None:
        if reached == point:
            raise Died

    one = Keep(timedelta(days=1), 1)
    with told_of_crash_points(die), pytest.raises(Died):
        await pruner(site, Retention(one, one, one)).prune(utcnow())
    # The operator has changed their mind meanwhile: what is marked goes all the same, and nothing else.
    await pruner(site, ALL).prune(utcnow())
    assert files_below(tmp_path) == {kept.archive_ref, "1.log"}
    assert job.archive_ref not in await site.repository.archive_refs_in_use()
    await pruner(site, Retention(one, one, one)).prune(utcnow())
    assert await site.repository.get_job(job.id) is None
    assert await site.repository.get_job(kept.id) == kept


async def test_nothing_of_an_unfinished_job_goes(site: Site, ada: Account, tmp_path: Path) -> None:
    queued = await queue(site, ada, await _upload(site))
    attempt = await site.hands.start()
    site.hands.write(attempt, b"so far")
    everything = Retention(NOTHING, NOTHING, NOTHING)
    before = files_below(tmp_path)
    assert await pruner(site, everything).prune(utcnow() + timedelta(days=999), under_pressure=True) == []
    assert files_below(tmp_path) == before == {queued.archive_ref, "1.log"}


async def test_a_dry_run_says_the_same_and_changes_nothing(site: Site, ada: Account, tmp_path: Path) -> None:
    job = await finished(site, ada)
    before = files_below(tmp_path)
    prune = pruner(site, Retention(NOTHING, NOTHING, NOTHING))
    planned = (await prune.plan(utcnow())).everything
    assert files_below(tmp_path) == before
    assert await site.repository.get_job(job.id) == job
    assert tuple(await prune.prune(utcnow())) == planned != ()


async def test_who_lost_the_lease_prunes_nothing(site: Site, ada: Account, tmp_path: Path) -> None:
    job = await finished(site, ada)
    before = files_below(tmp_path)
    lease = await site.repository.take_over("first", utcnow())
    await site.repository.take_over("second", utcnow())
    assert await pruner(site, Retention(NOTHING, NOTHING, NOTHING), lease).prune(utcnow()) == []
    assert files_below(tmp_path) == before
    assert await site.repository.get_job(job.id) == job


async def test_logs_that_no_job_has_go_when_they_are_as_old_as_logs_may_get(
    site: Site, ada: Account, tmp_path: Path
) -> None:
    """They came after the backup that was restored; until then somebody may want to read them."""
    for name, age in (("young", 0.0), ("old", 40 * DAY)):
        writer = site.stores.logs.writer(name, 1)
        writer.write(0, b"output")
        writer.close()
        for path in (site.settings.data_path / "logs" / name).iterdir():
            os.utime(path, (time.time() - age, time.time() - age))
    kept = await finished(site, ada)
    [gone] = await pruner(site, Retention()).prune(utcnow())
    assert (gone.kind, gone.name, gone.why) == ("log", "old", "no such job")
    assert {item.name for item in site.stores.logs.items()} == {"young", kept.id}


async def test_who_submits_and_cancels_for_ever_does_not_grow_the_audit_trail_for_ever(
    site: Site, ada: Account
) -> None:
    before = [event.action for event in await site.repository.list_audit()]
    for _ in range(3):
        job = await queue(site, ada, await _upload(site))
        await site.repository.request_cancel(job.id, ada.user.id, ada.user.email, utcnow())
    two = Retention(FOREVER, FOREVER, FOREVER, cancels=Keep(timedelta(days=1), 2))
    [planned] = (await pruner(site, two).plan(utcnow())).everything
    assert await pruner(site, two).prune(utcnow()) == [planned]
    after = [event.action for event in await site.repository.list_audit()]
    assert after == [*before, AuditAction.JOB_CANCEL, AuditAction.JOB_CANCEL], "and all else is there"
    assert len(await pruner(site, two).prune(utcnow() + timedelta(days=2))) == 2
    assert [event.action for event in await site.repository.list_audit()] == before


async def test_two_that_prune_at_once_do_no_more_than_one(site: Site, ada: Account, tmp_path: Path) -> None:
    for _ in range(5):
        await finished(site, ada)
    kept = Keep(timedelta(days=1), 2)
    retention = Retention(kept, kept, kept)
    await asyncio.gather(*(pruner(site, retention).prune(utcnow()) for _ in range(4)))
    assert len(await site.repository.finished_jobs()) == 2
    assert len([name for name in files_below(tmp_path) if name.endswith(".zip")]) == 2


# -- what readers are told -------------------------------------------------------------------------------


async def prune_log(site: Site, job: Job) -> None:
    await site.repository.mark_pruned(None, archives=[], logs=[job.id], now=utcnow())
    await asyncio.to_thread(site.stores.logs.delete, job.id)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_pruned_log_is_410(method: str, site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    job = await site.finished_job(ada, b"output")
    await prune_log(site, job)
    response = await http.request(method, f"/jobs/{job.id}/log")
    assert response.status_code == 410
    if method == "GET":
        assert response.json()["code"] == "log_pruned"
        assert f"The log of job {job.id} was pruned on " in response.json()["detail"]
    assert (await http.get(f"/jobs/{job.id}")).json()["success"] is True


async def read(events: AsyncGenerator[object, None]) -> list[object]:
    async with asyncio.timeout(20):
        return [event async for event in events]


def follow(site: Site, job: Job, start: Position) -> AsyncGenerator[object, None]:
    looks = SharedLooks(site.repository, site.stores.logs, SystemClock())
    around = Following(site.repository, site.stores.logs, site.stores.hub, looks, StreamEnd())
    return follow_job(around, job.id, job.user_id, start)


@pytest.mark.parametrize("start", [Position(1, 0), Position(1, 3)])
async def test_a_stream_of_a_pruned_log_says_so_and_completes(
    start: Position, site: Site, ada: Account
) -> None:
    job = await site.finished_job(ada, b"output")
    await prune_log(site, job)
    error, complete = await read(follow(site, job, start))
    assert isinstance(error, ErrorEvent)
    assert error.code == "log_pruned"
    assert complete == CompleteEvent.of(job)


async def test_who_has_read_everything_hears_only_the_verdict(site: Site, ada: Account) -> None:
    job = await site.finished_job(ada, b"output")
    await prune_log(site, job)
    assert await read(follow(site, job, Position(1, 6))) == [CompleteEvent.of(job)]


async def test_an_open_stream_finishes_although_its_log_is_pruned_under_it(site: Site, ada: Account) -> None:
    output = b"line of output\n" * 40_000
    assert len(output) > 4 * BATCH_BYTES
    job = await site.finished_job(ada, output)
    async with aclosing(follow(site, job, Position(1, 0))) as events:
        first = await anext(events)
        await prune_log(site, job)
        rest = await read(events)
    pieces = [event for event in (first, *rest) if isinstance(event, LogEvent)]
    assert b"".join(piece.data for piece in pieces) == output
    assert rest[-1] == CompleteEvent.of(job)
    assert not [event for event in rest if isinstance(event, ErrorEvent)]


async def test_a_stream_through_http_completes_after_pruning(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.finished_job(ada, b"output")
    await prune_log(site, job)
    response = await http.get(f"/jobs/{job.id}/stream", headers={"Last-Event-ID": "1:2"})
    assert response.status_code == 200
    kinds = [
        json.loads(line.removeprefix("data: "))["type"]
        for line in response.text.splitlines()
        if line.startswith("data: ")
    ]
    assert kinds == ["error", "complete"]


async def test_a_log_that_goes_while_its_job_is_looked_up_is_410_too(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    """The row was read before the mark, the file looked for after it went."""
    from ci_server.log_stream import pruned_meanwhile

    before = await site.finished_job(ada, b"output")
    await prune_log(site, before)
    assert before.log_pruned_at is None
    assert await pruned_meanwhile(site.repository, before) is not None
    await site.repository.mark_pruned(None, archives=[before.id], logs=[], now=utcnow())
    await site.repository.remove_jobs(None, [before.id])
    assert await pruned_meanwhile(site.repository, before) is not None
    assert (await http.get(f"/jobs/{before.id}/log")).status_code == 404


# -- the file --------------------------------------------------------------------------------------------


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncGenerator[SQLiteJobRepository, None]:
    repository = SQLiteJobRepository(new_database(tmp_path))
    yield repository
    await repository.close()


async def test_the_database_file_shrinks_after_pruning(
    repository: SQLiteJobRepository, tmp_path: Path
) -> None:
    path = tmp_path / "ci_jobs.db"
    story = Story(repository)
    await story.begin()
    for _ in range(80):
        job = await repository.create_job(make_job(story.user, archive_ref="x" * 100_000))
        await repository.request_cancel(job.id, None, "operator", at(1))
    await repository.maintain()
    full = await asyncio.to_thread(_size, path)
    assert full > 8_000_000
    jobs = [job.id for job in await repository.finished_jobs()]
    await repository.mark_pruned(None, archives=jobs, logs=jobs, now=at(2))
    assert await repository.remove_jobs(None, jobs) == 80
    await repository.maintain()
    assert await asyncio.to_thread(_size, path) < full / 4


def _size(path: Path) -> int:
    return path.stat().st_size


def _auto_vacuum(path: Path) -> int:
    db = connect(path)
    try:
        return int(db.execute("PRAGMA auto_vacuum").fetchone()[0])
    finally:
        db.close()


async def test_a_database_of_an_older_release_can_shrink_after_a_start(
    repository: SQLiteJobRepository, tmp_path: Path
) -> None:
    path = tmp_path / "ci_jobs.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA auto_vacuum = NONE")
    db.execute("VACUUM")
    db.close()
    assert await asyncio.to_thread(_auto_vacuum, path) == 0
    await repository.maintain()  # harmless where it is not possible
    await repository.initialize()
    await repository.check()
    assert await asyncio.to_thread(_auto_vacuum, path) == 2


# -- the commands ----------------------------------------------------------------------------------------


Admin = Callable[..., tuple[int, str, str]]


@pytest.fixture
def admin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Admin:
    monkeypatch.setenv("CI_DB_PATH", str(tmp_path / "ci_jobs.db"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ci-admin", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return int(str(left.value.code)), said.out, said.err

    return run


async def one_cancelled_job(path: Path) -> Job:
    repository = SQLiteJobRepository(path)
    story = Story(repository)
    await repository.initialize()
    await story.begin()
    job = await repository.create_job(make_job(story.user, utcnow()))
    job = await repository.request_cancel(job.id, None, "operator", utcnow())
    await repository.close()
    return job


def test_the_prune_command_lists_then_prunes(
    admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = asyncio.run(one_cancelled_job(tmp_path / "ci_jobs.db"))
    assert "everything is within" in admin("prune", "--dry-run")[1]
    for kind in ("ARCHIVES", "LOGS", "JOBS"):
        monkeypatch.setenv(f"CI_KEEP_{kind}_MAX", "0")
        monkeypatch.setenv(f"CI_KEEP_{kind}_MIN", "0")
    code, out, _ = admin("prune", "--dry-run", "--json")
    assert code == 0
    planned = json.loads(out)
    assert planned["dry_run"] is True
    assert {(one["kind"], one["name"], one["why"]) for one in planned["pruned"]} == {
        (kind, job.id, "more than 0 are kept") for kind in ("archive", "log", "job")
    }
    assert "3 would go" in admin("prune", "--dry-run")[1]
    said = admin("prune", "--vacuum")
    assert "3 gone" in said[1], said
    assert json.loads(admin("prune", "--json")[1]) == {"dry_run": False, "pruned": []}


def test_the_stats_command_counts_what_was_pruned(
    admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = asyncio.run(one_cancelled_job(tmp_path / "ci_jobs.db"))
    for name in ("ARCHIVES", "LOGS", "JOBS"):
        monkeypatch.setenv(f"CI_KEEP_{name}_MAX", "0")
        monkeypatch.setenv(f"CI_KEEP_{name}_MIN", "0")
    admin("prune")
    [day] = json.loads(admin("stats", "--json")[1])
    assert (day["email"], day["jobs"], day["passed"]) == ("ada@example.org", 1, 0)
    assert day["not_passed"] == {"cancelled": 1}
    assert job.end_time is not None
    assert day["day"] == job.end_time.date().isoformat()
    assert "1 cancelled" in admin("stats", "--days", "2")[1]


async def test_a_nearly_full_disk_prunes_archives_before_their_time(tmp_path: Path) -> None:
    async with controlled_system(tmp_path, a_run()) as system:
        async with system.running():
            job = await system.finished(await system.submit())
        assert [item.name for item in system.stores.archives.items()] == [job.archive_ref]
        starved = replace(system.policy, disk_min_free=10**18)
        async with system.running(policy=starved, places={"data": tmp_path}) as controller:
            await eventually(lambda: _said_low(system))
            await controller.keep_house()
        assert list(system.stores.archives.items()) == []
        assert system.log(job.id) == OUTPUT


async def _said_low(system: ControlledSystem) -> bool:
    state = await system.repository.controller_state()
    return state is not None and "free" in (state.note or "")
