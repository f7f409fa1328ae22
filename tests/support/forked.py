"""Commands of ours in processes that need no start: forks of one that has imported the command already.

Every command has a process, streams and an exit code of its own. What it does not go through is the interpreter's
start: who judges that, signals, or what is imported starts the command as a person does.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[2]
_MESSAGE_BYTES: Final = 128 * 1024
# By the module whose `main` is the command: what that imports only when it runs.
_IMPORTED_LATER: Final[Mapping[str, Sequence[str]]] = {
    "ci_client.cli": ("ci_client.commands.following", "ci_client.commands.jobs", "ci_client.tree_upload"),
    "ci_admin.cli": ("ci_persistence.factory",),
}


class Forked:
    """A command that runs."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid = int(control.recv(100))
        self._code: int | None = None

    def wait(self, timeout: float) -> int:
        """Return its exit code; it is killed if it does not end in time."""
        if self._code is None:
            self._control.settimeout(timeout)
            try:
                self._code = int(self._control.recv(100))
            except TimeoutError:
                os.kill(self._pid, signal.SIGKILL)
                raise
            finally:
                self._control.settimeout(None)
        return self._code


class ForkServer:
    """A process that has imported a command and makes a copy of itself for every one that is to run.

    It ends when the control socket is closed, and so with the process that started it.
    """

    def __init__(self, command: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._alone = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forked", command, str(theirs.fileno())],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )

    def close(self) -> None:
        """Its process is gone."""
        self._control.close()
        self._process.wait(30)

    def run(
        self, *arguments: str, environment: Mapping[str, str], cwd: Path, timeout: float = 30
    ) -> subprocess.CompletedProcess[bytes]:
        """Return the finished command with what it wrote into pipes."""
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        with (
            ThreadPoolExecutor(2) as readers,
            self.running(arguments, environment, cwd, (to_out, to_err)) as process,
        ):
            written = [readers.submit(_read, descriptor) for descriptor in (out, err)]
            code = process.wait(timeout)
            return subprocess.CompletedProcess(arguments, code, *(one.result() for one in written))

    @contextmanager
    def running(
        self, arguments: tuple[str, ...], environment: Mapping[str, str], cwd: Path, streams: tuple[int, int]
    ) -> Generator[Forked]:
        """Give the command that writes to those two descriptors, which are closed here; it has ended afterwards."""
        request = {"arguments": arguments, "environment": dict(environment), "cwd": str(cwd)}
        with self._alone:
            socket.send_fds(self._control, [json.dumps(request).encode()], list(streams))
            for stream in streams:
                os.close(stream)
            process = Forked(self._control)
            try:
                yield process
            finally:
                process.wait(30)


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


@cache
def fork_server(command: str) -> ForkServer:
    """Return the one of this process, for a module whose `main` is the command."""
    server = ForkServer(command)
    atexit.register(server.close)
    return server


# -- the other process -------------------------------------------------------------------------------------


def _serve(control: socket.socket) -> None:
    """Return in each of the processes that are to be a command; the one that makes them ends here."""
    while True:
        request, streams, *_ = socket.recv_fds(control, _MESSAGE_BYTES, 2)
        if not request:
            sys.exit()
        pid = os.fork()
        if not pid:
            control.close()
            _become(json.loads(request), streams)
            return
        for stream in streams:
            os.close(stream)
        control.send(b"%d" % pid)
        control.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """This process has the streams, arguments, environment and directory of the command."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    # Anew, as Python does at its start: whether they are a terminal decides how they are buffered.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]


def _main(command: str, control: int) -> None:
    module = import_module(command)
    for later in _IMPORTED_LATER[command]:
        import_module(later)
    _serve(socket.socket(fileno=control))
    module.main()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
