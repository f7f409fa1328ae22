"""Contents of files on their way in: which are missing, and those that a request brings."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, Collection, Mapping
from typing import Any, Final

import structlog
from fastapi import Request

from ci_common.blobs import BlobPlace, Pack, as_digest
from ci_common.clock import Clock
from ci_common.crash_points import crash_point
from ci_common.errors import InvalidRequest, TooManyRequests
from ci_common.keyed_locks import KeyedLocks
from ci_common.repository import JobRepository
from ci_common.stores import BlobStore
from ci_server.auth import Authenticator, Caller
from ci_server.bodies import JsonBodies, as_list
from ci_server.disk import require_room
from ci_server.settings import ServerSettings
from ci_server.uploads import check_declared_length, guarded_body

MEDIA_TYPE: Final = "application/vnd.ci.blobs"
MOST_HASHES: Final = 100_000
_QUESTION_BYTES: Final = 8 * 1024 * 1024
_RETRY_AFTER: Final = 3600  # seconds; the controller prunes about as often

_log = structlog.stdlib.get_logger("ci_server.blobs")


class Blobs:
    """Takes contents of files for their owners."""

    def __init__(
        self,
        repository: JobRepository,
        store: BlobStore,
        authenticator: Authenticator,
        settings: ServerSettings,
        clock: Clock,
        bodies: JsonBodies,
    ) -> None:
        self._bodies = bodies
        self._turns = KeyedLocks()  # of users whose blobs are looked up or added, or wait
        self._repository = repository
        self._store = store
        self._authenticator = authenticator
        self._settings = settings
        self._clock = clock

    async def missing(self, request: Request, caller: Caller) -> list[str]:
        """Return those of the hashes in the body that the caller has not stored, each once, in their order."""
        user_id = caller.user.id
        async with self._bodies.read(request, user_id, _QUESTION_BYTES, MOST_HASHES + 10) as document:
            asked = await asyncio.to_thread(_hashes, document.get("sha256"))
            async with self._turn(user_id):
                found = await self._repository.find_blobs(user_id, asked)
        return [sha256.hex() for sha256 in asked if sha256 not in found]

    async def store(self, request: Request, caller: Caller) -> int:
        """The blobs of the body are the caller's; returns how many were not before."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
            raise InvalidRequest(f"Send blobs as {MEDIA_TYPE}.")
        check_declared_length(request, self._settings)
        await require_room(request, self._settings)
        async with contextlib.aclosing(guarded_body(request, self._settings)) as chunks:
            return await self.receive(chunks, caller)

    async def receive(self, chunks: AsyncIterable[bytes], caller: Caller) -> int:
        """The same of a body, or a part of one, that is read already. Raises InvalidBlob."""
        await self._check_quota(caller)
        pack = await self._store.receive(chunks)
        crash_point("after_pack_saved")
        try:
            # The upload may have taken long: who was locked out meanwhile stores nothing.
            await self._authenticator.recheck(caller)
            async with self._turn(caller.user.id):
                await self._check_quota(caller)  # once more: many may have come side by side
                fresh = await self._repository.add_pack(caller.user.id, pack, self._clock.now())
        except Exception:
            # As with archives: a failed transaction left no row, a cancelled one may still commit.
            await self._discard(pack)
            raise
        if not fresh:
            await self._discard(pack)
        crash_point("after_pack_added")
        return fresh

    async def places(self, user_id: str, hashes: Collection[bytes]) -> Mapping[bytes, BlobPlace]:
        """Return where those of the contents lie that the user has stored, in packs that are there."""
        async with self._turn(user_id):
            places = await self._repository.find_blobs(user_id, hashes)
        lost = await asyncio.to_thread(self._store.absent, {place.pack for place in places.values()})
        if not lost:
            return places
        # After a restore, or by human hands: what is asked for again can be sent again.
        _log.warning("packs_lost", user_id=user_id, packs=sorted(lost))
        await self._repository.forget_packs(user_id, lost)
        return {sha256: place for sha256, place in places.items() if place.pack not in lost}

    async def forgettings(self, user_id: str) -> int:
        """Return the user's number: while it is the same, what `places` told after it was read holds."""
        return await self._repository.forgettings(user_id)

    def _turn(self, user_id: str) -> asyncio.Lock:
        """Return what one user holds for one large question to the database at a time: others come between."""
        return self._turns.of(user_id)

    async def _check_quota(self, caller: Caller) -> None:
        limit = self._settings.max_blob_bytes_per_user
        if await self._repository.pack_bytes(caller.user.id) >= limit:
            raise TooManyRequests(
                f"The contents of your files take more than {limit} bytes here; those used longest ago go by and by. "
                "Submit a zip archive meanwhile.",
                retry_after=_RETRY_AFTER,
            )

    async def _discard(self, pack: Pack) -> None:
        try:
            await asyncio.to_thread(self._store.delete, pack.name)
        except OSError:
            _log.exception("pack_not_deleted", pack=pack.name)  # pruning gets it later


def _hashes(asked: Any) -> list[bytes]:
    texts = as_list(asked)
    if texts is None or len(texts) > MOST_HASHES:
        raise InvalidRequest(f"'sha256' must be a list of at most {MOST_HASHES} hashes.")
    found = [as_digest(text) for text in texts]
    known = dict.fromkeys(digest for digest in found if digest is not None)
    if None in found:
        raise InvalidRequest("'sha256' must hold SHA-256 hashes, 64 lower-case hexadecimal digits each.")
    return list(known)
