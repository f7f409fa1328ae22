"""Limits: each is exceeded, within bounds that do not harm a machine that lacks them."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import tempfile
import time
from pathlib import Path

from ci_controller.probes.attempt import probe, target

_MANY_PROCESSES = 600  # above the default of CI_JOB_PIDS
_MANY_FILES = 6000
_SHARED_BYTES = 96 * 1024**2
_HUGE_FILE = 1 << 40
_NO_LIMIT = 1 << 50
_CHUNK = 16 * 1024**2


@probe
def raise_limits() -> str | None:
    """Raise the limit of open files again."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
    return f"{hard + 1} files"


@probe
def dump_core() -> str | None:
    """Have the kernel write core files, which the host's program for them would get."""
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
    return "allowed"


@probe
def open_many_files() -> str | None:
    """Open more files than a job may."""
    opened = [os.dup(0) for _ in range(_MANY_FILES)]
    return f"{len(opened)} files"


@probe
def make_huge_file() -> str | None:
    """Make one file larger than a job's whole disk, without writing it."""
    with tempfile.TemporaryFile() as file:
        os.truncate(file.fileno(), _HUGE_FILE)
    return f"{_HUGE_FILE} bytes"


@probe
def fill_shared_memory() -> str | None:
    """Fill /dev/shm beyond its size."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        for _ in range(_SHARED_BYTES // _CHUNK):
            file.write(bytes(_CHUNK))
            file.flush()
    return f"{_SHARED_BYTES} bytes"


@probe
def lower_own_oom_score() -> str | None:
    """Become the last to be killed for memory on this host."""
    Path("/proc/self/oom_score_adj").write_text("-1000")
    return "lowered"


@probe
def fork_bomb() -> str | None:
    """Start processes until nobody can start one any more."""
    children: list[int] = []
    try:
        while len(children) < _MANY_PROCESSES:
            children.append(_sleeper())
    except BlockingIOError:
        return None
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return f"{_MANY_PROCESSES} processes"


def _sleeper() -> int:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    return child


@probe
def fill_memory() -> str | None:
    """Take more memory than a job may have, swap included."""
    limit = _memory_limit()
    if limit >= _NO_LIMIT:
        return "there is no limit"
    Path("/proc/self/oom_score_adj").write_text("1000")  # this process, not the tests
    taken: list[mmap.mmap] = []
    while len(taken) * _CHUNK <= limit:
        taken.append(mmap.mmap(-1, _CHUNK))
        for page in range(0, _CHUNK, 4096):
            taken[-1][page] = 1
    return f"{len(taken) * _CHUNK} bytes"


@probe
def fill_disk() -> str | None:
    """Write file after file, past the disk a job may have."""
    named = target("disk", "the limit is enforced by the controller, which stops the whole job")
    size, seconds = named.split(":")  # how many bytes, and how long to wait for the end
    with tempfile.TemporaryDirectory() as folder:
        for number in range(int(size) // _CHUNK):
            Path(folder, str(number)).write_bytes(bytes(_CHUNK))
        time.sleep(float(seconds))
    return f"{size} bytes, and nobody minded"


def _memory_limit() -> int:
    group = Path("/sys/fs/cgroup")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        if (group / name).exists():
            text = (group / name).read_text().strip()
            return int(text) if text.isdigit() else _NO_LIMIT
    return _NO_LIMIT
