"""Daemons under one command: real child processes that live and die together."""

import asyncio
import os
import signal
import sys

from ci_admin.processes import Children, Ended

_PATIENT = "import signal; print('up', flush=True); signal.pause()"
_STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, lambda *_: print('bye', flush=True) or exit(0));"
    "print('up', flush=True); signal.pause()"
)


class Output:
    """Lines as they come, and a way to wait for one of them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._changed = asyncio.Condition()

    def write(self, line: str) -> None:
        self.lines.append(line)
        self._waker = asyncio.create_task(self._wake())

    async def has(self, line: str) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: line in self.lines)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def _start(children: Children, name: str, code: str) -> None:
    await children.start(name, [sys.executable, "-c", code], os.environ)


async def test_every_line_carries_the_name_of_its_process() -> None:
    output = Output()
    children = Children(output.write)
    await _start(children, "one", "print('a'); print('b', end='')")
    await children.first_end()
    await children.stop()

    assert output.lines == ["one        | a", "one        | b"]


async def test_a_line_of_any_length_and_bytes_passes() -> None:
    output = Output()
    children = Children(output.write)
    await _start(children, "one", "import sys; sys.stdout.buffer.write(b'x' * 300_000 + b'\\xff\\n')")
    await children.first_end()
    await children.stop()

    assert output.lines == ["one        | " + "x" * 300_000 + "\ufffd"]


async def test_the_first_end_tells_who_and_how() -> None:
    children = Children(lambda _: None)
    await _start(children, "patient", _PATIENT)
    await _start(children, "short", "raise SystemExit(7)")

    assert await children.first_end() == Ended("short", 7)
    await children.stop()


async def test_a_signal_counts_as_a_shell_counts_it() -> None:
    children = Children(lambda _: None)
    await _start(children, "killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    assert await children.first_end() == Ended("killed", 128 + signal.SIGKILL)
    await children.stop()


async def test_stopping_asks_each_and_reads_to_the_last_word() -> None:
    output = Output()
    children = Children(output.write)
    await _start(children, "polite", _STUBBORN)
    await output.has("polite     | up")
    await children.stop()

    assert output.lines == ["polite     | up", "polite     | bye"]


async def test_stopping_twice_is_harmless() -> None:
    children = Children(lambda _: None)
    await _start(children, "patient", _PATIENT)
    await children.stop()
    await children.stop()

    assert (await children.first_end()).exit_code == 128 + signal.SIGTERM


async def test_children_do_not_survive_a_killed_parent() -> None:
    parent = (
        "import asyncio, os, signal, sys\n"
        "from ci_admin.processes import Children\n"
        "async def main():\n"
        "    children = Children(lambda line: print(line, flush=True))\n"
        "    code = 'import os, signal; print(os.getpid(), flush=True); signal.pause()'\n"
        "    await children.start('child', [sys.executable, '-c', code], os.environ)\n"
        "    await children.first_end()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        child = int((await process.stdout.readline()).rpartition(b"| ")[2])
        descriptor = os.pidfd_open(child)
        try:
            process.kill()
            await process.wait()
            gone = asyncio.Event()
            asyncio.get_running_loop().add_reader(descriptor, gone.set)
            await gone.wait()
            asyncio.get_running_loop().remove_reader(descriptor)
        finally:
            os.close(descriptor)
