"""The checks of `ci-admin doctor` that need no engine, and how findings are shown."""

import contextlib
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ci_admin import doctor
from ci_admin.local_checks import (
    check_controller,
    check_database,
    check_disk,
    check_permissions,
    check_sqlite,
    judge_controller,
)
from ci_common.errors import InvalidRequest
from ci_common.models import ControllerState
from ci_common.settings import StorageSettings, read_settings
from ci_controller.doctor import Check
from ci_persistence.sqlite_repository import SQLiteJobRepository

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
GOOD = Check("disk", "ok", "plenty")
ODD = Check("sqlite", "warning", "an old one", "Take a new one.")
BAD = Check("docker engine", "failed", "no answer", "Start it.")


async def _made(path: Path) -> SQLiteJobRepository:
    repository = SQLiteJobRepository(path)
    await repository.initialize()
    return repository


def test_an_sqlite_with_the_bug_is_a_warning_that_explains() -> None:
    check = check_sqlite("3.40.1", has_bug=True)

    assert check.status == "warning"
    assert "3.51.3" in check.detail
    assert check.fix


def test_a_sound_sqlite_is_ok() -> None:
    assert check_sqlite("3.51.3", has_bug=False) == Check("sqlite", "ok", "SQLite 3.51.3")


def test_the_disk_is_judged_where_the_data_will_be(tmp_path: Path) -> None:
    check = check_disk(StorageSettings(db_path=tmp_path / "not" / "there" / "ci_jobs.db"))

    assert check.name == "disk"
    assert "GiB free" in check.detail


async def test_a_whole_database_is_ok(tmp_path: Path) -> None:
    repository = await _made(tmp_path / "ci_jobs.db")
    try:
        assert (
            await check_database(repository, StorageSettings(db_path=tmp_path / "ci_jobs.db"))
        ).status == "ok"
    finally:
        await repository.close()


async def test_looking_at_a_database_waits_for_no_writer_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    repository = await _made(path)
    before = path.read_bytes()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        try:
            check = await check_database(repository, StorageSettings(db_path=path))
        finally:
            await repository.close()
    assert check.status == "ok"
    assert path.read_bytes() == before


async def test_looking_for_a_database_does_not_make_one(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    repository = SQLiteJobRepository(path)

    check = await check_database(repository, StorageSettings(db_path=path))
    controller = await check_controller(repository, NOW)

    await repository.close()
    assert (check.status, controller.status) == ("warning", "warning")
    assert not path.exists()


async def test_a_file_that_is_no_database_failed(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    repository = SQLiteJobRepository(path)

    check = await check_database(repository, StorageSettings(db_path=path))

    await repository.close()
    assert (check.status, bool(check.fix)) == ("failed", True)


async def test_an_empty_database_is_not_migrated_by_looking_at_it(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    path.touch()
    repository = SQLiteJobRepository(path)

    check = await check_database(repository, StorageSettings(db_path=path))

    await repository.close()
    assert check.status == "warning"
    assert path.stat().st_size == 0


def test_files_that_everybody_can_open_are_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    path.touch()
    path.chmod(0o664)

    check = check_permissions(StorageSettings(db_path=path))

    assert check.status == "warning"
    assert str(path) in (check.fix or "")


def test_files_of_ones_own_are_ok(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db"
    path.touch()
    path.chmod(0o660)

    assert check_permissions(StorageSettings(db_path=path)).status == "ok"


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        (None, "warning", "No controller has run"),
        (ControllerState(1, "host:1", NOW - timedelta(minutes=1)), "warning", "2026-03-01 11:59:00 UTC"),
        (ControllerState(1, "host:1", NOW - timedelta(seconds=1), "no engine"), "warning", "no engine"),
        (ControllerState(7, "host:1", NOW - timedelta(seconds=1)), "ok", "epoch 7"),
    ],
)
def test_a_heartbeat_tells_whether_a_controller_is_alive(
    state: ControllerState | None, status: str, said: str
) -> None:
    check = judge_controller(state, NOW)

    assert check.status == status
    assert said in check.detail


def test_of_several_controllers_it_tells_which_one_leads() -> None:
    state = ControllerState(7, "box:1", NOW)
    assert judge_controller(state, NOW).detail == "box:1 was alive 0 s ago (epoch 7)"
    assert judge_controller(state, NOW, 1).detail == "box:1 was alive 0 s ago (epoch 7); 1 more waits"
    assert judge_controller(state, NOW, 2).detail.endswith("; 2 more wait")


@pytest.mark.parametrize(("checks", "code"), [([GOOD], 0), ([GOOD, ODD], 0), ([GOOD, BAD, ODD], 69)])
def test_only_what_failed_makes_the_command_fail(checks: list[Check], code: int) -> None:
    assert doctor.exit_code(checks) == code


def test_each_check_is_a_line_and_each_fix_stands_below() -> None:
    assert doctor.as_text([GOOD, BAD]).splitlines() == [
        "ok       disk           plenty",
        "failed   docker engine  no answer",
        "                        → Start it.",
    ]


def test_the_json_form_has_stable_keys() -> None:
    document = json.loads(json.dumps(doctor.as_document([BAD])))

    assert document == {
        "ok": False,
        "checks": [
            {"name": "docker engine", "status": "failed", "detail": "no answer", "fix": "Start it."},
        ],
    }


def test_a_wrong_variable_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_ARCHIVE_MAX_ENTRIES", "many")

    with pytest.raises(InvalidRequest, match="CI_ARCHIVE_MAX_ENTRIES"):
        read_settings(StorageSettings, db_path=tmp_path / "ci_jobs.db")
