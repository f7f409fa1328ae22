"""The `ci` command on a terminal: what it writes there, as a person's emulator would get it."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.ci_command import COMMAND


class Screen:
    """A terminal that a command writes to."""

    def __init__(self) -> None:
        self._master, self.slave = os.openpty()

    def read(self) -> str:
        """Return all that was written until the last writer closed."""
        os.close(self.slave)
        data = bytearray()
        while True:
            try:
                chunk = os.read(self._master, 65536)
            except OSError:  # how Linux says that nobody holds the other end
                chunk = b""
            if not chunk:
                os.close(self._master)
                return data.decode()
            data += chunk


def ci_on_screen(*arguments: str, environment: Mapping[str, str], cwd: Path) -> str:
    """Return what the finished command showed, both of its streams on one terminal."""
    screen = Screen()
    with subprocess.Popen(
        [*COMMAND, *arguments], env=environment, cwd=cwd, stdout=screen.slave, stderr=screen.slave
    ):
        return screen.read()
