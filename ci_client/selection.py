"""Which files of a listing go into the archive, and why the others do not. Reads the tree, writes nothing."""

import os
import re
import stat
import threading
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ci_client.file_index import FileIndex
from ci_client.listing import Listing, list_project
from ci_common.errors import NotAProject

_FILE_TYPE, _IS_WINDOWS = stat.S_IFMT(0o177777), os.name == "nt"
BIG_FILE = 50_000_000  # bytes of a file that one is told of
_SECRET_NAMES = (".netrc", ".pypirc", ".pgpass", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519")
_SECRET_SUFFIXES = (".pem", ".key", ".p12", ".pfx", ".jks", ".keystore")
_SECRET_ENDS = (*_SECRET_NAMES, *_SECRET_SUFFIXES)
_ENV_EXAMPLES = (".example", ".sample", ".template", ".dist", ".defaults")
_MAX_DEPTH, _MAX_NAME, _MAX_PATH = 32, 255, 1024  # the server's rules for names
_NAMED = 5  # files that one warning names
# Names that break no rule, recognised in one step: most of them are like this, and there may be many thousand.
_ORDINARY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,30}", re.ASCII)


class Entry(NamedTuple):
    """One file of the archive: its name there and where its bytes are."""

    path: str
    source: str
    info: os.stat_result  # as it was when it was selected
    executable: bool

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.info.st_size


@dataclass(frozen=True, slots=True)
class Selection:
    """What goes, in the order of the archive; what does not, by path, with the reason; what should be told."""

    root: Path
    entries: tuple[Entry, ...]
    skipped: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)


def select_files(
    root: Path,
    *,
    include_ignored: bool = False,
    ahead: "LookAhead | None" = None,
    offered: list[str] | None = None,
) -> Selection:
    """Return what goes of a project; raises NotAProject where nothing could be tested.

    `offered` is what git has listed already, if it has.
    """
    if not root.is_dir():
        raise NotAProject(f"{root} is not a directory.")
    looked_up = ahead.result if ahead else dict[str, os.stat_result]
    listing = list_project(root, include_ignored=include_ignored, looked_up=looked_up, offered=offered)
    selector = _Selector(root, listing, ahead.index.files if ahead else ())
    selector.add_all(listing.paths)
    entries = tuple(sorted(selector.entries.values(), key=itemgetter(0)))  # the order of UTF-8 as well
    _require_python(root.resolve(), entries, listing.skipped)
    return Selection(root, entries, listing.skipped, (*listing.warnings, *_surprises(entries)))


class LookAhead:
    """Files that were entries the last time are looked up in a thread, while git lists what there is.

    Their names passed the rules, so they are not judged again.
    """

    def __init__(self, root: Path, index: FileIndex) -> None:
        self.index = index
        self.base = os.path.join(root, "")  # noqa: PTH118 - as below
        self._stale: list[str] = []
        self._infos: dict[str, os.stat_result] = {}
        self._thread = threading.Thread(target=self._look, daemon=True, name="look")
        self._thread.start()

    def result(self) -> Mapping[str, os.stat_result]:
        """Return what `lstat` said of those that are there."""
        self._thread.join()
        return self._infos

    def stale(self) -> list[str]:
        """Return those of which only reading tells the hash."""
        self._thread.join()
        return self._stale

    def _look(self) -> None:
        self._stale = self.index.stale(self.base, self._infos)


class _Refused(Exception):
    """A link that does not go; the text says why."""


