"""pytest started before there is a run to start it for: the harness's side of it."""

# ruff: noqa: PTH103 - pathlib is a tenth of a second of imports for nothing we need

from __future__ import annotations

import contextlib
import json
import os
import select
from typing import Any

from ci_controller.harness.interpreter import Python
from ci_controller.harness.program import Program

# Sorts before every other: it waits inside it, so all others are read once the tree is there.
_HOOK = "!_ci_ahead.pth"
_FILES = (_HOOK, "_ci_ahead.py", "_ci_paths.pth", "_ci_reporter.py")
# What a run may add to the environment that pytest was started in: nothing reads these but builds.
_HARMLESS = frozenset({"SETUPTOOLS_SCM_PRETEND_VERSION", "PDM_BUILD_SCM_VERSION"})


def pytest_command(python: Python) -> list[str]:
    """Return what is run, before the job's own arguments."""
    return [python.program, "-m", "pytest", "-p", "_ci_reporter", "--color=yes"]


class Ahead:
    """A process that has imported pytest, and nothing else yet, and waits for `go` (`forerunner.py`)."""

    def __init__(self, python: Python, environment: dict[str, str]) -> None:
        self.program = Program()
        self._python = python
        self._environment = environment
        self._gate = -1

    @classmethod
    def start(cls, python: Python, waiting: dict[str, Any]) -> Ahead | None:
        """Return pytest ahead, None where there is none to start."""
        environment = python.environment(waiting["environment"])
        if not python.has_file("pytest/__init__.py") or "PYTHONPATH" in environment:
            return None  # with PYTHONPATH, what it names may come in front of what was imported
        ahead = cls(python, environment)
        with contextlib.suppress(OSError):  # the packages are not ours: then it starts when it is needed
            ahead._start(waiting)
            return ahead
        ahead.remove_files()
        return None

    def _start(self, waiting: dict[str, Any]) -> None:
        os.makedirs(waiting["workspace"], exist_ok=True)
        self._python.add_file("_ci_reporter.py", waiting["reporter"])
        self._python.add_file("_ci_paths.pth", "")  # its name must be there when the names are read
        self._python.add_file("_ci_ahead.py", waiting["forerunner"])
        self._python.add_file(_HOOK, "import _ci_ahead; _ci_ahead.wait()\n")
        gate, self._gate = os.pipe()
        os.set_blocking(self._gate, False)
        environment = {**self._environment, "_CI_AHEAD": f"{gate}:{os.getpid()}"}
        passed = [self.program.reporter, gate]
        self.program.start(pytest_command(self._python), environment, waiting["workspace"], passed)
        os.close(gate)

    def go(self, environment: dict[str, str], header: dict[str, Any], paths: list[str], token: str) -> bool:
        """It goes on as the run's pytest, with that environment and those directories behind all others on
        `sys.path`; False: it cannot, and is to be discarded."""
        added = {name: text for name, text in environment.items() if self._environment.get(name) != text}
        if not added.keys() <= _HARMLESS or not self._environment.keys() <= environment.keys():
            return False
        if not self._waits():
            return False
        self._set_paths(paths)
        return self._send(
            {
                "environment": {**added, **self.program.task(token)},
                "arguments": header["pytest_args"],
                "command": [*pytest_command(self._python), *header["pytest_args"]],
                "directories": [header["workspace"], *paths],
            }
        )

    def _waits(self) -> bool:
        """Tell whether it is there, and has printed nothing: that would stand in the log twice if it began anew."""
        gone, _ = os.waitpid(self.program.pid, os.WNOHANG)
        spoke, _, _ = select.select([self.program.output], [], [], 0)
        return not gone and not spoke

    def _set_paths(self, paths: list[str]) -> None:
        self._python.remove_file("_ci_paths.pth")
        if paths:
            self._python.add_file("_ci_paths.pth", "\n".join(paths) + "\n")

    def _send(self, message: dict[str, Any]) -> bool:
        """All of the message is in the pipe, or nothing is waited for: who does not read must not hold us up."""
        data = json.dumps(message).encode()
        with contextlib.suppress(OSError):
            sent = os.write(self._gate, data)
            os.close(self._gate)
            return sent == len(data)
        return False

    def remove_files(self) -> None:
        """Nothing of ours is left among the packages."""
        for name in _FILES:
            with contextlib.suppress(OSError):
                self._python.remove_file(name)
