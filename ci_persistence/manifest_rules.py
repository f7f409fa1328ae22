"""The judge of manifests: what a tree may be is said by the same rules as for an archive that is a zip."""

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ci_common.blobs import BlobPlace, Manifest, ManifestFile, as_digest
from ci_common.errors import InvalidArchive
from ci_persistence.archive_paths import Names, check_path, encoded_length
from ci_persistence.archive_rules import ArchiveLimits, Budget
from ci_persistence.zip_format import refuse

_MODES: Final = frozenset({0o644, 0o755})
_MAX_SIZE: Final = 2**63 - 1
_FACTS: Final = struct.Struct(">HQ32s")


def read_files(files: Sequence[Any], limits: ArchiveLimits) -> list[ManifestFile]:
    """Return the files that JSON names; raises InvalidArchive where one has not the documented form."""
    limits.check_count(len(files))
    return [_file(raw) for raw in files]


def judge(files: Sequence[ManifestFile], limits: ArchiveLimits) -> Manifest:
    """Return the tree of these files; raises InvalidArchive with the rule it breaks."""
    limits.check_count(len(files))
    if not files:
        raise refuse("empty", "The archive holds no files.")
    found = sorted(files)  # so that what lies in one directory is judged in one go
    _check(found, limits)
    return Manifest(tuple(found), _fingerprint(found))


def check_sizes(files: Iterable[ManifestFile], places: Mapping[bytes, BlobPlace]) -> None:
    """Every file is as large as its contents; raises InvalidArchive."""
    for file in files:
        if places[file.sha256].size != file.size:
            raise refuse(
                "size", f"{file.path!r} has {file.size} bytes in the manifest, and its contents have others."
            )


def _check(files: Iterable[ManifestFile], limits: ArchiveLimits) -> None:
    budget, names = Budget(limits), Names(limits.entries)
    for file in files:
        budget.add_name(file, encoded_length(file.path))
        check_path(file.path)
        if file.path.endswith("/"):
            raise refuse("special_entry", f"{file.path!r} is a directory: a manifest names files only.")
        names.add_file(file.path)
        budget.add_size(file.size)


def _file(raw: Any) -> ManifestFile:
    try:
        path, mode, size, sha256 = raw["path"], raw["mode"], raw["size"], raw["sha256"]
    except (KeyError, TypeError):
        raise refuse("form", "An entry of the manifest lacks one of path, mode, size and sha256.") from None
    if type(path) is not str or type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise refuse("form", "An entry of the manifest has a path that is no text, or a size that is none.")
    if type(mode) is not int or mode not in _MODES:
        raise _wrong(path, "has a mode that is neither 0644 (420) nor 0755 (493)", "special_entry")
    return ManifestFile(path, mode, size, _digest(path, sha256))


def _digest(path: str, sha256: Any) -> bytes:
    digest = as_digest(sha256)
    if digest is None:
        raise _wrong(path, "has a sha256 that is not 64 lower-case hexadecimal digits", "form")
    return digest


def _wrong(path: str, what: str, rule: str) -> InvalidArchive:
    return refuse(rule, f"The entry {path[:200]!r} of the manifest {what}.")


def _fingerprint(files: Iterable[ManifestFile]) -> str:
    # No name holds a NUL, so no other tree gives the same bytes.
    facts = [path.encode() + b"\0" + _FACTS.pack(*rest) for path, *rest in files]
    return hashlib.sha256(b"".join(facts)).hexdigest()
