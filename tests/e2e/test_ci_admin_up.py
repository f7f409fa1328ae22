"""`ci-admin up`: one command in one terminal, `ci submit test` in the next."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ci_controller.labels import INSTANCE
from tests.support.docker_cli import docker
from tests.support.eventually import eventually
from tests.support.installation import FIXTURES

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300), pytest.mark.usefixtures("engine")]

_BIN = Path(sys.executable).parent


@dataclass
class Up:
    """A running `ci-admin up` and the home of the person who started it."""

    home: Path
    port: int
    process: subprocess.Popen[bytes]

    def said(self) -> str:
        return (self.home / "up.log").read_text(errors="replace")

    def wait_ready(self) -> None:
        eventually(
            lambda: "CI is ready at" in self.said() or self.process.poll() is not None, what="`ci-admin up`"
        )
        assert self.process.poll() is None, self.said()

    def children(self) -> dict[str, int]:
        """Return the process ids of both daemons."""
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
        return {
            "controller": next(pid for pid, line in lines.items() if b"ci-controller" in line),
            "server": next(pid for pid, line in lines.items() if b"ci-server" in line),
        }


def _environment(home: Path) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("CI_", "XDG_"))}
    return {**inherited, "HOME": str(home)}


def _start(home: Path) -> Up:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (home / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [str(_BIN / "ci-admin"), "up", "--port", str(port)],
            cwd=home,
            env=_environment(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return Up(home, port, process)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Where a person's installation is; the environments that its jobs built go with it."""
    yield tmp_path
    for database in tmp_path.rglob("*.db"):
        [(instance_id,)] = sqlite3.connect(database).execute("SELECT instance_id FROM installation")
        if built := docker("images", "-q", "--filter", f"label={INSTANCE}={instance_id}").split():
            docker("rmi", "-f", *built)


@contextlib.contextmanager
def started(home: Path) -> Generator[Up]:
    """It is ready; whatever happens, it ends."""
    running = _start(home)
    try:
        running.wait_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
        running.process.wait(timeout=60)


def test_submit_needs_no_more_words_and_it_stops_cleanly_and_remembers(home: Path) -> None:
    with started(home) as up:
        _submits(home)
        key = (home / ".ci" / "config").read_bytes()
        assert _secret(home) not in up.said()
        assert _secret(home).encode() not in _command_lines(), "anybody may read those"
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(timeout=60) == 0, up.said()

    for daemon in ("controller", "server"):
        with started(home) as again:
            assert (home / ".ci" / "config").read_bytes() == key
            _when_it_dies_the_other_is_stopped(again, daemon)


def _submits(home: Path) -> None:
    done = subprocess.run(
        [str(_BIN / "ci"), "submit", "test"],
        cwd=FIXTURES / "passing",
        env=_environment(home),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout


def _when_it_dies_the_other_is_stopped(up: Up, daemon: str) -> None:
    children = up.children()
    os.kill(children[daemon], signal.SIGKILL)
    assert up.process.wait(timeout=60) == 137, up.said()
    assert f"the {daemon} ended (exit code 137)" in up.said()
    assert [pid for pid in children.values() if Path(f"/proc/{pid}").exists()] == []


def _secret(home: Path) -> str:
    """Return the part of the person's key that opens something."""
    return (home / ".ci" / "config").read_text().partition("api_key=")[2].split("_")[2]


def _command_lines() -> bytes:
    lines = b""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            lines += (process / "cmdline").read_bytes()
    return lines
