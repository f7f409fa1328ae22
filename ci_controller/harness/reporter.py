"""The harness's reporter inside pytest: says over an inherited descriptor what an exit code alone does not prove.

Loaded by `-p` on pytest's own command line, so neither nested sessions nor pytest in subprocesses have it, and
active only in the process that the harness started. Standard library only, Python >= 3.8.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import pytest

_WIDTH = 120  # of pytest's own output; COLUMNS would change what the tests' own programs print


def _take_descriptor() -> int | None:
    """Return the descriptor to report to, None where this is not the process it was given to."""
    descriptor, _, parent = os.environ.pop("_CI_REPORT", "").partition(":")
    if not parent or os.getppid() != int(parent):
        return None
    os.set_inheritable(int(descriptor), False)  # the tests' own subprocesses shall not have it
    return int(descriptor)


class Reporter:
    """Writes one JSON line per fact: each test that starts, and the session's end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._process = os.getpid()
        self._collection_errors = 0

    def pytest_collectreport(self, report: Any) -> None:
        self._collection_errors += bool(report.failed)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._report({"running": nodeid[:1000]})

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: Any) -> Any:
        yield  # first every other plugin, which may still change the exit status
        self._report(
            {
                "finished": int(session.exitstatus),
                "collection_errors": self._collection_errors,
                "summary": _summary(session.config),
            }
        )

    def _report(self, fact: dict[str, Any]) -> None:
        if os.getpid() != self._process:  # a child that a test forked
            return
        with contextlib.suppress(OSError):  # a test closed it: then the session counts as not finished
            os.write(self._descriptor, json.dumps(fact).encode() + b"\n")


def _summary(config: Any) -> str:
    """Return counts as in pytest's last line: "2 failed, 10 passed"."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return ""
    names = ("failed", "error", "passed", "skipped", "xfailed", "xpassed")
    counts = ((len(terminal.stats.get(name, ())), name) for name in names)
    return ", ".join(f"{count} {name}" for count, name in counts if count)


_descriptor = _take_descriptor()


@pytest.hookimpl(trylast=True)  # after the terminal's own
def pytest_configure(config: Any) -> None:
    if _descriptor is None or hasattr(config, "workerinput"):
        return
    if config.pluginmanager.has_plugin("terminalreporter"):
        config.get_terminal_writer().fullwidth = _WIDTH
    config.pluginmanager.register(Reporter(_descriptor))
