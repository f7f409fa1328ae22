"""A file system of a few megabytes, mounted for one test: what is full there is full for nobody else."""

import errno
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_CHUNK = 64 * 1024


@contextmanager
def small_disk(path: Path, size: str = "16m", inodes: int = 0) -> Generator[Path]:
    """A tmpfs of that size (and so many inodes, 0: any number) is mounted at `path`; afterwards it is gone."""
    assert os.geteuid() == 0, (
        "this test mounts a small tmpfs: run it as root (in CI: in a privileged container)"
    )
    path.mkdir(exist_ok=True)
    options = f"size={size}" + (f",nr_inodes={inodes}" if inodes else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "ci-test", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, name: str = "filler", leave: int = 0) -> Path:
    """There are at most `leave` bytes free; returns the file that has to be removed for more."""
    filler = disk / name
    with filler.open("wb", buffering=0) as file:
        try:
            while _free(disk) > leave:
                file.write(b"x" * min(_CHUNK, _free(disk) - leave))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return filler


def _free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize
