"""What a probe is, and how one is tried: in a child of its own, so that whatever becomes of it can be told."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import select
import signal
from pathlib import Path
from typing import Callable, Dict, NamedTuple  # noqa: UP035 - evaluated, and 3.8 has no dict[...]

# For one probe; on a busy machine the slowest, memory and processes without end, took more than 15.
SECONDS = 30.0

Attempt = Callable[[], str | None]  # what it achieved; None, or an OSError: it was kept from it; or NotTried

PROBES: Dict[str, Attempt] = {}  # noqa: UP006
_TARGETS = Path(__file__).with_name("targets.json")  # by name, from outside


class Result(NamedTuple):
    """How a probe went: `evidence` is what it achieved, or what kept it from that, or why it was not even tried."""

    probe: str
    succeeded: bool
    evidence: str
    tried: bool = True


class NotTried(Exception):
    """There was nothing to try it on; the message says what was missing."""


def probe(attempt: Attempt) -> Attempt:
    """The function is a probe under its own name; the docstring says what it tries."""
    PROBES[attempt.__name__] = attempt
    return attempt


def sentence(name: str) -> str:
    """Return what a probe tries."""
    return (PROBES[name].__doc__ or "").strip().splitlines()[0]


def run(name: str) -> Result:
    """Return how the probe went; everything it started is gone, or dies with the container."""
    attempt = PROBES[name]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setpgid(0, 0)
        os.write(writer, json.dumps(_tried(name, attempt)).encode())
        os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], SECONDS)
    said = os.read(reader, 65536) if ready else b""
    os.close(reader)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if said:
        return Result(*json.loads(said))
    died = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended without a word"
    return Result(name, False, died if ready else f"nothing came of it in {SECONDS:g} s")


def _tried(name: str, attempt: Attempt) -> Result:
    try:
        achieved = attempt()
    except NotTried as error:
        return Result(name, False, str(error), tried=False)
    except OSError as error:
        return Result(name, False, f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror or error}")
    except (MemoryError, ValueError) as error:
        return Result(name, False, f"{type(error).__name__}: {error}")
    return Result(name, achieved is not None, achieved or "nothing came of it")


def target(name: str, otherwise: str) -> str:
    """Return what the caller outside named; raises NotTried with `otherwise` where it named nothing."""
    found = json.loads(_TARGETS.read_text()).get(name)
    if found is None:
        raise NotTried(otherwise)
    return str(found)


# -- system calls that the C library has no function for -----------------------------------------------------------

LIBC = ctypes.CDLL(None, use_errno=True)
IS_X86 = platform.machine() == "x86_64"
_NUMBERS = {  # x86_64, aarch64
    "ptrace": (101, 117), "pivot_root": (155, 41), "chroot": (161, 51), "reboot": (169, 142),
    "swapon": (167, 224), "settimeofday": (164, 170), "init_module": (175, 105), "kexec_load": (246, 104),
    "quotactl": (179, 60), "clone": (56, 220), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "ioprio_set": (251, 30), "perf_event_open": (298, 241), "unshare": (272, 97),
    "open_by_handle_at": (304, 265), "setns": (308, 268), "process_vm_readv": (310, 270), "kcmp": (312, 272),
    "bpf": (321, 280), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "prlimit64": (302, 261), "syslog": (103, 116), "personality": (135, 92),
    "sethostname": (170, 161), "mount": (165, 40), "umount2": (166, 39), "fsopen": (430, 430),
    "open_tree": (428, 428), "getpriority": (140, 141),
}  # fmt: skip


def system_call(name: str, *arguments: object) -> int:
    """Return what the kernel returns; raises OSError."""
    return raw_call(_NUMBERS[name][not IS_X86], *arguments)


def raw_call(number: int, *arguments: object) -> int:
    """Return what the kernel returns to that number; raises OSError."""
    ctypes.set_errno(0)
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(LIBC.syscall(ctypes.c_long(number), *wide))
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def considered(name: str, *arguments: object) -> str | None:
    """Return that the kernel went as far as judging the (senseless) arguments: who may not, is told so before."""
    try:
        result = system_call(name, *arguments)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        return f"the kernel looked at the arguments ({errno.errorcode.get(error.errno or 0)})"
    return f"the kernel did it ({result})"
