"""The selected files with their hashes: of those that changed by reading them, of the others from the index."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import time_ns

from ci_client.blobs import SMALL, Blob
from ci_client.file_index import FileIndex, digest_of, facts
from ci_client.selection import Selection
from ci_client.tree import Directory, File, Tree, build_tree, parent_of

Found = tuple[File, str]  # a file with the size and the hash of what was read of it, and where it is
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Scan:
    """A project as it was found."""

    found: Callable[[], Iterable[Found]]
    tree: Tree
    index: FileIndex  # for the next scan
    warnings: tuple[str, ...]
    files_read: int

    def blobs(self) -> list[Blob]:
        """Return everything that the tree is made of, each once."""
        found = list(self.found())
        whole = build_tree(file for file, _ in found)  # also the listings that did not have to be made
        listings = [Blob(digest, len(data), data=data) for digest, data in whole.listings.items()]
        files = {digest: Blob(digest, size, path, source) for (path, _, size, digest), source in found}
        return [*files.values(), *listings]


def scan(
    selection: Selection,
    index: FileIndex,
    began: int,
    on_blob: Callable[[Blob], None] = lambda _: None,
    present: Collection[bytes] = (),
) -> Scan:
    """Return the project's tree; `began` is when the first file was looked at, by `time_ns`.

    Every blob of the tree but those `present` is passed to `on_blob` as soon as its hash is known. Files that vanish
    or cannot be read meanwhile are left out, with a warning.
    """
    found: list[Found] = []
    new_index = FileIndex(scanned_at=began)
    warnings: list[str] = []
    files_read = 0
    changed: set[str] = set()  # directories
    for entry in selection.entries:
        path, info = entry.path, entry.info
        known = index.known(path, info)
        if known is not None:
            new_index.files[path] = known
            digest = digest_of(known)
            found.append(((path, entry.executable, info.st_size, digest), entry.source))
            if digest not in present:
                on_blob(Blob(digest, info.st_size, path, entry.source))
        else:
            files_read += 1
            changed.add(parent_of(path))
            try:
                blob = read(path, entry.source, new_index)
            except OSError as error:
                warnings.append(f"{path}: not sent (cannot be read: {error.strerror})")
                continue
            found.append(((path, entry.executable, blob.size, blob.digest), entry.source))
            on_blob(blob)
    tree = build_tree((file for file, _ in found), _present(index.directories, present), changed)
    for digest, data in tree.listings.items():
        on_blob(Blob(digest, len(data), data=data))
    new_index.directories = tree.directories
    new_index.warned = bool(selection.warnings)
    return Scan(lambda: found, tree, new_index, tuple(warnings), files_read)


def _present(directories: Mapping[str, Directory], present: Collection[bytes]) -> dict[str, Directory]:
    """Return the directories whose listings need not be made, because nobody needs their bytes."""
    return {
        path: directory
        for path, directory in directories.items()
        if all(listing in present for listing in directory.listings)
    }


def now() -> int:
    """Return the time that an index compares with the times of files."""
    return time_ns()


def read(path: str, source: str, index: FileIndex) -> Blob:
    """Return what a file holds now; the index has it unless the file was written to meanwhile."""
    index.files.pop(path, None)
    with Path(source).open("rb") as file:
        before = os.fstat(file.fileno())
        if before.st_size <= SMALL:
            data = file.read()
            blob = Blob(sha256(data).digest(), len(data), path, source, data)
        else:
            running = sha256()
            while piece := file.read(_CHUNK):
                running.update(piece)
            blob = Blob(running.digest(), file.tell(), path, source)
        after = os.fstat(file.fileno())
    same = facts(before)
    if same == facts(after) and before.st_size == blob.size:
        index.files[path] = same + blob.digest
    return blob
