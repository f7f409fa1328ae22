"""Bodies that are JSON, read whole within a bound, in a thread where they are large."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, cast

from fastapi import Request

from ci_common.bounded_json import loads_bounded
from ci_common.errors import ArchiveTooLarge, InvalidRequest
from ci_server.settings import ServerSettings
from ci_server.uploads import check_declared_length, guarded_body


async def json_body(
    request: Request, settings: ServerSettings, limit: int, most_values: int
) -> dict[str, Any]:
    """Return the JSON object that the body is; raises InvalidRequest, ArchiveTooLarge and what slow uploads get."""
    check_declared_length(request, settings)
    data = bytearray()
    async with contextlib.aclosing(guarded_body(request, settings)) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > limit:
                raise ArchiveTooLarge(f"The request's JSON is larger than {limit} bytes.", limit=limit)
    return await asyncio.to_thread(json_object, bytes(data), most_values)


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
