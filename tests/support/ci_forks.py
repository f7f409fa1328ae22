"""The `ci` command as `tests.support.ci_command` and `screen` have it, but in a process that needs no start."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.forked import fork_server
from tests.support.screen import Screen

_COMMAND = "ci_client.cli"


def run_forked_ci(
    *arguments: str, environment: Mapping[str, str], cwd: Path
) -> subprocess.CompletedProcess[bytes]:
    """Return the finished command with what it wrote into pipes."""
    return fork_server(_COMMAND).run(*arguments, environment=environment, cwd=cwd)


def forked_ci_on_screen(*arguments: str, environment: Mapping[str, str], cwd: Path) -> str:
    """Return what the finished command showed, both of its streams on one terminal."""
    screen = Screen()
    streams = (os.dup(screen.slave), os.dup(screen.slave))
    with fork_server(_COMMAND).running(arguments, environment, cwd, streams):
        return screen.read()
