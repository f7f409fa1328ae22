"""The harness's reporter inside pytest: says over an inherited descriptor what an exit code alone does not prove.

Loaded by `-p` on pytest's own command line, so neither nested sessions nor pytest in subprocesses have it. It
reports in the process that the harness started only; that process and the workers of pytest-xdist, which load it
too, dump the stacks of their threads when the harness asks. Standard library only, Python >= 3.8.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
from typing import Any

import pytest

_WIDTH = 120  # of pytest's own output; COLUMNS would change what the tests' own programs print
_DUMP_SIGNAL = 62  # `stacks.DUMP_SIGNAL`
_NAMED = 3  # of tests that run at the same time
_DISK_LIMITS = r"\[Errno (?:27|28|122)\]"  # EFBIG, ENOSPC, EDQUOT


def _dump_stacks_when_asked() -> None:
    """All threads' stacks go to where standard error went before pytest captured it, whatever the threads do."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed, or a platform without it
        faulthandler.register(_DUMP_SIGNAL, file=os.dup(2), all_threads=True)


def _take_task() -> tuple[int, str] | None:
    """Return the descriptor to report to and the token to report with, None where this is not the process meant."""
    descriptor, _, rest = os.environ.pop("_CI_REPORT", "").partition(":")
    parent, _, token = rest.partition(":")
    if not token or os.getppid() != int(parent):
        return None
    os.set_inheritable(int(descriptor), False)  # the tests' own subprocesses shall not have it
    return int(descriptor), token


class Reporter:
    """Writes one JSON line per fact: what goes on, and how the session ended."""

    def __init__(self, descriptor: int, token: str) -> None:
        self._descriptor = descriptor
        self._token = token
        self._process = os.getpid()
        self._running: dict[str, None] = {}  # in the order of their start; many with pytest-xdist
        self._uncollected: dict[str, str] = {}
        self._disk = ""
        self._cause = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        self._report("while the tests were collected")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._uncollected[report.nodeid] = _last_error(report.longrepr)

    def pytest_collection_finish(self) -> None:
        self._report("before the first test")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running[nodeid] = None
        self._report(_ran(list(self._running)))

    def pytest_runtest_logreport(self, report: Any) -> None:
        message = str(getattr(getattr(report.longrepr, "reprcrash", None), "message", ""))
        if report.failed and not self._disk and re.search(_DISK_LIMITS, message):
            self._disk = f"{report.nodeid} met a limit of the disk: {_line(message)}"

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.pop(nodeid, None)
        self._report(_ran(list(self._running)) if self._running else f"between tests, after {nodeid[:1000]}")

    def pytest_keyboard_interrupt(self, excinfo: Any) -> None:
        self._cause = _line(f"{excinfo.typename}: {excinfo.value}".rstrip(": "))

    def pytest_internalerror(self, excinfo: Any) -> None:
        self._cause = _line(f"{excinfo.typename}: {excinfo.value}".rstrip(": "))

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: Any) -> Any:
        self._report("while the session was ending")
        yield  # first every other plugin, which may still change the exit status
        code = int(session.exitstatus)
        summary = self._summary(session.config, code)
        errors = len(self._uncollected)
        self._report("after the session", finished=code, collection_errors=errors, summary=summary)

    def _summary(self, config: Any, code: int) -> str:
        parts = [_counts(config, code), self._disk, _collection(self._uncollected)]
        if code == 5 and not parts[0]:
            parts[0] = "no tests were found"
        if not self._uncollected:  # else pytest says no more than that
            parts.append(self._cause)
        return "; ".join(filter(None, parts))

    def _report(self, doing: str, **fact: Any) -> None:
        if os.getpid() != self._process:  # a child that a test forked
            return
        line = json.dumps({"token": self._token, "doing": doing, **fact}).encode() + b"\n"
        with contextlib.suppress(OSError):  # a test closed it: then the session counts as not finished
            os.write(self._descriptor, line)


def _ran(names: list[str]) -> str:
    """Return "while a, b and 2 more ran"."""
    shown = [name[:1000] for name in names[:_NAMED]]
    if len(names) > _NAMED:
        shown.append(f"{len(names) - _NAMED} more")
    return "while " + " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]])) + " ran"


def _collection(errors: dict[str, str]) -> str:
    """Return "a.py could not be collected: SyntaxError: …, nor could 2 more"."""
    if not errors:
        return ""
    name, why = next(iter(errors.items()))
    more = f", nor could {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{name[:1000] or 'the root'} could not be collected" + (f": {why}" if why else "") + more


def _last_error(longrepr: Any) -> str:
    """Return the exception of a report: the last line that pytest marks with an E, else the last at all."""
    lines = str(longrepr).strip().split("\n")
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return _line((marked or lines)[-1])


def _line(text: str) -> str:
    return text.strip().partition("\n")[0][:300].rstrip(".")


def _counts(config: Any, code: int) -> str:
    """Return counts as in pytest's last line: "2 failed, 10 passed"."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return ""
    names = ["failed", "error", "passed", "skipped", "deselected", "xfailed", "xpassed"]
    names += ["warnings"] if code == 6 else []
    counts = ((len(terminal.stats.get(name, ())), name) for name in names)
    return ", ".join(f"{count} {name}" for count, name in counts if count)


_dump_stacks_when_asked()
_task = _take_task()


@pytest.hookimpl(trylast=True)  # after the terminal's own
def pytest_configure(config: Any) -> None:
    if _task is None or hasattr(config, "workerinput"):
        return
    if config.pluginmanager.has_plugin("terminalreporter"):
        config.get_terminal_writer().fullwidth = _WIDTH
    config.pluginmanager.register(Reporter(*_task))
