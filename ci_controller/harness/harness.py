"""The first process of a job's container: takes the tree, runs install and pytest, frames what they print.

It never trusts what it runs: it owns their output pipe, cannot be opened or traced by them, listens to signals from
outside the container only, and says the last word itself. Standard library only, Python >= 3.8: it comes, with the
modules beside it, over standard input into whatever image there is (`ci_controller.feed`). Also runs as an ordinary
process.
"""

# ruff: noqa: PTH110, PTH118, PTH120, PTH123 - pathlib is a tenth of a second of imports for nothing we need

from __future__ import annotations

import ctypes
import importlib.machinery
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
from typing import Any, NoReturn

from ci_controller.harness.complaints import of_installer, of_pytest, plain_text
from ci_controller.harness.ending import CRASHED, EXIT_CODES, HARNESS_FAILED, Ended
from ci_controller.harness.intake import Feed, Tree, unpack
from ci_controller.harness.network import is_isolated
from ci_controller.harness.output import Log
from ci_controller.harness.runner import Runner
from ci_controller.harness.signals import Signals

ISOLATION_SECONDS = 60
USAGE_ERROR = 4  # pytest's one code that comes before any session
STARTING = "while pytest was starting"
UMASK = 0o022
# What is installed: another user of the group, as another container has, can install over it.
SHARED_UMASK = 0o002


class Python:
    """The environment that dependencies go into and pytest runs from: the image's own, or a fresh one over it."""

    def __init__(self, program: str, packages: str) -> None:
        self.program = program
        self.packages = packages

    @classmethod
    def of_image(cls, home: str) -> Python:
        """Return the interpreter that runs us, if its packages can be added to; else a new environment over it."""
        packages = sysconfig.get_paths()["purelib"]
        if os.access(packages, os.W_OK):
            return cls(sys.executable, packages)
        place = os.path.join(home, ".ci-venv")
        subprocess.run(
            [sys.executable, "-I", "-m", "venv", "--system-site-packages", place],
            check=True,
            cwd="/",  # nothing of the tree's may be imported here: it is before `begun`, and on our own stream
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=Signals.unblock,
        )
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return cls(os.path.join(place, "bin", "python"), os.path.join(place, "lib", version, "site-packages"))

    def add_file(self, name: str, text: str) -> None:
        """A file of ours stands among the packages."""
        with open(os.path.join(self.packages, name), "w", encoding="utf-8") as file:
            file.write(text)


