"""Backups taken while everything runs, and what a restore gives back and says is lost."""

import asyncio
import errno
import itertools
import json
import multiprocessing
import os
import shutil
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from datetime import timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from ci_admin.cli import main
from ci_common.crash_points import CrashPoint, told_of_crash_points
from ci_common.errors import AlreadyExists, BackupInvalid, DatabaseBusy, SchemaMissing, SchemaTooNew
from ci_common.job_terms import JobStatus
from ci_common.settings import StorageSettings
from ci_controller.singleton import lock_file
from ci_persistence.backup import Manifest, back_up, check_database
from ci_persistence.factory import open_stores
from ci_persistence.restore import Restored, restore
from ci_persistence.sqlite_connection import connect
from ci_persistence.sqlite_repository import SQLiteJobRepository
from tests.support.controlled import OUTPUT, ControlledSystem, a_run, controlled_system
from tests.support.repository_contract.story import make_job, make_user


@pytest.fixture
async def system(tmp_path: Path) -> AsyncGenerator[ControlledSystem, None]:
    home = tmp_path / "home"
    await asyncio.to_thread(home.mkdir)
    async with controlled_system(home, a_run()) as running:
        yield running


def settings_of(root: Path) -> StorageSettings:
    root.mkdir(exist_ok=True)
    return StorageSettings(db_path=root / "ci_jobs.db")


async def take(root: Path, target: Path, *, with_logs: bool = False) -> Manifest:
    return await asyncio.to_thread(back_up, settings_of(root / "home"), target, with_logs=with_logs)


async def put_back(root: Path, backup: Path, *, force: bool = False) -> Restored:
    return await asyncio.to_thread(restore, settings_of(root), backup, force=force)


# -- under load ------------------------------------------------------------------------------------------


async def test_a_backup_under_load_has_every_acknowledged_job(
    system: ControlledSystem, tmp_path: Path
) -> None:
    """Row 50: jobs are submitted and run while it is taken; the restored installation runs what was unfinished."""
    stop = asyncio.Event()
    acknowledged: list[str] = []
    before: set[str] = set()

    async def submit_on_and_on() -> None:
        while not stop.is_set():
            acknowledged.append(await system.submit())

    async with system.running():
        load = [asyncio.create_task(submit_on_and_on()) for _ in range(3)]
        await system.finished(await system.submit())
        for number in range(3):
            before = set(acknowledged)
            manifest = await take(tmp_path, tmp_path / f"backup-{number}", with_logs=True)
            assert manifest.jobs >= len(before)
        stop.set()
        await asyncio.gather(*load)
    await asyncio.to_thread(check_database, tmp_path / "backup-2" / "ci_jobs.db")
    await put_back(tmp_path / "new", tmp_path / "backup-2")
    async with controlled_system(tmp_path / "new", a_run()) as restored:
        known = await restored.repository.existing_jobs(before)
        assert known == before
        unfinished = [job for job in before if not (await restored.job(job)).status.is_terminal]
        async with restored.running():
            for job in (*unfinished[:3], *unfinished[-3:]):
                assert (await restored.finished(job)).status is JobStatus.COMPLETED
                assert restored.log(job, (await restored.job(job)).attempt) == OUTPUT


async def test_a_plain_copy_of_the_file_lacks_what_was_committed_lately(
    system: ControlledSystem, tmp_path: Path
) -> None:
    """Why `cp` is no backup: the commit stands in the log beside the file."""
    job = await system.submit()
    copy = tmp_path / "copy.db"
    await asyncio.to_thread(shutil.copyfile, tmp_path / "home" / "ci_jobs.db", copy)
    db = sqlite3.connect(copy)
    try:
        found = db.execute("SELECT id FROM jobs WHERE id = ?", (job,)).fetchall()
    except sqlite3.DatabaseError:
        found = []
    finally:
        db.close()
    assert found == []
    await take(tmp_path, tmp_path / "backup")
    db = sqlite3.connect(tmp_path / "backup" / "ci_jobs.db")
    assert db.execute("SELECT id FROM jobs").fetchall() == [(job,)]
    db.close()


