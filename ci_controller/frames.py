"""The frames in which the harness writes to its standard output: decoding, and what they mean.

One JSON line each, ASCII, under 16 KiB (Docker's json-file driver cuts there and destroys bytes that are not
UTF-8), numbered from 1. See docs/architecture.md for the format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How the harness says it ended."""

    TESTS_RAN = "tests_ran"  # pytest ended by itself; exit_code or signal says how
    INSTALL_FAILED = "install_failed"
    TIMEOUT = "timeout"
    IDLE_TIMEOUT = "idle_timeout"
    LOG_LIMIT = "log_limit"
    STOPPED = "stopped"  # we were told to stop (SIGINT to the harness) before pytest had ended by itself
    OOM = "oom"  # pytest itself, or the installer, was killed for memory
    NOT_STARTED = "not_started"  # the feed broke off before *go*: nothing of the user's ran
    BAD_ARCHIVE = "bad_archive"  # the tree could not be unpacked, or holds nothing that can be tested


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """Bytes a person sees, exactly as they were written."""

    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EventFrame:
    """Something that happened: `phase` (data.name), `begun` (the user's own code is about to run)."""

    number: int
    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrailerFrame:
    """The harness's last word."""

    number: int
    outcome: Outcome
    log_bytes: int  # of all output frames before it
    log_sha256: str
    exit_code: int | None = None  # pytest's own, or the installer's
    signal: int | None = None  # that killed pytest
    session_finished: bool = False  # pytest said so itself, through the reporting plugin
    collection_errors: int = 0
    message: str | None = None  # one sentence of evidence


@dataclass(frozen=True, slots=True)
class StrayOutput:
    """A line that is not a frame (a dying interpreter, a foreign image): becomes text of the log."""

    data: bytes


Frame = OutputFrame | EventFrame | TrailerFrame | StrayOutput
