"""Submissions whose contents came apart: a manifest that names every file, or the hash of a tree's root."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType, NoneType
from typing import Any, Final, NamedTuple

from fastapi import Request

from ci_common.blobs import Manifest, as_digest
from ci_common.errors import InvalidRequest, MissingBlobs
from ci_common.job_terms import DEFAULT_POOL, JobOptions, Priority
from ci_common.stores import ArchiveStore, StoredArchive
from ci_server.auth import Caller
from ci_server.blobs import Blobs
from ci_server.bodies import JsonBodies, as_list, json_object, split_body
from ci_server.settings import ServerSettings
from ci_server.uploads import check_declared_length, checked_options, guarded_body, pool_named, priority_named

TREE_MEDIA_TYPE: Final = "application/vnd.ci.submission"
_MANIFEST_BYTES: Final = 32 * 1024 * 1024  # 100 000 files with paths of 150 bytes
_VALUES_PER_FILE: Final = 10
_OTHER_VALUES: Final = 10_000
_HEAD_BYTES: Final = 256 * 1024
_LENGTH_BYTES: Final = 4
# What a document calls an option, and what we do.
_OPTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "pytest_args": "pytest_args",
        "timeout": "timeout_seconds",
        "fresh": "fresh",
        "priority": "priority",
        "max_attempts": "max_attempts",
        "queue_timeout": "queue_timeout_seconds",
        "pool": "pool",
    }
)


class SavedTree(NamedTuple):
    """A tree that is durable as an archive, and the packs that it needs."""

    archive: StoredArchive
    packs: Collection[str]


@dataclass(frozen=True, slots=True)
class TreeSubmission:
    """A tree, and what was asked for beside it."""

    sha256: str  # the same for the same tree
    options: JobOptions
    save: Callable[
        [], Awaitable[SavedTree]
    ]  # raises MissingBlobs, and InvalidArchive for one that breaks the rules


class Trees:
    """Reads submissions of trees."""

    def __init__(
        self, archives: ArchiveStore, blobs: Blobs, settings: ServerSettings, bodies: JsonBodies
    ) -> None:
        self._bodies = bodies
        self._archives = archives
        self._blobs = blobs
        self._settings = settings

    async def read_manifest(self, request: Request, caller: Caller) -> TreeSubmission:
        """Return the tree whose files the body names; raises InvalidRequest, InvalidArchive."""
        most = _VALUES_PER_FILE * self._settings.archive_max_entries + _OTHER_VALUES
        user_id = caller.user.id
        async with self._bodies.read(request, user_id, _MANIFEST_BYTES, most) as document:
            options = _options(document, self._settings)
            files = as_list(document.get("files"))
            if files is None:
                raise InvalidRequest("'files' must be a list.")
            manifest = await self._archives.judge_manifest(files, user_id)
            return TreeSubmission(manifest.sha256, options, lambda: self._save_manifest(manifest, user_id))

    async def read_tree(self, request: Request, caller: Caller) -> TreeSubmission:
        """Return the tree whose root the body names, once the blobs that the body also holds are stored.

        Raises InvalidRequest, InvalidBlob.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != TREE_MEDIA_TYPE:
            raise InvalidRequest(f"Send a tree as {TREE_MEDIA_TYPE}.")
        check_declared_length(request, self._settings)
        async with contextlib.aclosing(guarded_body(request, self._settings)) as chunks:
            head, rest = await split_body(chunks, _LENGTH_BYTES, _HEAD_BYTES)
            document = await asyncio.to_thread(json_object, head, _OTHER_VALUES)
            options, root = _options(document, self._settings), as_digest(document.get("root"))
            if root is None:
                raise InvalidRequest("'root' must be the SHA-256 of the root's listing, in hex.")
            await self._store_rest(rest, chunks, caller)
        user_id = caller.user.id
        return TreeSubmission(root.hex(), options, lambda: self._save_tree(root, user_id))

    async def _save_manifest(self, manifest: Manifest, user_id: str) -> SavedTree:
        hashes = manifest.hashes()
        places = await self._blobs.places(user_id, hashes)
        if missing := hashes - places.keys():
            raise MissingBlobs.of(missing)
        archive = await self._archives.save_manifest(manifest, places)
        return SavedTree(archive, {place.pack for place in places.values()})

    async def _save_tree(self, root: bytes, user_id: str) -> SavedTree:
        forgettings = await self._blobs.forgettings(user_id)
        find = partial(self._blobs.places, user_id)
        tree = await self._archives.judge_tree(root, find, user_id, forgettings)
        return SavedTree(await self._archives.save_tree(tree), tree.packs)

    async def _store_rest(self, rest: bytes, chunks: AsyncGenerator[bytes, None], caller: Caller) -> None:
        """The blobs that follow the head are stored; often there are none."""
        if not rest:
            rest = await anext(chunks, b"")
        if rest:
            await self._blobs.receive(_chained(rest, chunks), caller)


async def _chained(first: bytes, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for chunk in chunks:
        yield chunk


def _options(document: dict[str, Any], settings: ServerSettings) -> JobOptions:
    return JobOptions(**options_named(document, settings))


def options_named(document: dict[str, Any], settings: ServerSettings) -> dict[str, Any]:
    """Return the options of a job that the document names, by their names in `JobOptions`; raises InvalidRequest."""
    arguments = as_list(document.get("pytest_args", []))
    if arguments is None or not all(type(one) is str for one in arguments):
        raise InvalidRequest("'pytest_args' must be a list of texts.")
    for name in ("timeout", "queue_timeout"):
        if type(document.get(name)) not in (int, float, NoneType):
            raise InvalidRequest(f"'{name}' must be a number of seconds.")
    if type(document.get("max_attempts")) not in (int, NoneType):
        raise InvalidRequest("'max_attempts' must be a whole number.")
    if type(document.get("fresh", False)) is not bool:
        raise InvalidRequest("'fresh' must be true or false.")
    priority = priority_named(document.get("priority", Priority.NORMAL))
    named = {name: document[said] for said, name in _OPTIONS.items() if said in document}
    pool = pool_named(document.get("pool", DEFAULT_POOL))
    asked = replace(JobOptions(**named), pytest_args=tuple(arguments), priority=priority, pool=pool)
    options = checked_options(asked, settings)
    return {name: getattr(options, name) for name in named}