async def test_logs_come_along_when_asked_for(system: ControlledSystem, tmp_path: Path) -> None:
    async with system.running():
        job = await system.finished(await system.submit())
    manifest = await take(tmp_path, tmp_path / "backup", with_logs=True)
    assert manifest.logs == (job.id,)
    assert manifest.archives == ()  # nothing is unfinished
    await put_back(tmp_path / "new", tmp_path / "backup")
    log = tmp_path / "new" / "ci_jobs.db.data" / "logs" / job.id / "1.log"
    assert await asyncio.to_thread(log.read_bytes) == OUTPUT
    assert (await take(tmp_path, tmp_path / "without")).logs == ()


async def test_logs_come_along_in_whatever_form_they_lie(system: ControlledSystem, tmp_path: Path) -> None:
    async with system.running():
        job = await system.finished(await system.submit())
    logs, name = system.stores.logs, f"ci_jobs.db.data/logs/{job.id}"
    await take(tmp_path, tmp_path / "plain", with_logs=True)
    assert await asyncio.to_thread(logs.put_away, job.id, 1)
    await take(tmp_path, tmp_path / "put away", with_logs=True)
    for first, second in itertools.permutations(("plain", "put away")):
        for backup in (first, second):  # what lies there already has all that the other one brings
            await put_back(tmp_path / f"{first} first", tmp_path / backup, force=backup == second)
        assert len(list((tmp_path / f"{first} first" / name).glob("1.log*"))) == 1
        restored = open_stores(settings_of(tmp_path / f"{first} first")).logs
        assert await asyncio.to_thread(restored.read, job.id, 1, 0, 10**6) == OUTPUT


