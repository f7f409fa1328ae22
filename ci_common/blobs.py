"""Contents of files that were sent apart from their tree: what they are called, where they lie, what a tree names.

Tuples by name and not dataclasses: there may be 100 000 of them in one request.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Final, NamedTuple

_HEX: Final = re.compile("[0-9a-f]{64}")


class Encoding(IntEnum):
    """How the bytes of a blob are stored and sent."""

    IDENTITY = 0
    ZLIB = 1


def as_digest(text: Any) -> bytes | None:
    """Return the 32 bytes that a hash in lower-case hex stands for, None for what is none."""
    if type(text) is not str or not _HEX.fullmatch(text):
        return None
    return bytes.fromhex(text)


class Blob(NamedTuple):
    """The contents of one file inside a pack; they were verified when they came."""

    sha256: bytes  # of the contents, not of what is stored
    offset: int
    stored: int  # bytes in the pack
    size: int  # bytes of the contents
    encoding: int  # an `Encoding`


class BlobPlace(NamedTuple):
    """Where the contents of that hash can be read."""

    pack: str  # the name
    offset: int
    stored: int
    size: int
    encoding: int


@dataclass(frozen=True, slots=True)
class Pack:
    """What one request brought, as one file that is on disk for good."""

    name: str
    size: int  # bytes
    blobs: Sequence[Blob]


@dataclass(frozen=True, slots=True)
class PackUse:
    """What pruning must know of a pack."""

    name: str
    user_id: str
    size: int  # bytes of the file, and of the rows about it
    created_at: datetime
    used_at: datetime
    needed: bool  # by a job that has not ended, or whose archive is kept


class ManifestFile(NamedTuple):
    """One file of a tree whose contents are named by their hash."""

    path: str
    mode: int  # 0o644 or 0o755
    size: int
    sha256: bytes

    def __str__(self) -> str:
        return repr(self.path[:200])


@dataclass(frozen=True, slots=True)
class Manifest:
    """A tree that passed the rules of archives: its files sorted by path, and what is the same for the same tree."""

    files: tuple[ManifestFile, ...]
    sha256: str

    def hashes(self) -> set[bytes]:
        """Return the hashes of all contents that the tree needs."""
        return {file.sha256 for file in self.files}


@dataclass(frozen=True, slots=True)
class LaidTree:
    """A tree that passed the rules and whose contents are all there."""

    sha256: str  # of its root
    packs: Collection[str]  # that its listings and its contents lie in
    manifest: Sequence[bytes]  # what its archive is to hold
