"""The frames in which the harness writes to its standard output: decoding, and what they mean.

One JSON line each, ASCII, under 16 KiB (Docker's json-file driver cuts there and destroys bytes that are not
UTF-8), numbered from 1. See docs/architecture.md for the format.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar, cast

_T = TypeVar("_T")

MAX_LINE: Final = 16 * 1024  # of a frame, and of a piece of stray output


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
    NOT_ISOLATED = "not_isolated"  # the network was to be taken away before the tests, and was not


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """Bytes a person sees, exactly as they were written."""

    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EventFrame:
    """Something that happened: `phase` (data.name), `begun` (the user's own code is about to run), `prepared`
    (an environment stands and nothing else: the harness waits until it was kept), `installed` (the harness waits for
    its network to be taken away)."""

    number: int
    type: str
    data: Mapping[str, Any]
    at: int | None = None  # milliseconds since the epoch


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
    at: int | None = None  # milliseconds since the epoch
    first_output_at: int | None = None  # the first that was printed since the last event


@dataclass(frozen=True, slots=True)
class StrayOutput:
    """A line that is not a frame (a dying interpreter, a foreign image): becomes text of the log."""

    data: bytes


Frame = OutputFrame | EventFrame | TrailerFrame | StrayOutput


class FrameDecoder:
    """Turns the container's output back into frames, however its bytes were cut on the way; never raises.

    Numbers only rise. A frame whose number came before is dropped: nobody but the harness can write to this
    stream, so it is the engine that says it twice (a live reading, when its file rotates). A gap in the numbers
    is output that was lost.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._inside_stray = False  # the line is longer than any frame, its beginning was given out
        self._last_number = 0

    def feed(self, chunk: bytes) -> list[Frame]:
        """Return the frames that became complete with this chunk."""
        self._buffer += chunk
        frames: list[Frame] = []
        while (line := self._take_line()) is not None:
            frames += self._decode(line)
        return frames

    def finish(self) -> list[Frame]:
        """Return what an unfinished last line amounts to; nothing is fed afterwards."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        return self._decode(rest) if rest else []

    def _take_line(self) -> bytes | None:
        """Take a line with its newline from the buffer, or a piece of one that cannot be a frame any more."""
        end = self._buffer.find(b"\n", 0, MAX_LINE) + 1
        if not end and len(self._buffer) < MAX_LINE:
            return None
        size = end or MAX_LINE
        line = bytes(self._buffer[:size])
        del self._buffer[:size]
        return line

    def _decode(self, line: bytes) -> list[Frame]:
        is_whole = not self._inside_stray and (len(line) < MAX_LINE or line.endswith(b"\n"))
        self._inside_stray = not line.endswith(b"\n")
        frame = _parse(line) if is_whole else None
        if frame is None:
            return [StrayOutput(line)]
        if frame.number <= self._last_number:
            return []
        self._last_number = frame.number
        return [frame]


def _parse(line: bytes) -> OutputFrame | EventFrame | TrailerFrame | None:
    """Return the frame that a line is, None for anything else."""
    if not line.startswith(b'{"n":'):
        return None
    try:
        document = json.loads(line)
        return _PARSERS[document["t"]](document)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None  # whoever wrote it, it is no frame of ours


def _output(document: dict[str, Any]) -> OutputFrame:
    return OutputFrame(_number(document), base64.b64decode(document["d"], validate=True))


def _event(document: dict[str, Any]) -> EventFrame:
    return EventFrame(
        _number(document), _typed(document["k"], str), _object(document["d"]), _moment(document, "at")
    )


def _trailer(document: dict[str, Any]) -> TrailerFrame:
    code, signal, message = (document.get(key) for key in ("exit_code", "signal", "message"))
    return TrailerFrame(
        number=_number(document),
        outcome=Outcome(document["outcome"]),
        log_bytes=_natural(document["log_bytes"]),
        log_sha256=_typed(document["log_sha256"], str),
        exit_code=None if code is None else _typed(code, int),
        signal=None if signal is None else _natural(signal),
        session_finished=document.get("session_finished") is True,
        collection_errors=_natural(document.get("collection_errors", 0)),
        message=None if message is None else _typed(message, str),
        at=_moment(document, "at"),
        first_output_at=_moment(document, "first_output_at"),
    )


def _number(document: dict[str, Any]) -> int:
    number = _natural(document["n"])
    if not number:
        raise ValueError("numbers begin with 1")
    return number


def _moment(document: dict[str, Any], key: str) -> int | None:
    value = document.get(key)
    return None if value is None else _natural(value)


def _typed(value: Any, expected: type[_T]) -> _T:
    if type(value) is not expected:
        raise TypeError(f"not {expected.__name__}")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return cast(dict[str, Any], value)


def _natural(value: Any) -> int:
    if _typed(value, int) < 0:
        raise ValueError("negative")
    return value


_PARSERS: Final = {"o": _output, "e": _event, "end": _trailer}
