"""Server-sent events out of bytes, as the HTML standard has them: of each event its data and the id in force. Pure."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

_MAX_EVENT = 16 << 20  # bytes; the server sends 64 KiB of output at a time


class SentEvent(NamedTuple):
    """One event: its data, and the last id that was named up to it."""

    data: str
    id: str


class EventTooLong(Exception):
    """A line, or an event, does not end."""


def events_of(pieces: Iterable[bytes]) -> Iterator[SentEvent]:
    """Yield the events of a stream that have data; what is cut off at its end is none. Raises EventTooLong."""
    data: list[str] = []
    size = 0
    last_id = ""
    for line in _lines(pieces):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield SentEvent("\n".join(data), last_id)
            data, size = [], 0
        elif name == "data":
            data.append(value)
            size += len(line)
            _check(size)
        elif name == "id" and "\0" not in value:
            last_id = value


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines that have ended: by a newline, a return or both."""
    begun = bytearray()
    for piece in pieces:
        begun += piece
        if b"\n" not in piece and b"\r" not in piece:
            _check(len(begun))
            continue
        lines = bytes(begun).splitlines(keepends=True)
        # Whether a last return stands for itself only the next byte tells.
        begun = bytearray() if lines[-1].endswith(b"\n") else bytearray(lines.pop())
        for line in lines:
            yield line.rstrip(b"\r\n").decode("utf-8", "replace")


def _check(size: int) -> None:
    if size > _MAX_EVENT:
        raise EventTooLong(f"it has more than {_MAX_EVENT} bytes")
