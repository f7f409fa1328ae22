"""Which names an archive may hold: plain relative paths that mean one file each, on every system."""

import hashlib
import re
import unicodedata

from ci_common.errors import InvalidArchive
from ci_persistence.zip_format import refuse

MAX_DEPTH = 32
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1024
_FORBIDDEN = re.compile(r"[\\:\x00-\x1f\x7f-\x9f]")
_NO_NAME = re.compile(r"(?:^|/)\.{0,2}(?:/|\Z)")  # a part that is empty, `.` or `..`


def checked_path(raw: bytes) -> str:
    """Return the name as a path of our kind; raises InvalidArchive, since repairing it would be guessing."""
    # Whatever the entry's UTF-8 flag says: Info-ZIP and macOS write UTF-8 without setting it.
    try:
        path = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(repr(raw[:200]), "is not UTF-8", "encoding") from error
    check_path(path)
    return path


def check_path(path: str) -> None:
    """The name is a path of our kind; raises InvalidArchive otherwise."""
    if not unicodedata.is_normalized("NFC", path):
        raise _bad(repr(path[:200]), "is not in Unicode's composed form (NFC)", "encoding")
    _check_characters(path)
    _check_components(path)


def encoded_length(path: str) -> int:
    """Return how many bytes of UTF-8 the name takes; raises InvalidArchive for one that has no such form."""
    if path.isascii():
        return len(path)
    try:
        return len(path.encode())
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can say
        raise _bad(repr(path[:200]), "is no Unicode text", "encoding") from error


def _check_characters(path: str) -> None:
    found = _FORBIDDEN.search(path)
    if found:
        raise _bad(repr(path[:200]), f"contains the character {found[0]!r}", "path")


def _check_components(path: str) -> None:
    plain = path.removesuffix("/")
    if _NO_NAME.search(plain):
        raise _bad(repr(path[:200]), "is not a plain relative path", "path")
    if plain.count("/") >= MAX_DEPTH:
        raise _bad(repr(path[:200]), f"is more than {MAX_DEPTH} levels deep", "path_length")
    if path.isascii() and len(path) <= MAX_NAME_BYTES:
        return  # as nearly all are
    too_long = any(len(part.encode()) > MAX_NAME_BYTES for part in plain.split("/"))
    if too_long or len(path.encode()) > MAX_PATH_BYTES:
        what = f"is longer than {MAX_NAME_BYTES} bytes a part or {MAX_PATH_BYTES} in all"
        raise _bad(repr(path[:200]), what, "path_length")


def _bad(shown: str, problem: str, rule: str) -> InvalidArchive:
    return refuse(rule, f"The file name {shown} {problem}.")


class Names:
    """The names seen so far; two that any file system could take for the same one are refused.

    Digests stand for the names: 100 000 of 1 KiB, and all the directories above them, would take gigabytes.
    """

    def __init__(self, max_directories: int) -> None:
        self._max_directories = max_directories
        self._files: dict[bytes, bytes] = {}  # the name's digest under the folded name's, as the directories'
        self._directories: dict[bytes, bytes] = {}
        self._listed: set[bytes] = set()  # those directories that have entries of their own
        self._last_parent = ""  # whose name is taken: most files lie beside the one before

    def add_file(self, path: str) -> None:
        """The file's name is taken."""
        folded = _folded(path)
        key = _digest(folded)
        name = key if folded == path else _digest(path)
        if self._files.get(key) == name:
            raise refuse("duplicate", f"The archive has two entries {path!r}.")
        if key in self._files:
            raise _differs_in_case(path)
        if key in self._directories:
            raise _two_kinds(path)
        self._files[key] = name
        parent = path.rpartition("/")[0]
        if parent != self._last_parent:
            self._add_parents(path, folded)
            self._last_parent = parent

    def add_directory(self, path: str) -> None:
        """The directory's name (without its slash) and those of its parents are taken."""
        folded = _folded(path)
        self._add_parents(path + "/", folded + "/")
        key = _digest(folded)
        if key in self._listed:
            raise refuse("duplicate", f"The archive has two entries {path + '/'!r}.")
        self._listed.add(key)

    def _add_parents(self, path: str, folded: str) -> None:
        while "/" in path:
            path, folded = path.rpartition("/")[0], folded.rpartition("/")[0]
            key, name = _digest(folded), _digest(path)
            known = self._directories.get(key)
            if known == name:
                return  # and so are those above it
            if known is not None:
                raise _differs_in_case(path)
            if key in self._files:
                raise _two_kinds(path)
            self._directories[key] = name
            if len(self._directories) > self._max_directories:
                raise refuse(
                    "too_many_entries", f"The archive has more than {self._max_directories} directories."
                )


def _differs_in_case(path: str) -> InvalidArchive:
    return refuse("collision", f"{path!r} differs only in case from another name in the archive.")


def _two_kinds(path: str) -> InvalidArchive:
    return refuse("collision", f"{path!r} is both a file and a directory.")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _folded(path: str) -> str:
    """Return what is the same for names that a file system may confuse; it has the path's slashes and no others."""
    return unicodedata.normalize("NFC", path.casefold())
