"""One program that runs for the job: how it is started, and our ends of its pipes."""

# ruff: noqa: PTH123 - pathlib is a tenth of a second of imports for nothing we need

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence

from ci_controller.harness.signals import CHUNK, Signals


class Program:
    """A program with one pipe for its output and one for what our reporter says in it."""

    def __init__(self) -> None:
        self.pid = 0
        self.output, self._output = _pipe()
        self.reports, self.reporter = _pipe()  # the latter's number is the same in the program

    def task(self, token: str) -> dict[str, str]:
        """Return what the reporter finds in its environment, if it is passed its descriptor."""
        return {"_CI_REPORT": f"{self.reporter}:{os.getpid()}:{token}"}

    def start(
        self, command: list[str], environment: dict[str, str], workspace: str, passed: Sequence[int] = ()
    ) -> None:
        """It runs, in a session of its own, with those of our descriptors."""
        process = subprocess.Popen(
            command,
            cwd=workspace,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            pass_fds=passed,
            start_new_session=True,
            preexec_fn=Signals.unblock,  # safe: the only other thread holds no lock
        )
        self.pid = process.pid
        process.returncode = 0  # it is we who reap, not Popen
        # When memory is short, the job goes before the one who reports it. The child itself could not say so:
        # until it is another program it is as closed as we are.
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/oom_score_adj", "w") as file:
            file.write("1000")
        os.close(self._output)
        os.close(self.reporter)

    def close(self) -> None:
        """Our ends are closed."""
        os.close(self.output)
        os.close(self.reports)


def read(descriptor: int) -> bytes | None:
    """Return what is there now: None for nothing yet, empty at the end."""
    try:
        return os.read(descriptor, CHUNK)
    except BlockingIOError:
        return None


def _pipe() -> tuple[int, int]:
    """Return a pipe whose reading end does not block."""
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    return ends
