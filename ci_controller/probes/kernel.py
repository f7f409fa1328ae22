"""System calls that a test has no business with."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import subprocess
import time
from pathlib import Path

from ci_controller.probes.attempt import IS_X86, considered, probe, raw_call, system_call

_ADDR_NO_RANDOMIZE = 0x0040000
_PTRACE_SEIZE = 0x4206


@probe
def load_bpf() -> str | None:
    """Create a BPF map: a program of one's own in the kernel begins there."""
    sizes = (ctypes.c_uint32 * 32)(2, 4, 4, 1)  # an array of one
    return f"map {system_call('bpf', 0, ctypes.byref(sizes), 72)}"


@probe
def open_perf_event() -> str | None:
    """Open a performance counter of the kernel."""
    attributes = (ctypes.c_uint32 * 32)(1, 128)  # PERF_TYPE_SOFTWARE, its size
    return f"counter {system_call('perf_event_open', ctypes.byref(attributes), 0, -1, -1, 0)}"


@probe
def look_at_keyring() -> str | None:
    """Ask for the session's keyring, which containers of one user share."""
    return f"keyring {system_call('keyctl', 0, -3, 1)}"


@probe
def add_key() -> str | None:
    """Put a key into the kernel's keyring."""
    return f"key {system_call('add_key', b'user', b'probe', b'x', 1, -3)}"


@probe
def request_key() -> str | None:
    """Have the kernel look for a key."""
    return considered("request_key", b"user", b"probe", None, -3)


@probe
def open_userfaultfd() -> str | None:
    """Handle page faults oneself: it makes races in the kernel easy to win."""
    return f"descriptor {system_call('userfaultfd', 1)}"  # UFFD_USER_MODE_ONLY


@probe
def set_up_io_uring() -> str | None:
    """Set up an io_uring: its operations pass no filter of system calls."""
    return f"ring {system_call('io_uring_setup', 1, ctypes.byref((ctypes.c_uint32 * 30)()))}"


@probe
def trace_own_child() -> str | None:
    """Trace a child of one's own."""
    with subprocess.Popen(["sleep", "10"]) as child:
        try:
            system_call("ptrace", _PTRACE_SEIZE, child.pid, None, None)
        finally:
            child.kill()
    return "tracing"


@probe
def take_descriptor_of_parent() -> str | None:
    """Take a descriptor out of another process of the same user."""
    return f"descriptor {system_call('pidfd_getfd', system_call('pidfd_open', os.getppid(), 0), 1, 0)}"


@probe
def compare_with_parent() -> str | None:
    """Compare kernel objects of two processes, which tells their addresses' order."""
    return f"order {system_call('kcmp', os.getpid(), os.getppid(), 1, 0, 0)}"


@probe
def read_kernel_log() -> str | None:
    """Read the kernel's messages."""
    return f"{system_call('syslog', 3, ctypes.create_string_buffer(4096), 4096)} bytes"


@probe
def switch_off_address_randomization() -> str | None:
    """Make addresses of programs predictable."""
    return f"was {system_call('personality', _ADDR_NO_RANDOMIZE)}"


@probe
def load_module() -> str | None:
    """Load a module into the kernel."""
    return considered("init_module", None, 0, b"")


@probe
def load_other_kernel() -> str | None:
    """Load another kernel to boot into."""
    return considered("kexec_load", 0, 0, None, 0)


@probe
def reboot() -> str | None:
    """Reboot (with a wrong magic number: who may reboot is told that it is wrong)."""
    return considered("reboot", 0, 0, 0, None)


@probe
def use_swap_file() -> str | None:
    """Add swap space."""
    return considered("swapon", b"/no/such/file", 0)


@probe
def set_clock() -> str | None:
    """Set the host's clock, to the time it has."""
    now = time.time()
    return considered("settimeofday", ctypes.byref((ctypes.c_long * 2)(int(now), 0)), None)


@probe
def sync_quotas() -> str | None:
    """Reach the kernel's disk quotas."""
    return considered("quotactl", 0x80000100, None, 0, None)  # Q_SYNC on all, which everybody may


@probe
def open_file_by_handle() -> str | None:
    """Open a file by its number on the disk, past every path (CVE-2014-3534 of Docker: "shocker")."""
    handle = (ctypes.c_uint32 * 8)(8, 1, 2, 0)
    directory = os.open("/", os.O_RDONLY)
    return considered("open_by_handle_at", directory, ctypes.byref(handle), 0)


@probe
def become_root() -> str | None:
    """Become root by asking."""
    os.setuid(0)
    return "uid 0"


@probe
def gain_by_setuid_program() -> str | None:
    """Become root through a program with the setuid bit."""
    with subprocess.Popen(["/usr/bin/su"], stdin=subprocess.PIPE, stdout=-1, stderr=-1) as child:
        try:
            return _effective_root(child.pid)
        finally:
            child.kill()


def _effective_root(pid: int) -> str | None:
    for _ in range(200):
        with Path(f"/proc/{pid}/status").open() as file:
            status = dict(line.rstrip().split(":\t", 1) for line in file if ":\t" in line)
        if status["Name"] == "su":
            return "su runs as root" if status["Uid"].split()[1] == "0" else None
        time.sleep(0.01)
    return None


@probe
def call_as_32_bit_program() -> str | None:
    """Open an AF_VSOCK socket through the 32-bit entry, whose socketcall hides its arguments from filters."""
    if not IS_X86:
        return None
    numbers = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40)  # MAP_32BIT
    numbers[:12] = b"".join(n.to_bytes(4, "little") for n in (40, socket.SOCK_STREAM, 0))
    address = ctypes.addressof(ctypes.c_char.from_buffer(numbers))
    result = _run_code(
        b"\x53\xb8\x66\x00\x00\x00\xbb\x01\x00\x00\x00\xb9"  # push rbx; eax = socketcall; ebx = SYS_SOCKET; ecx =
        + address.to_bytes(4, "little")
        + b"\xcd\x80\x5b\xc3"  # int 0x80; pop rbx; ret
    )
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return f"socket {result}"


def _run_code(code: bytes) -> int:
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page[: len(code)] = code
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()


@probe
def call_as_x32_program() -> str | None:
    """Open an AF_VSOCK socket through the numbers of the x32 interface."""
    return f"socket {raw_call(0x40000000 + 41, 40, 1, 0)}" if IS_X86 else None
