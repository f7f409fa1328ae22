"""Whether there is room for one more upload: asked before a byte of it is read."""

import asyncio
from pathlib import Path
from typing import Final

from fastapi import Request

from ci_common.disk_space import Space, space_of
from ci_common.errors import StorageFull
from ci_server.settings import ServerSettings

_RETRY_AFTER: Final = 30  # seconds; somebody has to make room
MIN_FREE_INODES_PERCENT: Final = 1.0


async def require_room(request: Request, settings: ServerSettings) -> None:
    """The disks of data and database have room for the upload beside what is kept free; raises StorageFull."""
    declared = request.headers.get("content-length", "")
    await asyncio.to_thread(_require_room, int(declared) if declared.isdecimal() else 0, settings)


def _require_room(upload: int, settings: ServerSettings) -> None:
    for name, path, wanted in (
        ("data", settings.data_path, settings.submit_min_free_bytes + upload),
        ("database", settings.db_path.parent, settings.submit_min_free_bytes),
    ):
        if not _has_room(_space_of(path), wanted):
            raise StorageFull(
                f"The disk of {path} has too little room for new jobs.",
                public_detail=f"The server's {name} disk has too little room for new jobs; its operator has to "
                "make room. Jobs that were accepted go on, and their results can be read.",
                retry_after=_RETRY_AFTER,
            )


def _space_of(path: Path) -> Space | None:
    try:
        return space_of(path)
    except OSError:
        return None  # the upload itself says what is wrong


def _has_room(space: Space | None, wanted: int) -> bool:
    if space is None:
        return True
    return space.free_bytes >= wanted and space.free_inodes_percent >= MIN_FREE_INODES_PERCENT
