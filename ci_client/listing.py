"""Which paths a project has to offer: what git would take, else everything but an explicit list. Names, no contents."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ci_client.git import GitFailed, ls_files
from ci_common.errors import InvalidRequest

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

CIIGNORE = ".ciignore"

# Where git does not say what belongs to the project. A leading slash means: only at the root.
DEFAULT_IGNORES = (
    *(".git", ".hg/", ".svn/"),
    *(".venv/", "venv/", "node_modules/", ".tox/", ".nox/", ".direnv/", "__pypackages__/"),
    *("__pycache__/", "*.pyc", "*.pyo", ".mypy_cache/", ".ruff_cache/", ".pytest_cache/", ".hypothesis/"),
    *("/build/", "/dist/", "*.egg-info/", ".eggs/", "*.egg", "htmlcov/", ".coverage", ".coverage.*"),
    *(".ipynb_checkpoints/", ".DS_Store", "Thumbs.db"),
)

IGNORED_BY_GIT = "ignored by git"
BY_CIIGNORE = f"excluded by {CIIGNORE}"
BY_DEFAULT = "not sent by default"


_OURS = ("-co", "--exclude-standard")
_IGNORED = ("-oi", "--exclude-standard", "--directory")
LookedUp = Callable[[], Mapping[str, os.stat_result]]  # by path; of links themselves


@dataclass(slots=True)
class Listing:
    """Paths relative to the root, with slashes; and what stays behind, with the reason."""

    paths: list[str] = field(default_factory=list[str])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    infos: dict[str, os.stat_result] = field(
        default_factory=dict[str, os.stat_result]
    )  # of links, not targets
    executable: frozenset[str] = frozenset()  # where the file system does not know it, git does
    warnings: list[str] = field(default_factory=list[str])


def list_project(
    root: Path,
    *,
    include_ignored: bool = False,
    looked_up: LookedUp = dict,
    offered: list[str] | None = None,
) -> Listing:
    """Return what there is to send under a directory; with `include_ignored`, git is not asked.

    `looked_up` tells, once git has answered, what the caller has found out of files meanwhile; `offered` is what
    `offered_by_git` told, if that was asked already.
    """
    spec = _ciignore(root)
    listing = None if include_ignored else _git_listing(root, looked_up, offered)
    if listing is None or not (listing.paths or listing.skipped):
        # Nothing at all: the directory itself is ignored by a repository around it, which does not mean us.
        warnings = listing.warnings if listing else []
        listing = _walked(root)
        listing.warnings += warnings
    _leave_out_environments(listing)
    if spec:
        _exclude(listing, spec)
    return listing


def offered_by_git(root: Path) -> list[str] | None:
    """Return the names that git lists, where all else that decides what goes is git; None where it is not."""
    if (root / CIIGNORE).exists():
        return None
    try:
        (ours,) = ls_files(root, _OURS)
    except GitFailed:
        return None  # a whole listing asks again, and tells
    return ours


def _git_listing(root: Path, looked_up: LookedUp, offered: list[str] | None) -> Listing | None:
    """Return what git lists, None where it cannot say."""
    try:
        return _list_repository(root, "", set(), looked_up, offered)
    except GitFailed as error:
        if not any((parent / ".git").exists() for parent in (root, *root.parents)):
            return None
        walked = Listing()
        walked.warnings.append(
            f"git does not list this work tree ({error}): everything but the usual artefacts is sent"
        )
        return walked


def _list_repository(
    root: Path, prefix: str, seen: set[Path], looked_up: LookedUp, offered: list[str] | None = None
) -> Listing:
    """Return the files of one repository and of those nested in it, submodules or not."""
    directory = root / prefix
    listing = Listing()
    queries = (_IGNORED, _OURS) if offered is None else (_IGNORED,)
    ignored, ours = *ls_files(directory, *queries), *([] if offered is None else [offered])
    listing.skipped = {prefix + name: IGNORED_BY_GIT for name in ignored}
    base = os.path.join(root, "")  # noqa: PTH118 - a Path for each of many thousand files takes a second
    paths, infos, known = listing.paths, listing.infos, looked_up()
    for name in sorted(set(ours)):
        path = prefix + name.rstrip("/")
        info = known.get(path) or _lstat(base + path)
        if info and stat.S_ISDIR(info.st_mode):
            _add_nested(listing, root, path, seen, looked_up)
            continue
        paths.append(path)
        if info:
            infos[path] = info
    if os.name == "nt":
        listing.executable |= {prefix + name for name in _tracked_executables(directory)}
    return listing


def _add_nested(listing: Listing, root: Path, path: str, seen: set[Path], looked_up: LookedUp) -> None:
    real = (root / path).resolve()
    if not (root / path / ".git").exists():
        listing.skipped[path] = "submodule that is not checked out"
        listing.warnings.append(f"{path}: the submodule is not checked out, so it is not sent")
    elif real not in seen:
        seen.add(real)
        nested = _list_repository(root, f"{path}/", seen, looked_up)
        listing.paths += nested.paths
        listing.infos |= nested.infos
        listing.skipped |= nested.skipped
        listing.executable |= nested.executable
        listing.warnings += nested.warnings


def _tracked_executables(directory: Path) -> Iterator[str]:
    (lines,) = ls_files(directory, ("-s",))
    for line in lines:
        entry, _, name = line.partition("\t")
        if entry.startswith("100755"):
            yield name


def _walked(root: Path) -> Listing:
    from pathspec import GitIgnoreSpec  # most projects are in git and have no .ciignore

    listing = Listing()
    _walk(root, "", GitIgnoreSpec.from_lines(DEFAULT_IGNORES), listing)
    return listing


def _walk(root: Path, prefix: str, spec: "GitIgnoreSpec", listing: Listing) -> None:
    """The listing holds everything under a directory that the patterns let through; links are not followed."""
    try:
        entries = sorted(os.scandir(root / prefix), key=lambda entry: entry.name)
    except OSError as error:
        listing.skipped[prefix] = f"cannot be read: {error.strerror}"
        listing.warnings.append(f"{prefix}: cannot be read ({error.strerror}), so it is not sent")
        return
    for entry in entries:
        path = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            if spec.match_file(f"{path}/") or Path(entry.path, "pyvenv.cfg").exists():
                listing.skipped[f"{path}/"] = BY_DEFAULT
            else:
                _walk(root, f"{path}/", spec, listing)
        elif spec.match_file(path):
            listing.skipped[path] = BY_DEFAULT
        else:
            listing.paths.append(path)


def _ciignore(root: Path) -> "GitIgnoreSpec | None":
    try:
        text = (root / CIIGNORE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{root / CIIGNORE} cannot be read: {error}") from error
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines(text.splitlines())
    except ValueError as error:
        raise InvalidRequest(f"{root / CIIGNORE} has a pattern that is none: {error}") from error


def _leave_out_environments(listing: Listing) -> None:
    """Virtual environments stay behind, also where git was not told to ignore them."""
    homes = tuple(path.removesuffix("pyvenv.cfg") for path in listing.paths if path.endswith("/pyvenv.cfg"))
    if homes:
        listing.skipped |= dict.fromkeys(homes, BY_DEFAULT)
        listing.paths = [path for path in listing.paths if not path.startswith(homes)]


def _exclude(listing: Listing, spec: "GitIgnoreSpec") -> None:
    kept: list[str] = []
    for path in listing.paths:
        if spec.match_file(path):
            listing.skipped[path] = BY_CIIGNORE
        else:
            kept.append(path)
    listing.paths = kept


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None  # gone, or out of reach: the one who wants to send it reports that
