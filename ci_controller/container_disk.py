"""What containers hold and wrote on the engine's disk, as the engine and the kernel tell.

Linux charges a buffered write to its cgroup only under cgroup v2: under v1 `blkio` saw 0 of 300 MiB that a
container had written [measured]. The kernel also counts per process (`/proc/<pid>/io`): a process that ended is
counted with the one that waited for it. Neither sees `fallocate`, so what the container holds counts too, with
the files it has open but unlinked. All of /proc is for root alone; else the engine's size of the layer is left.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ci_controller.container_runtime import DiskUse

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_BLOCK: Final = 512  # what st_blocks counts in


@dataclass(frozen=True, slots=True)
class _Held:
    """What some files take of the disk."""

    size: int = 0
    files: int = 0

    def __add__(self, other: "_Held") -> "_Held":
        return _Held(self.size + other.size, self.files + other.files)


def disk_use(stats: Mapping[str, Any], inspected: Mapping[str, Any], layer_bytes: int) -> DiskUse:
    """Return what a running container did to the disk, from the engine's answers about it."""
    pid = int(inspected["State"]["Pid"])
    pids = _processes(pid)
    driver: Mapping[str, str] = inspected["GraphDriver"].get("Data") or {}
    layer = _layer(driver.get("UpperDir"))
    held = (layer or _Held(layer_bytes)) + _unlinked(pid, pids)
    written = max(block_writes(stats), sum(map(_written_by, pids)))
    return DiskUse(max(written, held.size), held.files if layer else None)


def block_writes(stats: Mapping[str, Any]) -> int:
    """Return the bytes written to block devices, of the engine's statistics of a container (cgroup v1 or v2)."""
    counted: Mapping[str, Any] = stats.get("blkio_stats") or {}
    entries: Sequence[Mapping[str, Any]] = counted.get("io_service_bytes_recursive") or []
    return sum(int(entry["value"]) for entry in entries if str(entry["op"]).lower() == "write")


def process_list(membership: str) -> str | None:
    """Return where the processes of a cgroup are listed, below the cgroups' mount point, from a
    `/proc/<pid>/cgroup` (cgroup v1: that of the pids controller; v2: the only one)."""
    unified = None
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if "pids" in controllers.split(","):
            return f"pids{path}/cgroup.procs"
        if not controllers:
            unified = f"{path.lstrip('/')}/cgroup.procs"
    return unified


def written_bytes(io: str) -> int:
    """Return what a process and those it waited for wrote, from a `/proc/<pid>/io`."""
    counted = dict(line.split(": ", 1) for line in io.splitlines())
    return max(0, int(counted["write_bytes"]) - int(counted["cancelled_write_bytes"]))


def _processes(pid: int) -> list[str]:
    with suppress(OSError, ValueError):
        if found := process_list((_PROC / str(pid) / "cgroup").read_text()):
            return (_CGROUPS / found).read_text().split()
    return [str(pid)]


def _written_by(pid: str) -> int:
    with suppress(OSError, KeyError, ValueError):  # it ended, or we are not root
        return written_bytes((_PROC / pid / "io").read_text())
    return 0


def _layer(path: str | None) -> _Held | None:
    """Return what a writable layer holds, None where we may not look (not root, or no overlay)."""
    if path is None or not os.access(path, os.R_OK | os.X_OK):
        return None
    return sum(map(_one, _entries(path)), _Held())


def _entries(folder: str) -> Iterator[os.stat_result]:
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(OSError):  # it was removed meanwhile
                yield os.lstat(f"{path}/{name}")


def _unlinked(pid: int, pids: Iterable[str]) -> _Held:
    """Return what the container's processes hold open that has no name any more."""
    try:
        device = (_PROC / str(pid) / "root").stat().st_dev  # files in memory are on another one
    except OSError:
        return _Held()
    found = {
        entry.st_ino: entry
        for entry in _open_files(pids)
        if entry.st_nlink == 0 and entry.st_dev == device and stat.S_ISREG(entry.st_mode)
    }
    return sum(map(_one, found.values()), _Held())


def _open_files(pids: Iterable[str]) -> Iterator[os.stat_result]:
    for pid in pids:
        with suppress(OSError):
            for descriptor in (_PROC / pid / "fd").iterdir():
                with suppress(OSError):
                    yield descriptor.stat()


def _one(entry: os.stat_result) -> _Held:
    return _Held(entry.st_blocks * _BLOCK, 1)
