"""What agents send: JSON of a known shape, and pieces of a log with their place in it."""

import re
from typing import Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from ci_common.errors import InvalidRequest
from ci_server.bodies import JsonBodies

Said = TypeVar("Said", bound=BaseModel)

MOST_BYTES: Final = 4 * 1024 * 1024  # of one request
_MOST_VALUES: Final = 20_000
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:\*|\d{1,18})", re.ASCII)


async def said(request: Request, bodies: JsonBodies, user_id: str, shape: type[Said]) -> Said:
    """Return what the request's JSON says; raises InvalidRequest, ArchiveTooLarge."""
    async with bodies.read(request, user_id, MOST_BYTES, _MOST_VALUES) as document:
        try:
            return shape.model_validate(document)
        except ValidationError as error:
            wrong = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise InvalidRequest(f"The request is not as documented: {'; '.join(wrong)}.") from None


def place_of(content_range: str | None, size: int) -> int:
    """Return where the body's bytes belong; raises InvalidRequest where that is not said, or is not its size."""
    found = _CONTENT_RANGE.fullmatch(content_range.strip()) if content_range else None
    if found is None or int(found[2]) - int(found[1]) + 1 != size:
        raise InvalidRequest(
            "Say by 'Content-Range: bytes FIRST-LAST/*' where in the log these bytes belong."
        )
    return int(found[1])
