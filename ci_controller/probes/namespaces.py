"""Mounts and namespaces: the ways to another view of the machine."""

from __future__ import annotations

import os
import signal

from ci_controller.probes.attempt import considered, probe, raw_call, system_call

_NEW_USER, _NEW_NAMESPACE = 0x10000000, 0x00020000


@probe
def mount_tmpfs() -> str | None:
    """Mount a file system."""
    system_call("mount", b"none", b"/mnt", b"tmpfs", 0, None)
    return "mounted"


@probe
def mount_the_new_way() -> str | None:
    """Open a file system by the newer family of calls."""
    return f"descriptor {system_call('fsopen', b'tmpfs', 0)}"


@probe
def clone_mount() -> str | None:
    """Take a copy of a mount."""
    return f"descriptor {system_call('open_tree', -100, b'/', 1)}"


@probe
def unmount() -> str | None:
    """Unmount what hides a file of the kernel's."""
    system_call("umount2", b"/dev/shm", 2)
    return "unmounted"


@probe
def pivot_root() -> str | None:
    """Exchange the root of the file system."""
    return considered("pivot_root", b"/", b"/")


@probe
def chroot() -> str | None:
    """Change the root directory: with CAP_SYS_CHROOT a known way out."""
    os.chroot("/var")
    return "changed"


@probe
def unshare_user_namespace() -> str | None:
    """Become root of a user namespace of one's own: most holes of the kernel begin there."""
    system_call("unshare", _NEW_USER)
    return "unshared"


@probe
def unshare_mounts() -> str | None:
    """Have mounts of one's own."""
    system_call("unshare", _NEW_NAMESPACE)
    return "unshared"


@probe
def clone_into_user_namespace() -> str | None:
    """Start a process in a user namespace of its own."""
    child = system_call("clone", _NEW_USER | signal.SIGCHLD, None, None, None, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return f"process {child}"


@probe
def clone3_into_user_namespace() -> str | None:
    """The same by the call whose flags no filter sees."""
    arguments = (_NEW_USER, 0, 0, 0, int(signal.SIGCHLD), 0, 0, 0)
    packed = b"".join(value.to_bytes(8, "little") for value in arguments)
    child = raw_call(435, packed, len(packed))  # the number is the same on all machines
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return f"process {child}"


@probe
def enter_namespace() -> str | None:
    """Enter a namespace by its file."""
    system_call("setns", os.open("/proc/self/ns/uts", os.O_RDONLY), 0)
    return "entered"


@probe
def set_host_name() -> str | None:
    """Give the machine another name."""
    system_call("sethostname", b"ci", 2)
    return "set"