class Run:
    """Install, then pytest, as the header says."""

    def __init__(self, header: dict[str, Any], log: Log, runner: Runner) -> None:
        self._header = header
        self._log = log
        self._runner = runner
        home = os.environ.get("HOME", "")
        home = home if os.access(home, os.W_OK) else "/tmp"  # noqa: S108 - the container's own
        self._python = Python.of_image(home)
        self._environment = {**os.environ, "HOME": home, **header["environment"]}
        bin_directory = os.path.dirname(self._python.program)
        self._environment["PATH"] = bin_directory + os.pathsep + os.environ.get("PATH", os.defpath)
        if os.path.exists(os.path.join(os.path.dirname(bin_directory), "pyvenv.cfg")):
            self._environment["VIRTUAL_ENV"] = os.path.dirname(bin_directory)  # where `uv sync --active` goes
        self._uv = shutil.which("uv", path=self._environment["PATH"])

    def install(self) -> None:
        """Everything the tests need is installed; raises Ended."""
        os.umask(SHARED_UMASK)
        self._install_all()
        os.umask(UMASK)
        if self._header.get("isolate"):
            self._isolate()

    def _install_all(self) -> None:
        paths: list[str] = [os.path.join(self._header["workspace"], path) for path in self._header["paths"]]
        self._python.add_file("_ci_reporter.py", self._header["reporter"])
        if paths:
            self._python.add_file("_ci_paths.pth", "\n".join(paths) + "\n")
        for step in self._header["steps"]:
            self._install(step)
        if not self._has_pytest():
            step = {"title": "pytest", "uv": ["pip", "install", "pytest"], "pip": ["install", "pytest"]}
            self._install(step, ", as nothing in the project brings it")

    def _isolate(self) -> None:
        """The container has no network any more: whoever runs us takes it away once told that all is installed."""
        self._log.event("installed")
        if not self._runner.wait_until(is_isolated, ISOLATION_SECONDS):
            raise Ended(
                "not_isolated", f"The network was still there {ISOLATION_SECONDS} s after installing."
            )

    def _install(self, step: dict[str, Any], because: str = "") -> None:
        tool = "uv" if self._uv else "pip"
        self._log.event("phase", name="install", title=step["title"])
        self._log.say(f"Installing {step['title']} with {tool}{because}")
        doing = f"while installing {step['title']}"
        code = self._runner.run(self._install_command(step), self._environment, doing)
        if code == 0:
            return
        if code == -signal.SIGKILL and self._runner.memory.kills():
            raise Ended("oom", self._runner.memory.sentence("The installer was", doing))
        raise Ended("install_failed", self._why_install_failed(step, tool, code), exit_code=code)

    def _install_command(self, step: dict[str, Any]) -> list[str]:
        if not self._uv:
            return [self._python.program, "-m", "pip", *step["pip"]]
        if step["uv"][:2] == ["pip", "install"]:
            return [self._uv, "pip", "install", "--python", self._python.program, *step["uv"][2:]]
        return [self._uv, *step["uv"]]

    def _why_install_failed(self, step: dict[str, Any], tool: str, code: int) -> str:
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

    def test(self) -> NoReturn:
        """pytest has run; raises Ended with what became of it."""
        arguments: list[str] = self._header["pytest_args"]
        self._log.event("phase", name="test", title="pytest")
        self._log.say("Running " + shlex.join(["python", "-m", "pytest", *arguments]))
        own = [self._python.program, "-m", "pytest", "-p", "_ci_reporter", "--color=yes"]
        code = self._runner.run([*own, *arguments], self._environment, STARTING, reports=True)
        reports, memory = self._runner.reports, self._runner.memory
        if code == -signal.SIGKILL and memory.kills():
            raise Ended("oom", memory.sentence("pytest was", reports.doing), signal=int(signal.SIGKILL))
        raise Ended(
            "tests_ran",
            self._message(code),
            exit_code=None if code < 0 else code,
            signal=-code if code < 0 else None,
            session_finished=reports.finished == code,
            collection_errors=reports.collection_errors,
        )

    def _message(self, code: int) -> str | None:
        reports = self._runner.reports
        if reports.finished is not None and reports.finished == code:
            message = reports.summary + "." if reports.summary else ""
        elif code < 0:
            message = f"pytest was killed by signal {-code} ({_signal_name(-code)}) {reports.doing}."
        elif reports.finished is not None:
            message = f"pytest left with {code} although its session had finished with {reports.finished}."
        elif code == USAGE_ERROR:
            message = of_pytest(plain_text(self._log.tail())).rstrip(".") + "."
        else:
            message = f"pytest left with {code} before its session was finished, {reports.doing}."
            if reports.doing == STARTING:
                message += f" Its last line: {of_pytest(plain_text(self._log.tail()))}"
        if self._runner.memory.kills():
            message += " " + self._runner.memory.sentence("A process that pytest started was", "")
        return message.strip() or None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time"


def open_place(workspace: str) -> str:
    """Return the workspace, or another directory where the image has closed it to the user that we are."""
    if os.access(workspace, os.W_OK) or not os.path.exists(workspace):
        return workspace
    return "/tmp/workspace"  # noqa: S108 - the container's own


def run(log: Log, signals: Signals) -> NoReturn:
    """Everything, in its order; always ends by raising Ended."""
    started = time.monotonic()
    feed = Feed(signals)
    header = json.loads(feed.expect(b"H"))
    header["workspace"] = open_place(header["workspace"])
    unpack(Tree(feed), header["workspace"])
    feed.expect(b"G")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    log.limit = header["log_limit"]
    job = Run(header, log, Runner(header, log, signals, started))
    log.event("begun")  # from here on it is the user's own code: building a dependency is that, too
    job.install()
    job.test()


def exit_code(end: Ended) -> int:
    """Return what the container ends with: 0 only for a success, pytest's own where it has a meaning."""
    if end.outcome != "tests_ran":
        return EXIT_CODES[end.outcome]
    code: int | None = end.trailer["exit_code"]
    if code == 0:
        return 0 if end.trailer["session_finished"] else CRASHED
    return code if code is not None and 1 <= code <= 6 else CRASHED


def main() -> NoReturn:
    """The process has ended, its last word said."""
    os.umask(UMASK)
    # From here on nobody of our own user can trace us or open our descriptors under /proc.
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    log = Log()
    try:
        run(log, Signals())
    except Ended as end:
        log.trailer(end.outcome, end.message, end.trailer)
        os._exit(exit_code(end))
    except BaseException:  # noqa: BLE001 - the traceback becomes text of the log, the missing trailer says the rest
        traceback.print_exc()
        os._exit(HARNESS_FAILED)
