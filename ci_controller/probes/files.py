"""Files of the kernel, the host and others, within the container's view."""

# ruff: noqa: PTH110, PTH112, PTH116, PTH118, PTH207, PTH208, PTH211 - paths of the kernel's; pathlib is no clearer here

from __future__ import annotations

import glob
import os
import re
import socket
import stat
import tempfile
from pathlib import Path
from typing import Iterable  # noqa: UP035 - 3.8

from ci_controller.probes.attempt import probe

_SOCKETS = (
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
)
_OF_THE_ENGINE = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|^DOCKER_|^CI_(?!REPORT)", re.IGNORECASE)
_FOREIGN = re.compile(rb"dockerd|containerd|ci-controller|ci-server|uvicorn")


def _opened(paths: Iterable[str], flags: int) -> str | None:
    """Return the first that can be opened; nothing is written to it."""
    for path in paths:
        try:
            os.close(os.open(path, flags))
        except OSError:
            continue
        return path
    return None


@probe
def trigger_sysrq() -> str | None:
    """Open the file that crashes or reboots the machine by one letter."""
    return _opened(["/proc/sysrq-trigger"], os.O_WRONLY)


@probe
def write_kernel_settings() -> str | None:
    """Open any setting of the kernel for writing, /proc/sys/kernel/core_pattern first."""
    return _opened(
        ["/proc/sys/kernel/core_pattern", *glob.glob("/proc/sys/kernel/*"), *glob.glob("/proc/sys/[fv]?/*")],
        os.O_WRONLY,
    )


@probe
def write_sys() -> str | None:
    """Open a file below /sys/kernel or /sys/module for writing."""
    return _opened(
        [
            *glob.glob("/sys/kernel/*"),
            *glob.glob("/sys/kernel/mm/*/*"),
            *glob.glob("/sys/module/*/parameters/*"),
        ],
        os.O_WRONLY,
    )


@probe
def write_cgroup() -> str | None:
    """Open one's own limits for writing, or the file whose program the host runs (release_agent)."""
    names = ("release_agent", "cgroup.procs", "memory.max", "memory.limit_in_bytes", "pids.max")
    found = [path for name in names for path in glob.glob(f"/sys/fs/cgroup/**/{name}", recursive=True)]
    return _opened(found, os.O_WRONLY)


@probe
def read_kernel_memory() -> str | None:
    """Read the kernel's memory."""
    with Path("/proc/kcore").open("rb") as file:
        return "its head" if file.read(16) else None


@probe
def read_masked_files() -> str | None:
    """Read what tells of the whole machine: keys, timers, firmware."""
    for path in ("/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi/scsi"):
        if os.path.exists(path) and os.stat(path).st_rdev == 0 and _opened([path], os.O_RDONLY):
            return path
    return "/sys/firmware" if os.path.isdir("/sys/firmware") and os.listdir("/sys/firmware") else None


@probe
def open_devices() -> str | None:
    """Open memory or a disk as a device."""
    names = "mem kmem port kvm vda sda nvme0n1 xvda fuse mapper/control net/tun"
    return _opened([f"/dev/{name}" for name in names.split()], os.O_RDONLY)


@probe
def make_device() -> str | None:
    """Make a device file for the first disk."""
    path = os.path.join(tempfile.mkdtemp(), "disk")
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(8, 0))
    return path


@probe
def reach_engine_socket() -> str | None:
    """Reach the container engine, which is root on the host."""
    for path in _SOCKETS:
        with socket.socket(socket.AF_UNIX) as connection:
            if connection.connect_ex(path) == 0:
                return path
    return None


@probe
def write_system_files() -> str | None:
    """Write where programs and accounts of the image are."""
    return _opened(
        ["/etc/passwd", "/etc/ld.so.cache", "/usr/bin/env", "/etc/resolv.conf", "/etc/hosts"], os.O_WRONLY
    )


@probe
def read_shadow_through_link() -> str | None:
    """Read the password hashes through a symbolic link in a directory of one's own."""
    link = os.path.join(tempfile.mkdtemp(), "link")
    os.symlink("/etc/shadow", link)
    return _opened([link], os.O_RDONLY)


@probe
def leave_through_root_of_process_1() -> str | None:
    """Go up to another root directory through a link into /proc."""
    link = os.path.join(tempfile.mkdtemp(), "link")
    os.symlink("/proc/1/root", link)
    return f"{len(os.listdir(link))} entries"


@probe
def find_foreign_mounts() -> str | None:
    """Find a directory of the host or of another job: a cache, an archive, a log."""
    with Path("/proc/self/mountinfo").open() as file:
        mounts = [line.split() for line in file]
    for fields in mounts:
        kind, place = fields[fields.index("-") + 1], fields[4]
        if (
            kind in ("ext4", "xfs", "btrfs", "zfs", "nfs", "nfs4", "9p", "virtiofs")
            and place not in _OF_THE_ENGINE
        ):
            return f"{fields[3]} at {place}"
    return None


@probe
def see_foreign_processes() -> str | None:
    """See processes of the host or of other jobs."""
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with Path(path).open("rb") as file:
            found = _FOREIGN.search(file.read().split(b"\0")[0])
        if found:
            return found.group().decode()
    return None


@probe
def find_secrets_in_environment() -> str | None:
    """Find a key or a setting of the host among the environment variables."""
    found = sorted(name for name in os.environ if _SECRET.search(name))
    return ", ".join(found) or None
