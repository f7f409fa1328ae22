"""`ci-admin up`: one command in one terminal, `ci submit test` in the next."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.installation import FIXTURES

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

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
def up(tmp_path: Path) -> Iterator[Up]:
    running = _start(tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.terminate()
    running.process.wait(timeout=60)


def test_after_the_first_run_submit_needs_no_more_words(up: Up, tmp_path: Path) -> None:
    up.wait_ready()

    done = subprocess.run(
        [str(_BIN / "ci"), "submit", "test"],
        cwd=FIXTURES / "passing",
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    assert _secret(tmp_path) not in up.said()
    assert _secret(tmp_path).encode() not in _command_lines(), "anybody may read those"


def _secret(home: Path) -> str:
    """Return the part of the person's key that opens something."""
    return (home / ".ci" / "config").read_text().partition("api_key=")[2].split("_")[2]


def _command_lines() -> bytes:
    lines = b""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            lines += (process / "cmdline").read_bytes()
    return lines


def test_it_stops_cleanly_and_remembers(up: Up, tmp_path: Path) -> None:
    up.wait_ready()
    key = (tmp_path / ".ci" / "config").read_bytes()

    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=60) == 0, up.said()

    again = _start(tmp_path)
    try:
        again.wait_ready()
        assert (tmp_path / ".ci" / "config").read_bytes() == key
    finally:
        again.process.terminate()
        assert again.process.wait(timeout=60) == 0, again.said()


@pytest.mark.parametrize("daemon", ["controller", "server"])
def test_when_one_daemon_dies_the_other_is_stopped(up: Up, daemon: str) -> None:
    up.wait_ready()
    children = up.children()

    os.kill(children[daemon], signal.SIGKILL)

    assert up.process.wait(timeout=60) == 137, up.said()
    assert f"the {daemon} ended (exit code 137)" in up.said()
    assert [pid for pid in children.values() if Path(f"/proc/{pid}").exists()] == []
