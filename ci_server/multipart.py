"""A multipart/form-data body as a stream of parts: nothing is kept, neither in memory nor in temporary files."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ci_common.errors import InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks  # exists only for type checkers


@dataclass(frozen=True, slots=True)
class PartBegins:
    """What follows belongs to the part of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class PartEnds:
    """The part is complete."""


Piece = PartBegins | bytes | PartEnds


def boundary_of(content_type: str | None) -> bytes:
    """Return the boundary that a Content-Type names; raises InvalidRequest for anything but multipart/form-data."""
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary:
        raise InvalidRequest(
            "Send the archive as multipart/form-data in the field 'file', as 'curl -F file=@project.zip' does."
        )
    return boundary


async def read_pieces(body: AsyncIterable[bytes], boundary: bytes) -> AsyncGenerator[Piece, None]:
    """Yield the parts in the order of the body; raises InvalidRequest where it is malformed or cut off."""
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        async for chunk in body:
            parser.write(chunk)
            while collector.pieces:
                yield collector.pieces.popleft()
    except FormParserError as error:
        raise InvalidRequest(f"The body is not valid multipart/form-data: {error}") from error
    if not collector.complete:
        raise InvalidRequest("The upload was cut off: the body ends before its closing boundary.")


class _Collector:
    """Turns the parser's callbacks into pieces."""

    def __init__(self) -> None:
        self.pieces: deque[Piece] = deque()
        self.complete = False
        self._header = b""
        self._value = b""
        self._disposition = b""

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._part_ends,
            "on_end": self._body_ends,
        }

    def _part_begins(self) -> None:
        self._disposition = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if name is None:
            raise InvalidRequest("A part of the form has no name in its Content-Disposition.")
        self.pieces.append(PartBegins(name.decode(errors="replace")))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.pieces.append(data[start:end])

    def _part_ends(self) -> None:
        self.pieces.append(PartEnds())

    def _body_ends(self) -> None:
        self.complete = True