class _Selector:
    """Takes paths one by one and sorts them into entries and skipped ones.

    A link goes as a copy of what it leads to, and never brings in what would not go by its own name. What lies
    behind a link (a name in git's index may lead through one) is judged as a link is.
    """

    def __init__(self, root: Path, listing: Listing, known: Container[str]) -> None:
        self.entries: dict[str, Entry] = {}
        self._base = os.path.join(root, "")  # noqa: PTH118 - a Path for each of many thousand files takes a second
        self._root = root
        self._real_root = root.resolve()
        self._listing = listing
        self._known = known
        self._linked: dict[str, bool] = {"": False}  # directory -> whether a link leads to it

    @cached_property
    def _offered(self) -> set[str]:
        """What goes by its own name, if it can be read."""
        return {path for path in self._listing.paths if not _forbidden(path)}

    def add_all(self, paths: Iterable[str]) -> None:
        """Each path is an entry, or skipped with a reason."""
        infos, known, linked, base = self._listing.infos, self._known, self._linked, self._base
        for path in paths:
            info = infos.get(path)
            cut = path.rfind("/")
            # What nearly all files of a large tree are, in few steps; the other way leads to the same.
            if (
                info is not None
                and path in known
                and linked.get(path[:cut] if cut > 0 else "") is False
                and (mode := info.st_mode) & _FILE_TYPE == stat.S_IFREG
                and not _IS_WINDOWS
            ):
                self.entries[path] = Entry(path, base + path, info, mode & stat.S_IXUSR != 0)
            else:
                self._add(path, path, within_link=False)

    def _add(self, name: str, path: str, *, within_link: bool) -> None:
        """The file at a path of the project is an entry under that name, or the name is skipped with a reason."""
        if problem := _forbidden(name):
            return self._skip(name, problem, warn=True)
        source = self._base + path
        try:
            info = self._listing.infos.get(path) or os.lstat(source)
        except FileNotFoundError:
            return self._skip(name, "deleted")
        except OSError as error:
            return self._skip(name, f"cannot be read: {error.strerror}", warn=True)
        if stat.S_ISLNK(info.st_mode) or self._is_linked(path.rpartition("/")[0]):
            return self._add_link(name, Path(source), within_link=within_link)
        return self._add_file(name, source, info)

    def _is_linked(self, directory: str) -> bool:
        known = self._linked.get(directory)
        if known is None:
            above = directory.rpartition("/")[0]
            known = self._is_linked(above) or (self._root / directory).is_symlink()
            self._linked[directory] = known
        return known

    def _add_file(self, path: str, source: str, info: os.stat_result) -> None:
        if not stat.S_ISREG(info.st_mode):
            return self._skip(path, f"{_kind(info.st_mode)}, not a file", warn=True)
        executable = (
            bool(info.st_mode & stat.S_IXUSR) if os.name != "nt" else path in self._listing.executable
        )
        name = path if path.isascii() else unicodedata.normalize("NFC", path)  # macOS decomposes
        self.entries[name] = Entry(name, source, info, executable)
        return None

    def _add_link(self, name: str, source: Path, *, within_link: bool) -> None:
        try:
            target, info = self._target_of(source)
            if not stat.S_ISDIR(info.st_mode):
                self._require_offered(target)
                return self._add_file(name, str(self._real_root / target), info)
            if within_link:  # expanding these as well would not end where links go in a circle
                raise _Refused("symbolic link to a directory inside of a linked directory")
            self._add_linked_directory(name, target)
        except _Refused as refusal:
            return self._skip(name, str(refusal), warn=True)

    def _target_of(self, source: Path) -> tuple[str, os.stat_result]:
        """Return the path in the project that a link leads to, and what is there; raises _Refused."""
        try:
            real = source.resolve(strict=True)
            info = real.stat()
        except (OSError, RuntimeError) as error:
            raise _Refused("symbolic link to nothing") from error
        if not real.is_relative_to(self._real_root):
            raise _Refused("symbolic link out of the project")
        inner = real.relative_to(self._real_root)
        if ".git" in inner.parts:
            raise _Refused("symbolic link into .git")
        return inner.as_posix(), info

    def _require_offered(self, target: str) -> None:
        """Raises _Refused for the target of a link that is not sent by its own name."""
        if target in self._offered:
            return
        above = [f"{parent}/" for parent in PurePosixPath(target).parents]
        known = (self._listing.skipped[path] for path in (target, *above) if path in self._listing.skipped)
        reason = next((f": {reason}" for reason in known), "")
        raise _Refused(f"symbolic link to {target}, which is not sent{reason}")

    def _add_linked_directory(self, name: str, directory: str) -> None:
        """The files that the project has in the linked directory go a second time; raises _Refused if it has none."""
        prefix = "" if directory == "." else f"{directory}/"
        copied = [path for path in self._listing.paths if path in self._offered and path.startswith(prefix)]
        if not copied:
            raise _Refused(f"symbolic link to {directory}, of which nothing is sent")
        for path in copied:
            if not path.startswith(f"{name}/"):
                self._add(f"{name}/{path.removeprefix(prefix)}", path, within_link=True)

    def _skip(self, path: str, reason: str, *, warn: bool = False) -> None:
        self._listing.skipped[path] = reason
        if warn:
            self._listing.warnings.append(f"{path!a}: not sent ({reason})")


def _forbidden(path: str) -> str | None:
    """Return why no archive may hold this name, None if it may."""
    if len(path) <= _MAX_NAME and _ORDINARY.fullmatch(path):
        return None
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    for char in path:
        if char in "\\:" or unicodedata.category(char) == "Cc":
            return f"no archive may hold a name with {char!a} in it"
    parts = path.split("/")
    if any(part in ("", ".", "..") or part.casefold() == ".git" for part in parts):
        return "no file of a project has such a path"  # git lists what its index says, and that is but a file
    if len(parts) > _MAX_DEPTH:
        return f"it is more than {_MAX_DEPTH} directories deep"
    if len(path.encode()) > _MAX_PATH or any(len(part.encode()) > _MAX_NAME for part in parts):
        return f"its name is longer than {_MAX_NAME} bytes, or {_MAX_PATH} with its directories"
    return None


def _kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "socket"
    if stat.S_ISFIFO(mode):
        return "named pipe"
    return "directory" if stat.S_ISDIR(mode) else "device"


def _require_python(root: Path, entries: tuple[Entry, ...], skipped: dict[str, str]) -> None:
    if any(entry.path.endswith(".py") for entry in entries):
        return
    if not entries and not skipped:
        raise NotAProject(f"{root} is empty: run this in the root of a Python project, or name it by -C.")
    kept_back = [path for path in skipped if path.endswith((".py", "/"))]
    hint = f" ({', '.join(kept_back[:3])} stays behind: {skipped[kept_back[0]]})" if kept_back else ""
    raise NotAProject(
        f"{root} has no Python file to send{hint}: run this in the root of a Python project, or name it by -C."
    )


def _surprises(entries: tuple[Entry, ...]) -> Iterator[str]:
    secrets = [
        path
        for path, _, _, _ in entries
        if (path.endswith(_SECRET_ENDS) or ".env" in path) and _is_secret(path[path.rfind("/") + 1 :])
    ]
    if secrets:
        yield f"this looks secret and is sent: {_some(secrets)} (keep it back by .ciignore)"
    big = [
        f"{path} ({info.st_size / 1e6:.0f} MB)" for path, _, info, _ in entries if info.st_size >= BIG_FILE
    ]
    if big:
        yield f"big files are sent: {_some(big)} (keep them back by .ciignore)"


def _is_secret(name: str) -> bool:
    if name == ".env" or name.startswith(".env."):
        return not name.endswith(_ENV_EXAMPLES)
    return name in _SECRET_NAMES or name.endswith(_SECRET_SUFFIXES)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
