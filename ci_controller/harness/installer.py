"""Carrying out the steps of an install plan."""

# ruff: noqa: PTH103, PTH118 - pathlib is a tenth of a second of imports for nothing we need

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import shutil
import signal
from collections.abc import Callable, Generator
from typing import Any

from ci_controller.harness.complaints import of_installer, plain_text
from ci_controller.harness.ending import Ended
from ci_controller.harness.interpreter import Python
from ci_controller.harness.leftovers import remove
from ci_controller.harness.output import Log
from ci_controller.harness.runner import Runner

_PYTEST = {"title": "pytest", "uv": ["pip", "install", "pytest"], "pip": ["install", "pytest"]}
_SHARED_UMASK = 0o002
# Whatever installers keep beside the packages they install.
_CACHES = ("TMPDIR", "XDG_CACHE_HOME", "UV_CACHE_DIR", "PIP_CACHE_DIR")


def removed(remove_it: Callable[[], None]) -> None:
    """What an installation left was removed; raises Ended, whoever left it made it so."""
    try:
        remove_it()
    except (OSError, RecursionError) as error:
        raise Ended("install_failed", f"What the installation left cannot be removed: {error}.") from error


class Installer:
    """Installs into one Python, with uv where the image has it, else with pip."""

    def __init__(self, python: Python, environment: dict[str, str], log: Log, runner: Runner) -> None:
        self._python = python
        self._environment = environment
        self._log = log
        self._runner = runner
        self._uv = shutil.which("uv", path=environment["PATH"])

    def install(self, steps: list[dict[str, Any]]) -> None:
        """Every step was carried out; raises Ended."""
        for step in steps:
            self._install(step)

    def ensure_pytest(self) -> None:
        """There is a pytest; raises Ended."""
        if not self._has_pytest():
            self._install(_PYTEST, ", as nothing in the project brings it")

    @contextlib.contextmanager
    def for_an_image(self) -> Generator[None, None, None]:
        """What is installed meanwhile is fit for an image: compiled, for the whole group, with no cache beside it."""
        place = os.path.join(self._python.home, ".ci-build")
        removed(lambda: remove(place))
        before = self._environment
        caches = {name: os.path.join(place, name) for name in _CACHES}
        for directory in caches.values():
            os.makedirs(directory)
        self._environment = {**before, **caches, "UV_COMPILE_BYTECODE": "1"}
        with self.for_the_group():
            yield
        self._environment = before
        removed(lambda: remove(place))

    @contextlib.contextmanager
    def for_the_group(self) -> Generator[None, None, None]:
        """What is installed meanwhile can be installed over by another user of the group, as another container has."""
        umask = os.umask(_SHARED_UMASK)
        yield
        os.umask(umask)

    def _install(self, step: dict[str, Any], because: str = "") -> None:
        tool = "uv" if self._uv else "pip"
        self._log.event("phase", name="install", title=step["title"])
        self._log.say(f"Installing {step['title']} with {tool}{because}")
        doing = f"while installing {step['title']}"
        code = self._runner.run(self._command(step), self._environment, doing)
        if code == 0:
            return
        if code == -signal.SIGKILL and self._runner.memory.kills():
            raise Ended("oom", self._runner.memory.sentence("The installer was", doing))
        raise Ended("install_failed", self._why(step, tool, code), exit_code=code)

    def _command(self, step: dict[str, Any]) -> list[str]:
        if not self._uv:
            return [self._python.program, "-m", "pip", *step["pip"]]
        if step["uv"][:2] == ["pip", "install"]:
            return [self._uv, "pip", "install", "--python", self._python.program, *step["uv"][2:]]
        return [self._uv, *step["uv"]]

    def _why(self, step: dict[str, Any], tool: str, code: int) -> str:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        complaint = of_installer(plain_text(self._log.tail())).rstrip(".")
        note = " A process was killed for memory meanwhile." if self._runner.memory.kills() else ""
        return f"Installing {step['title']} failed: {complaint} ({tool} {how}).{note}"

    def _has_pytest(self) -> bool:
        if importlib.machinery.PathFinder.find_spec("pytest", [self._python.packages]) is not None:
            return True
        question = "import importlib.util as u, sys; sys.exit(u.find_spec('pytest') is None)"
        command = [self._python.program, "-c", question]
        return self._runner.run(command, self._environment, "while looking for pytest") == 0
