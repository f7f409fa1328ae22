"""Which names an archive may hold: plain relative paths that mean one file each, on every system."""

import re
import unicodedata

from ci_common.errors import InvalidArchive
from ci_persistence.zip_format import refuse

MAX_DEPTH = 32
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1024
_FORBIDDEN = re.compile(r"[\\:\x00-\x1f\x7f-\x9f]")


def checked_path(raw: bytes) -> str:
    """Return the name as a path of our kind; raises InvalidArchive, since repairing it would be guessing."""
    # Whatever the entry's UTF-8 flag says: Info-ZIP and macOS write UTF-8 without setting it.
    try:
        path = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(repr(raw[:200]), "is not UTF-8", "encoding") from error
    if unicodedata.normalize("NFC", path) != path:
        raise _bad(repr(path[:200]), "is not in Unicode's composed form (NFC)", "encoding")
    _check_characters(path)
    _check_components(path)
    return path


def _check_characters(path: str) -> None:
    found = _FORBIDDEN.search(path)
    if found:
        raise _bad(repr(path[:200]), f"contains the character {found[0]!r}", "path")


def _check_components(path: str) -> None:
    shown = repr(path[:200])
    parts = path.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise _bad(shown, "is not a plain relative path", "path")
    if len(parts) > MAX_DEPTH:
        raise _bad(shown, f"is more than {MAX_DEPTH} levels deep", "path_length")
    too_long = any(len(part.encode()) > MAX_NAME_BYTES for part in parts)
    if too_long or len(path.encode()) > MAX_PATH_BYTES:
        raise _bad(
            shown, f"is longer than {MAX_NAME_BYTES} bytes a part or {MAX_PATH_BYTES} in all", "path_length"
        )


def _bad(shown: str, problem: str, rule: str) -> InvalidArchive:
    return refuse(rule, f"The file name {shown} {problem}.")


class Names:
    """The names seen so far; two that any file system could take for the same one are refused."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}  # under their folded names, as the directories
        self._directories: dict[str, str] = {}

    def add_file(self, path: str) -> None:
        """The file's name is taken."""
        key = _folded(path)
        if self._files.get(key) == path:
            raise refuse("duplicate", f"The archive has two entries {path!r}.")
        if key in self._files:
            raise refuse("collision", f"{self._files[key]!r} and {path!r} differ only in case.")
        if key in self._directories:
            raise refuse("collision", f"{path!r} is both a file and a directory.")
        self._files[key] = path
        self._add_parents(path, key)

    def add_directory(self, path: str) -> None:
        """The directory's name (without its slash) and those of its parents are taken."""
        self._add_parents(path + "/", _folded(path) + "/")

    def _add_parents(self, path: str, key: str) -> None:
        while "/" in path:
            path, key = path.rpartition("/")[0], key.rpartition("/")[0]
            known = self._directories.get(key)
            if known == path:
                return  # and so are those above it
            if known is not None:
                raise refuse("collision", f"{known!r} and {path!r} differ only in case.")
            if key in self._files:
                raise refuse("collision", f"{self._files[key]!r} is both a file and a directory.")
            self._directories[key] = path


def _folded(path: str) -> str:
    """Return what is the same for names that a file system may confuse; it has the path's slashes and no others."""
    return unicodedata.normalize("NFC", path.casefold())
