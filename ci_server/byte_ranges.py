"""The `Range` header of one byte range (RFC 9110, 14.1.2): which bytes of so many it asks for."""

import re
from dataclasses import dataclass

_ONE_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` up to, not including, `end`."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start

    def content_range(self, size: int) -> str:
        """Return the value of Content-Range for this part of `size` bytes."""
        return f"bytes {self.start}-{self.end - 1}/{size}"


class Unsatisfiable(Exception):
    """The range is well formed, but none of its bytes exist."""


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Return the range asked for; None means all: no header, or one that a server is to ignore.

    Raises Unsatisfiable.
    """
    match = _ONE_RANGE.fullmatch(header.strip()) if header else None
    first, last = match.groups() if match else ("", "")
    if not first and not last:
        return None
    if not first:
        wanted = ByteRange(max(0, size - int(last)), size)
    else:
        if last and int(last) < int(first):
            return None
        wanted = ByteRange(int(first), min(size, int(last) + 1) if last else size)
    if wanted.length <= 0:
        raise Unsatisfiable
    return wanted
