"""Removing what an installation left, whoever made it and however."""

# ruff: noqa: PTH101, PTH108, PTH112, PTH114, PTH116, PTH118 - pathlib is a tenth of a second of imports

from __future__ import annotations

import os
import shutil


def empty(directory: str) -> None:
    """Nothing is in the directory any more; raises OSError."""
    if os.stat(directory).st_uid == os.geteuid():  # else it is the image's, and nobody could close it
        os.chmod(directory, 0o775)  # noqa: S103 - another user of the group comes after us
    for name in os.listdir(directory):  # noqa: PTH208
        remove(os.path.join(directory, name))


def remove(path: str) -> None:
    """There is nothing of that name; raises OSError."""
    if os.path.islink(path) or not os.path.isdir(path):
        if os.path.lexists(path):
            os.unlink(path)
        return
    os.chmod(path, 0o700)
    for directory, names, _ in os.walk(path):
        for inner in (os.path.join(directory, name) for name in names):
            if not os.path.islink(inner):
                os.chmod(inner, 0o700)  # an installer may have closed it, even to us
    shutil.rmtree(path)
