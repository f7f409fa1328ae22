"""A project whose files have the names of the last time: then only those that changed are looked at, not all of them.

Links, nested repositories, names that do not go and files that vanished all make another list of names, or a file that
is none: whatever is not as plain as that, a whole scan finds out.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ci_client.blobs import Blob
from ci_client.file_index import FileIndex, digest_of, file_of
from ci_client.scan import Found, Scan, read
from ci_client.selection import BIG_FILE, LookAhead
from ci_client.tree import File, Tree, edited_tree, parent_of, parents_of


def look_again(
    ahead: LookAhead, offered: list[str], began: int, on_blob: Callable[[Blob], None]
) -> Scan | None:
    """Return the project's tree, None where only a whole scan tells it; `began` is as there.

    `offered` is all that git lists, and nothing else decides what goes. What is not in the tree of the last time is
    passed to `on_blob`.
    """
    known, stale = ahead.index, ahead.stale()
    if known.warned or os.name == "nt" or set(offered) != known.files.keys():
        return None
    if not _are_plain(ahead, stale):
        return None
    index = replace(known, scanned_at=began, files=dict(known.files))
    for path in stale:
        try:
            blob = read(path, ahead.base + path, index)
        except OSError:
            return None
        if path not in index.files:  # it is being written
            return None
        if blob.digest != digest_of(known.files[path]):
            on_blob(blob)
    tree = _edited(index, [path for path in stale if _differs(path, known, index)])
    for digest, data in tree.listings.items():
        on_blob(Blob(digest, len(data), data=data))
    index.directories = tree.directories
    return Scan(lambda: _found(index, ahead.base), tree, index, (), len(stale))


def _are_plain(ahead: LookAhead, stale: Iterable[str]) -> bool:
    """Tell whether all are files of their own, of which nobody needs to be told, in directories that are no links."""
    infos = ahead.result()
    for path in stale:
        info = infos.get(path)
        if info is None or not stat.S_ISREG(info.st_mode) or info.st_size >= BIG_FILE:
            return False
    return not any(os.path.islink(ahead.base + path) for path in ahead.index.directories if path)  # noqa: PTH114 - as there


def _differs(path: str, before: FileIndex, now: FileIndex) -> bool:
    return file_of(path, before.files[path]) != file_of(path, now.files[path])


def _edited(index: FileIndex, edited: list[str]) -> Tree:
    dirty = parents_of(edited)
    files: defaultdict[str, list[File]] = defaultdict(list)
    for path, record in index.files.items():
        if parent_of(path) in dirty:
            files[parent_of(path)].append(file_of(path, record))
    return edited_tree(index.directories, {path: files[path] for path in dirty})


def _found(index: FileIndex, base: str) -> Iterator[Found]:
    return ((file_of(path, record), base + path) for path, record in index.files.items())
