"""The first process of a job's container: takes the tree, runs install and pytest, frames what they print.

It never trusts what it runs: it owns their output pipe, cannot be opened or traced by them, listens to signals from
outside the container only, and says the last word itself. Standard library only, Python >= 3.8: it comes, with the
modules beside it, over standard input into whatever image there is (`ci_controller.feed`). Also runs as an ordinary
process.
"""

# ruff: noqa: PTH110, PTH118, PTH123 - pathlib is a tenth of a second of imports for nothing we need

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import time
import traceback
from collections.abc import Generator
from typing import Any, NoReturn

from ci_controller.harness.ahead import Ahead, pytest_command
from ci_controller.harness.complaints import of_pytest, plain_text
from ci_controller.harness.ending import CRASHED, EXIT_CODES, HARNESS_FAILED, Ended
from ci_controller.harness.installer import Installer, removed
from ci_controller.harness.intake import HEADER, WAITING, Feed, FeedEnded, Tree, unpack
from ci_controller.harness.interpreter import Python
from ci_controller.harness.leftovers import empty
from ci_controller.harness.network import is_isolated
from ci_controller.harness.output import Log
from ci_controller.harness.runner import Runner
from ci_controller.harness.signals import Signals

ISOLATION_SECONDS = 60
USAGE_ERROR = 4  # pytest's one code that comes before any session
STARTING = "while pytest was starting"
UMASK = 0o022


class Run:
    """Install, then pytest, as the header says."""

    def __init__(
        self, header: dict[str, Any], log: Log, runner: Runner, python: Python, ahead: Ahead | None
    ) -> None:
        self._header = header
        self._log = log
        self._runner = runner
        self._python = python
        self._ahead = ahead
        self._environment = python.environment(header["environment"])
        self._installer = Installer(python, self._environment, log, runner)
        self._steps: list[dict[str, Any]] = header["steps"]
        self._has_begun = False

    def begin(self) -> None:
        """It is said that from here on it is the user's own code: building a dependency is that, too."""
        if not self._has_begun:
            self._log.event("begun")
            self._has_begun = True

    @contextlib.contextmanager
    def charged(self) -> Generator[None, None, None]:
        """What fails meanwhile is the job's where packages of its own have run, unless it is for the feed."""
        try:
            yield
        except FeedEnded:
            raise
        except BaseException:
            if self._ahead is not None:
                self.begin()
            raise

    def build(self, feed: Feed) -> None:
        """What the tests need stands in the container, with nothing of the project's, and was kept by whoever feeds
        us; raises Ended."""
        unpack(Tree(feed), self._header["workspace"])
        self.begin()
        self._discard_ahead()
        with self._installer.for_an_image():
            self._installer.install(self._steps)
            if not self._header["project_steps"]:
                self._installer.ensure_pytest()
            self._steps = []
            removed(lambda: empty(self._header["workspace"]))
        self._log.event("prepared")
        with self._runner.paused():
            feed.wait()

    def install(self) -> None:
        """Everything the tests need is installed; raises Ended."""
        if self._header["kept_from"]:
            self._log.say(f"Using the environment kept from {self._header['kept_from']}")
        steps = [*self._steps, *self._header["project_steps"]]
        if steps:
            self._discard_ahead()
        if self._ahead is None:
            self._add_files()
            with self._installer.for_the_group():
                self._installer.install(steps)
                self._installer.ensure_pytest()
        if self._header["isolate"]:
            self._isolate()

    def _add_files(self) -> None:
        self._python.add_file("_ci_reporter.py", self._header["reporter"])
        if self._paths():
            self._python.add_file("_ci_paths.pth", "\n".join(self._paths()) + "\n")

    def _paths(self) -> list[str]:
        return [os.path.join(self._header["workspace"], path) for path in self._header["paths"]]

    def _discard_ahead(self) -> None:
        """No pytest waits any more, and nothing of it is left."""
        if self._ahead is not None:
            self._runner.discard(self._ahead.program)
            self._ahead.remove_files()
            self._ahead = None

    def _isolate(self) -> None:
        """The container has no network any more: whoever runs us takes it away once told that all is installed."""
        self._log.event("installed")
        if not self._runner.wait_until(is_isolated, ISOLATION_SECONDS):
            raise Ended(
                "not_isolated", f"The network was still there {ISOLATION_SECONDS} s after installing."
            )

    def test(self) -> NoReturn:
        """pytest has run; raises Ended with what became of it."""
        self._log.event("phase", name="test", title="pytest")
        self._log.say("Running " + shlex.join(["python", "-m", "pytest", *self._header["pytest_args"]]))
        code = self._run_pytest()
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

    def _run_pytest(self) -> int:
        """pytest has ended, the one ahead where it could be used; returns its exit code."""
        self._runner.obey_stop()
        token = self._runner.reports.token
        if self._ahead is not None:
            if self._ahead.go(self._environment, self._header, self._paths(), token):
                return self._runner.follow(self._ahead.program, STARTING)
            self._discard_ahead()
            self._add_files()
        command = [*pytest_command(self._python), *self._header["pytest_args"]]
        return self._runner.run(command, self._environment, STARTING, reports=True)

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
    feed = Feed(signals)
    waiting = feed.document(b"W", WAITING)
    waiting["workspace"] = open_place(waiting["workspace"])
    python = Python.of_image()
    ahead = Ahead.start(python, waiting) if waiting["ahead"] else None
    feed.wait()
    started = time.monotonic()
    header = {**waiting, **feed.document(b"H", HEADER)}
    log.limit = header["log_limit"]
    job = Run(header, log, Runner(header, log, signals, started), python, ahead)
    with job.charged():
        if header["build"]:
            job.build(feed)
        unpack(Tree(feed), header["workspace"])
        feed.expect(b"G")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    job.begin()
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
