"""LogRecorder: one reading of a container's output, decoded and written to its place in the attempt's log.

What is written is a pure function of the output, and goes to computed offsets: a second reading, after a
crash, finds its bytes standing and continues behind them. Where they are not the same, or something is
missing, the log says so in a line of ours and goes on behind what stands: nothing that was recorded is ever
taken back. No threads here, and no engine.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ci_common.log_limits import LOG_SLACK
from ci_common.stores import LogWriter
from ci_controller.frames import (
    EventFrame,
    Frame,
    FrameDecoder,
    OutputFrame,
    StrayOutput,
    TrailerFrame,
)

_SEARCH_BYTES: Final = 64 * 1024

MISMATCH: Final = b"\n[ci] What follows differs from the output that was recorded before an interruption.\n"
BEGINS_LATE: Final = (
    b"\n[ci] The engine no longer has the beginning of the output: "
    b"what was recorded before is above, output between may be missing.\n"
)
OVER_LIMIT: Final = b"\n[ci] The log limit is reached; what follows is not kept.\n"
ENDS_EARLY: Final = b"\n[ci] The engine no longer has all of the output above.\n"


@dataclass(frozen=True, slots=True)
class PumpResult:
    """What one reading of a container's output found."""

    trailer: TrailerFrame | None
    begun: bool  # the user's own code began to run
    log_bytes: int  # of the log that this reading accounts for
    truncated: bool  # bytes are missing or differ; the log says so itself
    over_limit: bool  # the log limit was reached here, so the harness did not keep it
    installed: bool = False  # everything was, and the container was to lose its network then

    @property
    def may_lack_output(self) -> bool:
        """Tell what the seal has to: the harness's last word alone says how much there was. Without it two equal
        readings end the wait, and a harness that was killed took with it what it had not written yet."""
        return self.truncated or self.trailer is None


