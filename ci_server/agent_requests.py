"""What agents send: JSON of a known shape, and pieces of a log with their place in it."""

import re
from typing import Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from ci_common.errors import InvalidRequest
from ci_server.auth import Caller
from ci_server.dependencies import Resources

Said = TypeVar("Said", bound=BaseModel)

MOST_BYTES: Final = 4 * 1024 * 1024  # of a piece of a log
_MOST_JSON: Final = 256 * 1024
_MOST_VALUES: Final = 20_000
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:\*|\d{1,18})", re.ASCII)


async def said(request: Request, caller: Caller, server: Resources, shape: type[Said]) -> Said:
    """Return what the request's JSON says, of a key that is still good now, however slowly that came.

    It counts by key: the agents of one user have one key each, and none keeps another's heartbeats out. Raises
    InvalidRequest, ArchiveTooLarge, TooManyRequests, Unauthorized.
    """
    async with server.bodies.read(request, caller.key.id, _MOST_JSON, _MOST_VALUES) as document:
        await server.authenticator.recheck(caller)
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