@pytest.mark.parametrize(
    ("error", "taken"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), None),
        (OSError(errno.EIO, "Input/output error"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), ()),
    ],
)
async def test_a_log_that_cannot_be_copied_fails_the_backup_and_one_that_is_gone_does_not(
    error: OSError,
    taken: tuple[str, ...] | None,
    system: ControlledSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with system.running():
        await system.finished(await system.submit())
    copyfile = shutil.copyfile

    def failing(source: Any, target: Any, **options: Any) -> Any:
        if str(getattr(source, "path", source)).endswith("1.log"):
            raise error
        return copyfile(source, target, **options)

    monkeypatch.setattr(shutil, "copyfile", failing)
    if taken is not None:
        assert (await take(tmp_path, tmp_path / "backup", with_logs=True)).logs == taken
        return
    with pytest.raises(OSError, match=str(error.strerror)) as raised:
        await take(tmp_path, tmp_path / "backup", with_logs=True)
    assert raised.value is error
    assert not list(tmp_path.glob("backup*"))


async def test_an_attempt_to_come_never_finds_a_log_that_was_put_away_under_its_number(
    system: ControlledSystem, tmp_path: Path
) -> None:
    job_id = await system.submit()
    await take(tmp_path, tmp_path / "backup")
    async with system.running():
        await system.finished(job_id)
    assert await asyncio.to_thread(system.stores.logs.put_away, job_id, 1)
    await system.repository.close()
    restored = await put_back(tmp_path / "home", tmp_path / "backup", force=True)
    folder = tmp_path / "home" / "ci_jobs.db.data" / "logs" / job_id
    assert {path.name.partition(".replaced-")[0] for path in folder.iterdir()} == {"1.log.zst", "1.events"}
    assert len([path for path in restored.set_aside if job_id in path]) == 2
    assert system.stores.logs.size(job_id, 1) == 0


async def test_an_older_database_restored_while_containers_run(
    system: ControlledSystem, tmp_path: Path
) -> None:
    """Row 51: a job since the backup is unknown and said so; one that was queued then runs, and has one verdict."""
    queued = await system.submit()
    await take(tmp_path, tmp_path / "backup")
    late = await system.submit()
    async with system.running():
        ended = [await system.finished(job) for job in (queued, late)]
    await system.repository.close()
    await system.stores.hub.close()
    done = await put_back(tmp_path / "home", tmp_path / "backup", force=True)
    assert done.unknown_jobs == (late,)
    assert set(done.lost_verdicts) == {f"{job.id}: completed" for job in ended}
    assert any(name.endswith(".db.replaced-" + name.rpartition("-")[2]) for name in done.set_aside)
    assert await system.repository.get_job(late) is None
    assert (await system.job(queued)).status is JobStatus.QUEUED
    async with system.running():
        again = await system.finished(queued)
    assert (again.status, again.attempt) == (JobStatus.COMPLETED, 1)
    assert system.log(queued) == OUTPUT
    assert await system.verdicts(queued) == ["completed"]


async def test_a_container_that_no_restored_job_has_gets_a_grace(
    system: ControlledSystem, tmp_path: Path
) -> None:
    await take(tmp_path, tmp_path / "backup")
    job = await system.submit()
    controller = system.controller()
    await controller.start()
    while not system.runtime.containers:
        await controller.reconcile_once()
        assert await controller.idle(10)
    names = list(system.runtime.containers)
    await controller.close()
    assert any(job in name for name in names)
    await system.repository.close()
    await system.stores.hub.close()
    await put_back(tmp_path / "home", tmp_path / "backup", force=True)
    successor = system.controller()
    await successor.start()
    assert await successor.reconcile_once() == []
    assert list(system.runtime.containers) == names
    await successor.close()
    impatient = system.controller(policy=replace(system.policy, orphan_grace=timedelta(0)))
    await impatient.start()
    await impatient.reconcile_once()
    await impatient.idle(10)
    await impatient.close()
    assert list(system.runtime.containers) == []


# -- refusals --------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An installation at rest, with a backup of it in `backup`."""
    home = tmp_path / "home"
    asyncio.run(_populate(home))
    back_up(settings_of(home), tmp_path / "backup")
    return home


async def _populate(home: Path) -> None:
    repository = SQLiteJobRepository(settings_of(home).db_path)
    await repository.initialize()
    await repository.create_user(make_user())
    await repository.request_cancel(
        (await repository.create_job(make_job(make_user()))).id, None, "operator", make_user().created_at
    )
    await repository.close()


def test_an_existing_database_is_replaced_only_by_force_and_never_deleted(home: Path, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists, match="--force"):
        restore(settings_of(home), tmp_path / "backup")
    before = (home / "ci_jobs.db").read_bytes()
    done = restore(settings_of(home), tmp_path / "backup", force=True)
    [aside] = done.set_aside
    assert Path(aside).read_bytes() == before


def _hold_open(path: Path, opened: Event, end: Event) -> None:
    db = connect(path)
    db.execute("SELECT count(*) FROM jobs").fetchall()
    opened.set()
    end.wait(60)
    db.close()


def test_nothing_is_replaced_under_a_process_that_has_it_open(home: Path, tmp_path: Path) -> None:
    """A server that kept the old file would go on acknowledging jobs into it."""
    spawn = multiprocessing.get_context("spawn")
    opened, end = spawn.Event(), spawn.Event()
    server = spawn.Process(target=_hold_open, args=(home / "ci_jobs.db", opened, end))
    server.start()
    try:
        assert opened.wait(60)
        before = (home / "ci_jobs.db").stat().st_ino
        with pytest.raises(DatabaseBusy, match="stop controller, servers"):
            restore(settings_of(home), tmp_path / "backup", force=True)
        assert (home / "ci_jobs.db").stat().st_ino == before
    finally:
        end.set()
        server.join(60)
    restore(settings_of(home), tmp_path / "backup", force=True)


@pytest.mark.parametrize(
    "damage",
    ["database", "absent database", "manifest", "no manifest", "format", "archive", "way out", "link"],
)
def test_a_backup_that_is_not_whole_is_refused_and_changes_nothing(
    damage: str, home: Path, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    manifest = json.loads((backup / "manifest.json").read_text())
    match damage:
        case "database":
            data = bytearray((backup / "ci_jobs.db").read_bytes())
            data[5000] ^= 1
            (backup / "ci_jobs.db").write_bytes(data)
        case "absent database":
            (backup / "ci_jobs.db").unlink()
        case "manifest":
            (backup / "manifest.json").write_text("{")
        case "no manifest":
            (backup / "manifest.json").unlink()
        case "format":
            (backup / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
        case "way out":
            (tmp_path / "planted").write_text("not of the backup")
            (backup / "manifest.json").write_text(json.dumps({**manifest, "archives": ["../../planted"]}))
        case "link":
            (backup / "archives" / f"{'0' * 32}.zip").symlink_to("/etc/passwd")
        case _:
            (backup / "manifest.json").write_text(json.dumps({**manifest, "archives": ["a.zip"]}))
    before = (home / "ci_jobs.db").read_bytes()
    with pytest.raises(BackupInvalid):
        restore(settings_of(home), backup, force=True)
    assert (home / "ci_jobs.db").read_bytes() == before
    assert not list(home.glob("*replaced*"))


def test_a_backup_of_a_newer_release_is_refused(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "backup" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 999}))
    with pytest.raises(SchemaTooNew, match="newer release"):
        restore(settings_of(home), tmp_path / "backup", force=True)


def test_a_backup_never_replaces_anything(home: Path, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists):
        back_up(settings_of(home), tmp_path / "backup")
    with pytest.raises(SchemaMissing):
        back_up(settings_of(tmp_path / "nowhere"), tmp_path / "another")
    assert not list(tmp_path.glob("another*"))


class Died(BaseException):
    """The process is gone."""


def dies_at(point: CrashPoint) -> Callable[[CrashPoint], None]:
    def reached(name: CrashPoint) -> None:
        if name == point:
            raise Died

    return reached


def test_a_backup_that_was_cut_off_is_none(home: Path, tmp_path: Path) -> None:
    with told_of_crash_points(dies_at("after_backup_filled")), pytest.raises(Died):
        back_up(settings_of(home), tmp_path / "another")
    assert not (tmp_path / "another").exists()
    back_up(settings_of(home), tmp_path / "another")


@pytest.mark.parametrize("point", ["after_restore_files", "after_restore_set_aside"])
def test_a_restore_that_was_cut_off_can_be_done_again(point: CrashPoint, home: Path, tmp_path: Path) -> None:
    before = (home / "ci_jobs.db").read_bytes()
    with told_of_crash_points(dies_at(point)), pytest.raises(Died):
        restore(settings_of(home), tmp_path / "backup", force=True)
    if point == "after_restore_files":
        assert (home / "ci_jobs.db").read_bytes() == before
    else:
        assert not (home / "ci_jobs.db").exists()  # whoever looks is told so, and never runs on half
    restore(settings_of(home), tmp_path / "backup", force=True)
    check_database(home / "ci_jobs.db")
    assert [path.read_bytes() for path in home.glob("*.replaced-*")].count(before) >= (
        point == "after_restore_set_aside"
    )


# -- the commands ----------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ci-admin", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return int(str(left.value.code))


def test_the_commands_say_what_they_did(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI_DB_PATH", str(home / "ci_jobs.db"))
    assert run(monkeypatch, "backup", str(tmp_path / "second"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["jobs"] == 1
    assert run(monkeypatch, "restore", str(tmp_path / "second")) == 65
    assert "--force" in capsys.readouterr().err
    assert run(monkeypatch, "restore", str(tmp_path / "second"), "--force") == 0
    assert "Set aside, not deleted" in capsys.readouterr().out


def test_no_restore_while_a_controller_lives(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI_DB_PATH", str(home / "ci_jobs.db"))
    with lock_file(home / "ci_jobs.db.lock") as ours:
        assert ours
        assert run(monkeypatch, "restore", str(tmp_path / "backup"), "--force") == 75
    assert "A controller serves this database" in capsys.readouterr().err
    assert os.listdir(home).count("ci_jobs.db") == 1  # noqa: PTH208