class LogRecorder:
    """Writes one reading; `feed` it what the container printed, from the very beginning, then `finish`."""

    def __init__(self, writer: LogWriter, log_limit: int) -> None:
        self.trailer: TrailerFrame | None = None
        self.begun = False
        self.installed = False  # and waits for its network to be taken away
        self.prepared = False  # and waits for its environment to be kept
        self.over_limit = False
        self._writer = writer
        self._capacity = log_limit + LOG_SLACK
        self._decoder = FrameDecoder()
        self._standing = writer.size()  # bytes of an earlier reading that were not compared yet, up to here
        self._offset = 0
        self._text_bytes = 0  # of this reading's text: what the limit is about
        self._last_word: TrailerFrame | None = None  # becomes `trailer` when all before it is written
        self._last_number = 0
        self._output_bytes = 0
        self._output_hash = hashlib.sha256()
        self._truncated = False
        self._text: list[bytes] = []  # decoded, not yet written
        self._events: list[bytes] | None = []  # held back while catching up with an earlier reading

    def feed(self, chunk: bytes) -> None:
        """What `chunk` completes is written."""
        for frame in self._decoder.feed(chunk):
            self._take(frame)
        self._flush()
        self.trailer = self._last_word

    def finish(self) -> None:
        """There will be no more: a last line without its end is text, and less than before is marked."""
        for frame in self._decoder.finish():
            self._take(frame)
        self._flush()
        if self._offset < self._standing:
            self._mark_early_end()
        self._release_events()
        self.trailer = self._last_word

    @property
    def is_whole(self) -> bool:
        """Tell whether the harness has said its last word and everything before it stands in the log."""
        stands = self._offset >= self._standing
        return self.trailer is not None and stands and not (self._truncated or self.over_limit)

    @property
    def result(self) -> PumpResult:
        """What was found up to now."""
        return PumpResult(
            self.trailer,
            self.begun,
            self._offset,
            self._truncated or self.over_limit,
            self.over_limit,
            self.installed,
        )

    def _take(self, frame: Frame) -> None:
        match frame:
            case StrayOutput(data):
                self._text.append(data)
                return
            case OutputFrame(_, data):
                self._check_number(frame.number)
                self._output_bytes += len(data)
                self._output_hash.update(data)
                self._text.append(data)
            case EventFrame():
                self._check_number(frame.number)
                self._take_event(frame)
            case TrailerFrame():
                self._check_number(frame.number)
                self._take_trailer(frame)

    def _check_number(self, number: int) -> None:
        """A gap in the numbers is a gap in the log: the text says how many frames are missing."""
        missing, is_first, self._last_number = number - self._last_number - 1, not self._last_number, number
        if not missing:
            return
        self._truncated = True
        gap = f"\n[ci] The engine lost output here: {missing} parts of it.\n".encode()
        self._flush()
        if is_first and self._offset < self._standing and not self._stands(gap):
            self._go_behind(BEGINS_LATE)  # where this belongs in what stands cannot be known
        else:
            self._text.append(gap)

    def _take_event(self, frame: EventFrame) -> None:
        self.begun = self.begun or frame.type == "begun"
        self.installed = self.installed or frame.type == "installed"
        self.prepared = self.prepared or frame.type == "prepared"
        self._note_event(frame.type, dict(frame.data), frame.at)

    def _note_event(self, kind: str, data: Mapping[str, Any], at: int | None) -> None:
        self._flush()  # an event stands at the offset of the text before it
        event = {"offset": self._offset, "type": kind, "data": data}
        dated = event if at is None else {**event, "at": at}
        line = json.dumps(dated).encode() + b"\n"
        if self._events is None:
            self._writer.append_event(line)
        else:
            self._events.append(line)

    def _take_trailer(self, frame: TrailerFrame) -> None:
        self._last_word = self._last_word or frame
        if frame.at is not None:  # when the session ended, for the timeline
            self._note_event("end", {"first_output_at": frame.first_output_at}, frame.at)
        found = (self._output_bytes, self._output_hash.hexdigest())
        if found != (frame.log_bytes, frame.log_sha256):
            self._truncated = True
            self._text.append(
                f"\n[ci] The output above is not complete: {self._output_bytes} bytes came of "
                f"{frame.log_bytes} that were written.\n".encode()
            )

    def _flush(self) -> None:
        data = b"".join(self._text)
        self._text.clear()
        if data and not self.over_limit:
            room = self._capacity - self._text_bytes
            self._text_bytes += len(data)
            self._put(data[:room])
            if len(data) > room:
                self.over_limit = True
                self._put(OVER_LIMIT)
        if self._offset >= self._standing:
            self._release_events()

    def _put(self, data: bytes) -> None:
        """`data` stands at the current offset, which is then behind it."""
        rest = self._skip_standing(data)
        while rest and self._offset < self._standing:
            self._truncated = True
            self._go_behind(MISMATCH)
            rest = self._skip_standing(rest)
        if rest:
            self._writer.write(self._offset, rest)
            self._offset += len(rest)

    def _skip_standing(self, data: bytes) -> bytes:
        """The offset is behind those first bytes of `data` that stand there already; returns the others."""
        same = self._equal_prefix(data)
        self._offset += same
        return data[same:]

    def _equal_prefix(self, data: bytes) -> int:
        known = min(len(data), max(0, self._standing - self._offset))
        there = self._writer.read(self._offset, known)
        if len(there) < known:  # somebody has cut the file since we began
            self._standing = self._offset + len(there)
        if data.startswith(there):
            return len(there)
        return next(index for index, (a, b) in enumerate(zip(there, data, strict=False)) if a != b)

    def _go_behind(self, mark: bytes) -> None:
        """The offset is behind `mark`: where an earlier reading has put it, else behind everything that stands."""
        at = self._find(mark)
        if at is None:
            at, self._standing = self._standing, self._standing + len(mark)
            self._writer.write(at, mark)
        self._offset = at + len(mark)

    def _find(self, mark: bytes) -> int | None:
        """Return where `mark` stands, at or behind the offset."""
        at, before = self._offset, b""
        while at < self._standing and (data := self._writer.read(at, _SEARCH_BYTES)):
            found = (before + data).find(mark)
            if found >= 0:
                return at - len(before) + found
            at, before = at + len(data), (before + data)[1 - len(mark) :]
        return None

    def _stands(self, data: bytes) -> bool:
        return self._writer.read(self._offset, len(data)) == data

    def _mark_early_end(self) -> None:
        """An earlier reading found more, which is kept."""
        self._truncated = True
        tail_at = self._standing - len(ENDS_EARLY)
        if self._writer.read(max(tail_at, 0), len(ENDS_EARLY)) != ENDS_EARLY:
            self._writer.write(self._standing, ENDS_EARLY)

    def _release_events(self) -> None:
        if self._events is not None:
            self._writer.write_events(self._events)
            self._events = None
