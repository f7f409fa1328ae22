"""Daemons as children of one foreground command: their output prefixed, none outliving the others or us."""

import asyncio
import ctypes
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

STOP_SECONDS = 20.0
_CHUNK = 1 << 16
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Ended:
    """A child that is gone, and its exit code as a shell would tell it (128 + signal)."""

    name: str
    exit_code: int


class Children:
    """Processes that live and die together; each line they write goes to `write` behind its process's name."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._relays: list[asyncio.Task[None]] = []

    async def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        """The child runs, in a process group of its own: a Ctrl-C is ours to hand on."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
            pass_fds=tuple(pass_fds),
            process_group=0,
            preexec_fn=partial(_die_with, os.getpid()),
        )
        assert process.stdout is not None
        self._processes[name] = process
        self._relays.append(asyncio.create_task(self._relay(name, process.stdout)))

    async def first_end(self) -> Ended:
        """Return the first child that ended, waiting for it."""
        waits = {asyncio.create_task(child.wait()): name for name, child in self._processes.items()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        first = next(iter(done))
        return Ended(waits[first], _shell_code(first.result()))

    async def stop(self) -> None:
        """Every child is gone, asked first and killed only when it does not listen, and all it said is written."""
        running = [child for child in self._processes.values() if child.returncode is None]
        for child in running:
            child.terminate()
        await asyncio.gather(*(_wait_or_kill(child) for child in running))
        await asyncio.gather(*self._relays)

    async def _relay(self, name: str, output: asyncio.StreamReader) -> None:
        pending = b""
        while chunk := await output.read(_CHUNK):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                self._say(name, line)
        if pending:
            self._say(name, pending)

    def _say(self, name: str, line: bytes) -> None:
        self._write(f"{name:<10} | {line.decode(errors='replace')}")


async def _wait_or_kill(child: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


def _shell_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


_LIBC = ctypes.CDLL(None)  # before any fork: the child may not load libraries


def _die_with(parent: int) -> None:
    # Runs in the child before its program: should we be killed, the kernel ends it as we would have.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # we died before the kernel was told
        os._exit(1)
