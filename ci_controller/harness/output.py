"""What goes out: the container's standard output as numbered frames."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from typing import Any

FRAME_BYTES = 12000  # of output per frame: 16000 characters of base64, so that the line stays under 16 KiB
# At most, between two frames of a burst: a frame costs the engine over 100 bytes of its own.
GATHER_SECONDS = 0.01
_TAIL_BYTES = 64 * 1024


class Log:
    """The container's standard output: numbered frames, one JSON line each, and the count and hash of the text."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.last_output = time.monotonic()
        self._number = 0
        self._size = 0
        self._digest = hashlib.sha256()
        self._tail = b"\n"  # the end of the text since our own last line
        self._gathered = bytearray()  # counted, not yet out
        self._next_flush = 0.0
        self._first_output: int | None = None  # since the last event, as `_now` has it

    def output(self, data: bytes) -> bool:
        """What fits under the limit is out, or will be at `due`; returns False when something did not fit.

        The first bytes after a pause go out at once; only those that follow close behind are gathered.
        """
        self.last_output = time.monotonic()
        self._first_output = self._first_output or _now()
        room = len(data) if self.limit is None else max(0, self.limit - self._size)
        self._take(data[:room])
        if len(self._gathered) >= FRAME_BYTES or self.last_output >= self._next_flush:
            self.flush()
        return len(data) <= room

    @property
    def due(self) -> float:
        """When `flush` has something to do, on the monotonic clock."""
        return self._next_flush if self._gathered else float("inf")

    def is_quiet_since(self, moment: float, seconds: float) -> bool:
        """Tell whether there was output after that moment, and then none for so long."""
        return moment < self.last_output < time.monotonic() - seconds

    def flush(self) -> None:
        """Everything that was gathered is out."""
        if self._gathered:
            data = bytes(self._gathered)
            self._gathered.clear()
            self._next_flush = time.monotonic() + GATHER_SECONDS
            pieces = (data[start : start + FRAME_BYTES] for start in range(0, len(data), FRAME_BYTES))
            _write_all(b"".join(self._frame(t="o", d=base64.b64encode(piece).decode()) for piece in pieces))

    def say(self, sentence: str) -> None:
        """A line of ours stands in the log, at the beginning of a line."""
        start = b"" if self._tail.endswith(b"\n") else b"\n"
        self._take(start + b"==> " + sentence.encode(errors="replace") + b"\n")
        self.flush()
        self._tail = b"\n"

    def tail(self) -> bytes:
        """Return the end of the text since our own last line."""
        return self._tail

    def event(self, kind: str, **data: Any) -> None:
        """An event is out, behind the text before it."""
        self.flush()
        self._first_output = None
        _write_all(self._frame(t="e", k=kind, at=_now(), d=data))

    def trailer(self, outcome: str, message: str | None, fields: dict[str, Any]) -> None:
        """The last frame is out."""
        self.flush()
        fields = {**fields, "at": _now(), "first_output_at": self._first_output}
        fields = {**fields, "log_bytes": self._size, "log_sha256": self._digest.hexdigest()}
        _write_all(
            self._frame(t="end", outcome=outcome, message=message and _plain(message[:1000]), **fields)
        )

    def _take(self, data: bytes) -> None:
        self._gathered += data
        self._size += len(data)
        self._digest.update(data)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]

    def _frame(self, **fields: Any) -> bytes:
        self._number += 1
        return json.dumps({"n": self._number, **fields}, separators=(",", ":")).encode() + b"\n"


def _now() -> int:
    """Return milliseconds since the epoch: the clock is the machine's, so they stand beside those of others."""
    return int(time.time() * 1000)


def _plain(text: str) -> str:
    """Return one line that any terminal and any database takes: parts of it come from the job."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
