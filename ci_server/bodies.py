"""Bodies that are read whole, within bounds of each and of all of one caller's; JSON in a thread where it is large."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any, Final, cast

from fastapi import Request

from ci_common.bounded_json import loads_bounded
from ci_common.errors import ArchiveTooLarge, InvalidRequest, TooManyRequests
from ci_server.settings import ServerSettings
from ci_server.uploads import check_declared_length, guarded_body

_HELD_PER_USER: Final = (
    64 * 1024 * 1024
)  # bytes of JSON, two of the largest: it is in memory, however slowly it comes
_SMALL: Final = 16 * 1024  # bytes of JSON that are read in a fraction of a millisecond
_RETRY_AFTER: Final = 5  # seconds


class JsonBodies:
    """Reads bodies that are JSON, and no more of one user's at a time than has a place in memory."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._held = Counter[str]()  # bytes by user, of agents by key

    @contextlib.asynccontextmanager
    async def read(
        self, request: Request, user_id: str, limit: int, most_values: int
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the JSON object that the body is; it counts as held while in the block.

        Raises InvalidRequest, ArchiveTooLarge, TooManyRequests and what slow uploads get.
        """
        check_declared_length(request, self._settings)
        async with self.whole(request, user_id, limit) as data:
            document = await _parsed(bytes(data), most_values)
            data.clear()
            yield document

    @contextlib.asynccontextmanager
    async def whole(self, request: Request, holder: str, limit: int) -> AsyncGenerator[bytearray, None]:
        """Yield the body; it counts as held by that user or key while in the block.

        Raises ArchiveTooLarge, TooManyRequests and what slow uploads get.
        """
        data, held = bytearray(), 0
        try:
            async with contextlib.aclosing(guarded_body(request, self._settings)) as chunks:
                async for chunk in chunks:
                    data += chunk
                    held += len(chunk)
                    self._hold(holder, len(chunk))
                    if held > limit:
                        raise ArchiveTooLarge(f"The request is larger than {limit} bytes.", limit=limit)
            yield data
        finally:
            self._held -= Counter({holder: held})  # who holds nothing is not counted

    def _hold(self, holder: str, size: int) -> None:
        self._held[holder] += size
        if self._held[holder] > _HELD_PER_USER:
            message = (
                f"Requests of yours take more than {_HELD_PER_USER} bytes in memory; send them one by one."
            )
            raise TooManyRequests(message, retry_after=_RETRY_AFTER)


async def _parsed(data: bytes, most_values: int) -> dict[str, Any]:
    if len(data) <= _SMALL:  # no turn in the queue for a thread, which may be long
        return json_object(data, most_values)
    return await asyncio.to_thread(json_object, data, most_values)


def json_object(data: bytes, most_values: int) -> dict[str, Any]:
    """Return the JSON object that these bytes are; raises InvalidRequest."""
    try:
        document: Any = loads_bounded(data, most_values)
    except ValueError as error:
        raise InvalidRequest(f"The request is not the JSON it should be: {error}.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The request must be a JSON object.")
    return cast(dict[str, Any], document)


def as_list(value: Any) -> list[Any] | None:
    """Return the value if it is a JSON array."""
    return cast(list[Any], value) if isinstance(value, list) else None


async def split_body(
    chunks: AsyncGenerator[bytes, None], length_bytes: int, limit: int
) -> tuple[bytes, bytes]:
    """Return the head of the body, whose length stands before it, and the beginning of what follows."""
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) >= length_bytes:
            end = length_bytes + int.from_bytes(data[:length_bytes], "big")
            if end > limit:
                raise ArchiveTooLarge(f"The request's JSON is larger than {limit} bytes.", limit=limit)
            if len(data) >= end:
                return bytes(data[length_bytes:end]), bytes(data[end:])
    raise InvalidRequest("The body ends before its JSON does.")
