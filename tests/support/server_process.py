"""The server as operators start it: a process of its own over a site's database."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.server import UNLIMITED, Site, client, eventually

CI_SERVER = (str(Path(sys.executable).with_name("ci-server")),)
PLAIN_UVICORN = (sys.executable, "-m", "uvicorn", "ci_server.app:app")


@dataclass
class Process:
    """A server of its own and what it wrote."""

    popen: subprocess.Popen[bytes]
    url: str
    log: Path

    def terminate(self) -> int:
        """Return the exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(20)

    def kill(self) -> None:
        """It is gone as by `kill -9`."""
        self.popen.kill()
        self.popen.wait(20)

    def memory(self) -> int:
        """Return its resident memory, in bytes."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def sockets(self) -> int:
        """Return how many sockets it holds."""
        descriptors = list(Path(f"/proc/{self.popen.pid}/fd").iterdir())
        return sum(str(one.readlink()).startswith("socket:") for one in descriptors if one.is_symlink())


@contextmanager
def server_process(
    site: Site, *args: str, command: tuple[str, ...] = CI_SERVER, **environment: str
) -> Generator[Process, None, None]:
    """A server process listens at its URL; it is killed if it is still there afterwards."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listener.set_inheritable(True)
    log = site.settings.db_path.with_name(f"server-{listener.getsockname()[1]}.log")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CI_")}
    ours = {"CI_DB_PATH": str(site.settings.db_path), "CI_DATA_DIR": str(site.settings.data_path)}
    unlimited = {f"CI_{name.upper()}": str(value) for name, value in UNLIMITED.items()}
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [*command, "--fd", str(listener.fileno()), *args],
            env={**inherited, **ours, **unlimited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(listener.fileno(),),
        )
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    try:
        yield Process(popen, url, log)
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait(20)


async def answers(process: Process) -> None:
    """The process serves."""

    async def healthy() -> bool:
        assert process.popen.poll() is None, process.log.read_text()
        async with client(process.url) as http:
            try:
                return (await http.get("/health")).status_code == 200
            except httpx.TransportError:
                return False

    await eventually(healthy, seconds=30)
