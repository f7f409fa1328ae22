"""`ci-controller` as a process: settings, refusals, signals; without any engine."""

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from ci_common import __version__
from ci_controller.cli import main
from ci_controller.composition import open_controller
from ci_controller.policy import Policy
from ci_controller.settings import ControllerSettings
from tests.support.eventually import eventually

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "ci_jobs.db"


@pytest.fixture
def start(tmp_path: Path, database: Path) -> Iterator[Start]:
    """Starts controllers whose messages go to files of their own."""
    processes: list[subprocess.Popen[bytes]] = []

    def started(*flags: str) -> subprocess.Popen[bytes]:
        log = tmp_path / f"controller-{len(processes)}.log"
        env = {key: value for key, value in os.environ.items() if not key.startswith("CI_")}
        env |= {"DOCKER_HOST": f"unix://{tmp_path}/no-engine.sock", "CI_DB_PATH": str(database)}
        with log.open("wb") as output:
            command = [str(Path(sys.executable).parent / "ci-controller"), *flags]
            processes.append(subprocess.Popen(command, env=env, stderr=output))
        return processes[-1]

    yield started
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def controller_row(database: Path) -> tuple[int, str, str | None] | None:
    """Return (epoch, holder, note), None before there is one."""
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return None
    try:
        return connection.execute("SELECT epoch, holder, note FROM controller").fetchone()
    except sqlite3.OperationalError:
        return None
    finally:
        connection.close()


def serves(database: Path, process: subprocess.Popen[bytes]) -> bool:
    row = controller_row(database)
    return row is not None and row[1].endswith(f":{process.pid}")


# -- as a process ------------------------------------------------------------------------------------------


def test_without_an_engine_it_stays_and_says_so_and_ends_on_sigterm(start: Start, database: Path) -> None:
    process = start("--interval", "0.1")

    def note() -> bool:
        row = controller_row(database)
        return row is not None and "docker engine does not answer: start it" in (row[2] or "")

    eventually(note, what="the note")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0


def test_an_engine_that_hangs_does_not_keep_it(start: Start, database: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "no-engine.sock"))
        engine.listen(50)  # and never answers
        process = start()
        eventually(lambda: serves(database, process), what="the controller")
        engine.accept()[0].close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, "a call to the engine takes up to a minute"
    assert "leaving as if killed" in (tmp_path / "controller-0.log").read_text()


def test_a_second_one_is_refused_and_a_successor_is_not(start: Start, database: Path, tmp_path: Path) -> None:
    first = start()
    eventually(lambda: serves(database, first), what="the first controller")
    second = start()
    assert second.wait(timeout=20) == 75
    assert "Another controller" in (tmp_path / "controller-1.log").read_text()
    assert first.poll() is None
    first.kill()
    first.wait()
    third = start()
    eventually(lambda: serves(database, third), what="the successor")
    row = controller_row(database)
    assert row is not None
    assert row[0] == 2


def test_a_path_that_cannot_be_used_is_one_sentence(start: Start, tmp_path: Path) -> None:
    process = start("--db-path", str(tmp_path / "missing" / "ci_jobs.db"))
    assert process.wait(timeout=20) == 73
    [line] = (tmp_path / "controller-0.log").read_text().splitlines()
    assert line.startswith("ci-controller: ")
    assert "missing" in line


# -- flags and settings ------------------------------------------------------------------------------------


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, result.output) == (0, f"ci-controller, version {__version__}\n")


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_JOB_MEMORY", "much")
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 64
    assert "CI_JOB_MEMORY" in result.output


def test_help_names_every_flag() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for flag in ("--db-path", "--data-dir", "--interval", "--prefix", "--max-running-jobs", "--log-level"):
        assert flag in text


def test_flags_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_RECONCILE_INTERVAL", "7")
    monkeypatch.setenv("CI_MAX_RUNNING_JOBS", "5")
    settings = ControllerSettings(reconcile_interval=3)
    assert (settings.reconcile_interval, settings.max_running_jobs) == (3, 5)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        ("2GiB", 2 * 1024**3),
        ("512m", 512 * 1024**2),
        ("1.5k", 1536),
        ("100 MB", 100 * 1024**2),
    ],
)
def test_sizes(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("CI_JOB_MEMORY", text)
    assert ControllerSettings().policy.memory_bytes == size


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5h", 5400), ("30m", 1800), ("2d", 172800)])
def test_durations(monkeypatch: pytest.MonkeyPatch, text: str, seconds: int) -> None:
    monkeypatch.setenv("CI_JOB_TIMEOUT", text)
    assert ControllerSettings().policy.job_timeout == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CI_JOB_TIMEOUT", "soon"),
        ("CI_JOB_TIMEOUT", "0"),
        ("CI_LOG_LIMIT", "-1"),
        ("CI_CONTAINER_PREFIX", "no spaces"),
        ("CI_JOB_NETWORK", "host"),
        ("CI_MAX_RUNNING_JOBS", "0"),
    ],
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        ControllerSettings()


def test_defaults_are_those_of_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CI_")]:
        monkeypatch.delenv(name)
    assert ControllerSettings().policy == Policy()


async def test_no_slot_waits_for_what_another_one_does_with_its_files(database: Path) -> None:
    """Every slot may read its archive or seal its log at the same time, however few cores there are."""
    slots = 40  # more than asyncio's own threads on any machine
    meeting = threading.Barrier(slots)
    async with open_controller(ControllerSettings(db_path=database, max_running_jobs=slots)):
        await asyncio.gather(*(asyncio.to_thread(meeting.wait, 10) for _ in range(slots)))


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in ControllerSettings.model_fields.values())
