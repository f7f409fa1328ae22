"""How a run can end: the exit codes of the harness, and the exception that carries an outcome to its last word."""

from __future__ import annotations

from typing import Any

# Exit codes where the tests gave no verdict: 100-119 are the harness's own.
EXIT_CODES = {
    "not_started": 100,
    "install_failed": 101,
    "timeout": 102,
    "idle_timeout": 103,
    "log_limit": 104,
    "stopped": 105,
    "oom": 106,
    "bad_archive": 107,
    "not_isolated": 108,
}
CRASHED = 1
HARNESS_FAILED = 109


class Ended(Exception):
    """The run is over, with this outcome; everything that is to be said goes into the trailer."""

    def __init__(self, outcome: str, message: str | None = None, **trailer: Any) -> None:
        super().__init__(outcome, message)
        self.outcome = outcome
        self.message = message
        self.trailer = trailer


def amount(size: int) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.4g} {unit}"
    return f"{size} bytes"


def duration(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 120 and seconds % 60 == 0 else f"{seconds:g} s"
