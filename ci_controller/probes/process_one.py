"""Process 1, the harness: whoever ends, stops, reads or starves it decides about the verdict.

Its death by a signal would look like a fault of ours. Nothing here harms it even where it succeeds.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
from pathlib import Path

from ci_controller.probes.attempt import probe, system_call

_PLENTY = 10_000_000  # seconds of CPU time
_PTRACE_SEIZE = 0x4206
_SCHED_IDLE = 5


@probe
def limit_cpu_of_process_1() -> str | None:
    """Set a limit of CPU time on process 1: the kernel would kill it for us."""
    resource.prlimit(1, resource.RLIMIT_CPU, (_PLENTY, _PLENTY))
    return "limited"


@probe
def limit_cpu_by_wide_number() -> str | None:
    """The same with a process number of 64 bits, of which the kernel uses 32 and a filter might compare all."""
    limits = (ctypes.c_ulong * 2)(_PLENTY, _PLENTY)
    system_call("prlimit64", (1 << 32) + 1, int(resource.RLIMIT_CPU), ctypes.byref(limits), None)
    return "limited"


@probe
def write_limits_file() -> str | None:
    """Set limits of process 1 through /proc."""
    os.close(os.open("/proc/1/limits", os.O_WRONLY))
    return "opened"


@probe
def renice_process_1() -> str | None:
    """Give process 1 the least share of the processor."""
    os.setpriority(os.PRIO_PROCESS, 1, 19)
    return "reniced"


@probe
def renice_all_of_user() -> str | None:
    """The same to everything of this user."""
    os.setpriority(os.PRIO_USER, os.getuid(), 19)
    return "reniced"


@probe
def idle_process_1() -> str | None:
    """Let process 1 run only when nobody else wants to."""
    os.sched_setscheduler(1, _SCHED_IDLE, os.sched_param(0))
    return "idle"


@probe
def pin_process_1() -> str | None:
    """Pin process 1 to one processor, to keep that one busy."""
    os.sched_setaffinity(1, {min(os.sched_getaffinity(0))})
    return "pinned"


@probe
def deprioritize_input_of_process_1() -> str | None:
    """Let process 1 read and write only when nobody else does."""
    system_call("ioprio_set", 1, 1, 3 << 13)
    return "idle"


@probe
def trace_process_1() -> str | None:
    """Trace process 1."""
    system_call("ptrace", _PTRACE_SEIZE, 1, None, None)
    return "traced"


@probe
def read_process_1_remotely() -> str | None:
    """Read the memory of process 1 by a system call."""
    start = _first_mapping(1)
    buffer = ctypes.create_string_buffer(8)
    local = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_ulong * 2)(start, 8)
    return f"{system_call('process_vm_readv', 1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)} bytes"


def _first_mapping(pid: int) -> int:
    """Return an address of that process; of our own, where its map cannot be read."""
    try:
        with Path(f"/proc/{pid}/maps").open() as file:
            return int(file.readline().split("-")[0], 16)
    except OSError:
        return _first_mapping(os.getpid())


@probe
def open_memory_of_process_1() -> str | None:
    """Open the memory of process 1 as a file."""
    os.close(os.open("/proc/1/mem", os.O_RDWR))
    return "opened"


@probe
def read_environment_of_process_1() -> str | None:
    """Read the environment of process 1."""
    with Path("/proc/1/environ").open("rb") as file:
        return f"{len(file.read())} bytes"


@probe
def open_descriptors_of_process_1() -> str | None:
    """Open the stream of process 1, where frames and trailer go."""
    os.close(os.open("/proc/1/fd/1", os.O_WRONLY))
    return "opened"


@probe
def offer_process_1_to_the_kernel() -> str | None:
    """Make process 1 the first to be killed for memory."""
    with Path("/proc/1/oom_score_adj").open("w") as file:
        file.write("1000")
    return "offered"


@probe
def queue_signal_with_forged_origin() -> str | None:
    """Queue SIGTERM to process 1 as if the kernel, or kill from outside, had sent it."""
    for code in (0, 0x80):  # SI_USER, SI_KERNEL
        info = (ctypes.c_int * 32)(signal.SIGTERM, 0, code)
        for call, target in (("rt_sigqueueinfo", (1,)), ("rt_tgsigqueueinfo", (1, 1))):
            try:
                system_call(call, *target, int(signal.SIGTERM), ctypes.byref(info))
            except PermissionError:
                continue
            return f"{call} with code {code}"
    return None


@probe
def send_signal_by_descriptor_with_forged_origin() -> str | None:
    """The same through a descriptor of process 1."""
    info = (ctypes.c_int * 32)(signal.SIGTERM, 0, 0)
    process = system_call("pidfd_open", 1, 0)
    system_call("pidfd_send_signal", process, int(signal.SIGTERM), ctypes.byref(info), 0)
    return "sent"


@probe
def kill_process_1_with_every_signal() -> str | None:
    """Send every signal there is to process 1; it must go on (else nothing after this is reported)."""
    for number in signal.valid_signals():
        os.kill(1, number)
    return _state_of_process_1()


@probe
def queue_every_signal_to_process_1() -> str | None:
    """The same by sigqueue, which may claim any sender."""
    for number in signal.valid_signals():
        info = (ctypes.c_int * 32)(number, 0, -1)  # SI_QUEUE, sender 0
        system_call("rt_sigqueueinfo", 1, int(number), ctypes.byref(info))
    return _state_of_process_1()


@probe
def have_the_kernel_signal_process_1() -> str | None:
    """Make process 1 the owner of a pipe that reports its input by SIGKILL."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, 1)
    fcntl.fcntl(reader, 10, int(signal.SIGKILL))  # F_SETSIG
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    os.write(writer, b"x")
    return _state_of_process_1()


def _state_of_process_1() -> str | None:
    with Path("/proc/1/stat").open() as file:
        state = file.read().rpartition(")")[2].split()[0]
    return f"process 1 is in state {state}" if state in "TtZX" else None
