"""The first process of a job's container: takes the tree, runs install and pytest, frames what they print.

It never trusts what it runs: it owns their output pipe, cannot be opened or traced by them, listens to signals from
outside the container only, and says the last word itself. One file, standard library only, Python >= 3.8: it comes
over standard input into whatever image there is (`ci_controller.feed`). Also runs as an ordinary process.
"""

# ruff: noqa: PTH103, PTH110, PTH118, PTH120, PTH123 - pathlib is a tenth of a second of imports for nothing we need

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import hashlib
import importlib.machinery
import json
import os
import re
import select
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

# Exit codes where the tests gave no verdict: 100-119 are the harness's own.
EXIT_CODES = {
    "not_started": 100,
    "install_failed": 101,
    "timeout": 102,
    "idle_timeout": 103,
    "log_limit": 104,
    "stopped": 105,
    "oom": 106,
    "bad_archive": 107,
}
CRASHED = 1
HARNESS_FAILED = 109

FRAME_BYTES = 12000  # of output per frame: 16000 characters of base64, so that the line stays under 16 KiB
GATHER_SECONDS = (
    0.01  # at most, between two frames of a burst: a frame costs the engine over 100 bytes of its own
)
FEED_SECONDS = 120  # without a byte of the feed
SWEEP_SECONDS = 5  # for killed processes to be gone
MAX_RECORD = 64 * 1024 * 1024
CHUNK = 64 * 1024
BAD_PATH = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)
IS_INIT = os.getpid() == 1
SI_USER = 0  # siginfo of kill(2): the one code that a process may not claim for a signal it queues to another


class Ended(Exception):
    """The run is over, with this outcome; everything that is to be said goes into the trailer."""

    def __init__(self, outcome: str, message: str | None = None, **trailer: Any) -> None:
        super().__init__(outcome, message)
        self.outcome = outcome
        self.message = message
        self.trailer = trailer


# -- what goes out -------------------------------------------------------------------------------------------------


class Log:
    """The container's standard output: numbered frames, one JSON line each, and the count and hash of the text."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.last_output = time.monotonic()
        self._number = 0
        self._size = 0
        self._digest = hashlib.sha256()
        self._tail = b"\n"  # the end of the text since our own last line
        self._gathered = bytearray()  # counted, not yet out
        self._next_flush = 0.0

    def output(self, data: bytes) -> bool:
        """What fits under the limit is out, or will be at `due`; returns False when something did not fit.

        The first bytes after a pause go out at once; only those that follow close behind are gathered.
        """
        self.last_output = time.monotonic()
        room = len(data) if self.limit is None else max(0, self.limit - self._size)
        self._take(data[:room])
        if len(self._gathered) >= FRAME_BYTES or self.last_output >= self._next_flush:
            self.flush()
        return len(data) <= room

    @property
    def due(self) -> float:
        """When `flush` has something to do, on the monotonic clock."""
        return self._next_flush if self._gathered else float("inf")

    def flush(self) -> None:
        """Everything that was gathered is out."""
        if self._gathered:
            data = bytes(self._gathered)
            self._gathered.clear()
            self._next_flush = time.monotonic() + GATHER_SECONDS
            pieces = (data[start : start + FRAME_BYTES] for start in range(0, len(data), FRAME_BYTES))
            _write_all(b"".join(self._frame(t="o", d=base64.b64encode(piece).decode()) for piece in pieces))

    def say(self, sentence: str) -> None:
        """A line of ours stands in the log, at the beginning of a line."""
        start = b"" if self._tail.endswith(b"\n") else b"\n"
        self._take(start + b"==> " + sentence.encode(errors="replace") + b"\n")
        self.flush()
        self._tail = b"\n"

    def complaint(self) -> str:
        """Return why the last program failed, in its own words: its first and its last error, else its last line."""
        text = re.sub(rb"\x1b\[[0-9;]*m", b"", self._tail).decode(errors="replace")
        errors = re.findall(r"^ *(?:error|cause): (.+)", text, re.MULTILINE | re.IGNORECASE)
        lines = errors or text.split("\n")[-2:]
        return ": ".join(dict.fromkeys(line.strip() for line in (lines[0], lines[-1]) if line.strip()))

    def event(self, kind: str, **data: Any) -> None:
        """An event is out, behind the text before it."""
        self.flush()
        _write_all(self._frame(t="e", k=kind, d=data))

    def trailer(self, outcome: str, message: str | None, fields: dict[str, Any]) -> None:
        """The last frame is out."""
        self.flush()
        fields = {**fields, "log_bytes": self._size, "log_sha256": self._digest.hexdigest()}
        _write_all(
            self._frame(t="end", outcome=outcome, message=message and _plain(message[:1000]), **fields)
        )

    def _take(self, data: bytes) -> None:
        self._gathered += data
        self._size += len(data)
        self._digest.update(data)
        self._tail = (self._tail + data)[-CHUNK:]

    def _frame(self, **fields: Any) -> bytes:
        self._number += 1
        return json.dumps({"n": self._number, **fields}, separators=(",", ":")).encode() + b"\n"


def _plain(text: str) -> str:
    """Return one line that any terminal and any database takes: parts of it come from the job."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


# -- signals -------------------------------------------------------------------------------------------------------


class Signals:
    """Signals as bytes in a pipe, so that one `select` waits for everything.

    They stay blocked and a thread takes them, because only that tells who sent them: as the first process of a
    container we obey nobody inside of it. From outside, the sender has no number here.
    """

    STOP = b"s"
    CHILD = b"c"
    _ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)

    def __init__(self) -> None:
        self.descriptor, self._sender = os.pipe()
        os.set_blocking(self.descriptor, False)
        signal.pthread_sigmask(signal.SIG_BLOCK, self._ALL)
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> NoReturn:
        while True:
            taken = signal.sigwaitinfo(self._ALL)
            if taken.si_signo == signal.SIGCHLD:
                os.write(self._sender, self.CHILD)
            elif not IS_INIT or (taken.si_pid == 0 and taken.si_code == SI_USER):
                os.write(self._sender, self.STOP)

    def read(self) -> bytes:
        """Return what came since the last call."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self.descriptor, CHUNK)
        return b""

    @staticmethod
    def unblock() -> None:
        """The calling process (a child about to become another program) gets its signals as usual."""
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


# -- what comes in -------------------------------------------------------------------------------------------------


class Feed:
    """Standard input as records; raises Ended when it breaks off, stalls, or we are told to stop meanwhile."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def record(self) -> tuple[bytes, bytes]:
        """Return the next record's type and payload."""
        head = self._read(5)
        size = int.from_bytes(head[1:], "big")
        if size > MAX_RECORD:
            raise Ended("not_started", f"The feed is garbled: a record of {size} bytes.")
        return head[:1], self._read(size)

    def expect(self, kind: bytes) -> bytes:
        """Return the payload of the next record, which is of that type."""
        found, payload = self.record()
        if found != kind:
            raise Ended("not_started", f"The feed is garbled: {found!r} instead of {kind!r}.")
        return payload

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait()
            chunk = os.read(0, min(size - len(data), 1 << 20))
            if not chunk:
                raise Ended("not_started", "The feed broke off before the run was to start.")
            data += chunk
        return bytes(data)

    def _wait(self) -> None:
        ready, _, _ = select.select([0, self._signals.descriptor], [], [], FEED_SECONDS)
        if self._signals.descriptor in ready and Signals.STOP in self._signals.read():
            raise Ended("stopped", "Stopped before the run had started.")
        if not ready:
            raise Ended("not_started", f"The feed stalled for {FEED_SECONDS} s.")


class Tree:
    """The tree's records as a file that tarfile can read; checks what it is at the end."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._digest = hashlib.sha256()
        self._size = 0
        self._buffer = b""
        self._end: Any = None

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end."""
        while not self._buffer and self._end is None:
            kind, payload = self._feed.record()
            if kind == b"E":
                self._end = json.loads(payload)
            elif kind == b"T":
                self._digest.update(payload)
                self._size += len(payload)
                self._buffer = payload
            else:
                raise Ended("not_started", f"The feed is garbled: {kind!r} within the tree.")
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def check(self) -> None:
        """All of the tree was read and is what was sent; raises Ended."""
        while self.read(CHUNK):
            pass
        if self._end != {"bytes": self._size, "sha256": self._digest.hexdigest()}:
            raise Ended("not_started", "The tree arrived damaged.")


def unpack(tree: Tree, workspace: str) -> None:
    """The tree stands in the workspace, checked; raises Ended."""
    try:
        os.makedirs(workspace, exist_ok=True)
        with tarfile.open(fileobj=cast(Any, tree), mode="r|", bufsize=CHUNK) as archive:
            for member in archive:
                _unpack_member(archive, member, workspace)
    except tarfile.TarError as error:
        raise Ended("not_started", f"The tree arrived damaged: {error}.") from error
    except OSError as error:
        outcome = (
            "bad_archive" if error.errno in BAD_PATH else "not_started"
        )  # else it is the machine's fault
        raise Ended(outcome, f"The tree could not be unpacked: {error}.") from error
    tree.check()


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, workspace: str) -> None:
    if (
        member.name.startswith("/")
        or ".." in member.name.split("/")
        or not (member.isreg() or member.isdir())
    ):
        raise Ended("bad_archive", f"The tree holds something that is no file below it: {member.name!r}.")
    path = os.path.join(workspace, member.name)
    if member.isdir():
        os.makedirs(path, exist_ok=True)
        return
    source = archive.extractfile(member)
    assert source is not None, "a regular file has content"
    # Exclusive: nothing is written through a link or over another file.
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, stat.S_IMODE(member.mode))
    with os.fdopen(target, "wb") as file:
        shutil.copyfileobj(source, file, CHUNK)


# -- memory --------------------------------------------------------------------------------------------------------


class Memory:
    """What the container's memory group says, version 2 or 1 of them; nothing where there is none."""

    _FILES = (
        ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory.max"),
        (
            "/sys/fs/cgroup/memory/memory.oom_control",
            "/sys/fs/cgroup/memory/memory.max_usage_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ),
    )

    def __init__(self) -> None:
        self._before = self._kills()

    def kills(self) -> int:
        """Return how many processes were killed for memory since we began."""
        return self._kills() - self._before

    def sentence(self, whose: str, running: str) -> str:
        """Return who was killed, at how much of how much, and meanwhile what."""
        peak, limit = (self._bytes(index) for index in (1, 2))
        at = "" if limit is None else f" at {_amount(limit if peak is None else peak)} of {_amount(limit)}"
        meanwhile = f" while {running} ran" if running else ""
        return f"{whose} killed for memory{at}{meanwhile}."

    def _kills(self) -> int:
        for line in self._read(0).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def _bytes(self, index: int) -> int | None:
        text = self._read(index).strip()
        return int(text) if text.isdigit() and int(text) < 1 << 60 else None

    def _read(self, index: int) -> str:
        for version in self._FILES:
            with contextlib.suppress(OSError), open(version[index]) as file:
                return file.read()
        return ""


def _amount(size: int) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.4g} {unit}"
    return f"{size} bytes"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 120 and seconds % 60 == 0 else f"{seconds:g} s"


# -- running programs ------------------------------------------------------------------------------------------------


class Reports:
    """What the reporter inside pytest says. It comes from within the job, so it may only ever make things worse."""

    def __init__(self) -> None:
        self.finished: int | None = None
        self.collection_errors = 0
        self.summary = ""
        self.running = ""
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        """Take in what is complete; whatever is not ours is passed over."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self._buffer = self._buffer[-CHUNK:]
        for line in lines:
            with contextlib.suppress(ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
                self._take(json.loads(line))

    def _take(self, fact: dict[str, Any]) -> None:
        if "running" in fact:
            self.running = str(fact["running"])
            return
        self.collection_errors = max(0, int(fact["collection_errors"]))
        self.summary = str(fact["summary"])
        self.running = ""
        self.finished = int(fact["finished"])


class Runner:
    """Runs one program after the other; ends them at the deadline, the limits, or when told to from outside."""

    def __init__(self, header: dict[str, Any], log: Log, signals: Signals, started: float) -> None:
        self.memory = Memory()
        self.reports = Reports()
        self._header = header
        self._log = log
        self._signals = signals
        self._deadline = started + header["timeout"]
        self._child = 0
        self._status: int | None = None  # of the child, once it was reaped
        self._ending: Ended | None = None  # decided, being carried out
        self._steps: Iterator[tuple[int, float]] = iter(())
        self._next_step = 0.0
        self._stop_asked = False

    def run(self, command: list[str], environment: dict[str, str], *, reports: bool = False) -> int:
        """The program and everything it left running has ended, all of its output is out; returns its exit code,
        negative for a signal. Raises Ended when it was we who ended it, or when we were told to stop before."""
        self._obey_earlier_stop()
        output, reporting = _pipe(), _pipe()
        passed = [reporting[1]] if reports else []
        if reports:
            environment = {**environment, "_CI_REPORT": f"{reporting[1]}:{os.getpid()}"}
        self._status = None
        self._log.last_output = time.monotonic()
        self._spawn(command, environment, output[1], passed)
        os.close(output[1])
        os.close(reporting[1])
        readers: dict[int, Callable[[bytes], None]] = {
            output[0]: self._take_output,
            reporting[0]: self.reports.feed,
        }
        self._watch(readers)
        self._sweep()
        self._drain(readers)
        self._log.flush()
        if self._ending is not None:
            raise self._ending
        assert self._status is not None, "the program has ended"
        return self._status

    def _obey_earlier_stop(self) -> None:
        """A stop that came when the last program had ended left it its result; here it takes effect."""
        self._read_signals()
        if self._stop_asked:
            self._log.say("Stopping on request")
            raise Ended("stopped", "Stopped on request.")

    def _spawn(self, command: list[str], environment: dict[str, str], output: int, passed: list[int]) -> None:
        process = subprocess.Popen(
            command,
            cwd=self._header["workspace"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=passed,
            start_new_session=True,
            preexec_fn=Signals.unblock,  # safe: the only other thread holds no lock
        )
        self._child = process.pid
        process.returncode = 0  # it is we who reap, not Popen
        # When memory is short, the job goes before the one who reports it.
        with contextlib.suppress(OSError), open(f"/proc/{self._child}/oom_score_adj", "w") as file:
            file.write("1000")

    def _watch(self, readers: dict[int, Callable[[bytes], None]]) -> None:
        """The child has ended, by itself or by us."""
        open_ones = list(readers)
        while self._status is None:
            ready, _, _ = select.select([*open_ones, self._signals.descriptor], [], [], self._patience())
            for descriptor in ready:
                if descriptor == self._signals.descriptor:
                    self._take_signals()
                elif data := _read(descriptor):
                    readers[descriptor](data)
                elif data is not None:
                    open_ones.remove(descriptor)
            if time.monotonic() >= self._log.due:
                self._log.flush()
            self._check_clock()
        self._log.flush()

    def _patience(self) -> float:
        return max(0.0, min(self._next_moment(), self._log.due) - time.monotonic())

    def _next_moment(self) -> float:
        if self._ending is not None:
            return self._next_step
        return min(self._deadline, self._log.last_output + self._header["idle_timeout"])

    def _take_signals(self) -> None:
        self._read_signals()
        self._reap()  # first: a child that had ended by then keeps its own result
        if self._stop_asked and self._status is None:
            self._end("stopped", "Stopped on request", "Stopping on request")

    def _read_signals(self) -> None:
        if Signals.STOP in self._signals.read():
            self._stop_asked = True

    def _take_output(self, data: bytes) -> None:
        if not self._log.output(data):
            limit = _amount(self._header["log_limit"])
            line = f"The log limit of {limit} is reached, killing everything"
            self._end("log_limit", f"The output exceeded {limit}", line)

    def _check_clock(self) -> None:
        now = time.monotonic()
        if self._status is not None or now < self._next_moment():
            return
        if self._ending is not None:
            self._signal_next()
        elif now >= self._deadline:
            sentence = f"The time-out of {_duration(self._header['timeout'])} passed"
            self._end("timeout", sentence, sentence + ", interrupting")
        else:
            sentence = f"There was no output for {_duration(self._header['idle_timeout'])}"
            self._end("idle_timeout", sentence, sentence + ", interrupting")

    def _end(self, outcome: str, message: str, line: str) -> None:
        """The child is being ended, politely first, so that pytest prints its summary; the first reason stays."""
        if self._ending is not None:
            return
        self._log.limit = 0 if outcome == "log_limit" else self._log.limit
        self._log.say(line)
        running = self.reports.running
        self._ending = Ended(outcome, message + (f" while {running} ran." if running else "."))
        polite = [
            (signal.SIGINT, self._header["interrupt_grace"]),
            (signal.SIGTERM, self._header["terminate_grace"]),
        ]
        self._steps = iter([] if outcome == "log_limit" else polite)
        self._signal_next()

    def _signal_next(self) -> None:
        number, grace = next(self._steps, (signal.SIGKILL, 1.0))
        self._next_step = time.monotonic() + grace
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child, number)

    def _reap(self) -> bool:
        """Every child that has ended is collected; returns False when there are no more at all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == self._child:
                self._status = _exit_code(status)
            if pid == 0:
                return True

    def _sweep(self) -> None:
        """Nothing that the child left behind runs any more."""
        give_up = time.monotonic() + SWEEP_SECONDS
        self._kill_all()
        while IS_INIT and self._reap() and time.monotonic() < give_up:
            self._kill_all()
            select.select([self._signals.descriptor], [], [], 0.05)
            self._read_signals()

    def _kill_all(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if IS_INIT:
                os.kill(-1, signal.SIGKILL)  # everybody in this container but us
            else:
                os.killpg(self._child, signal.SIGKILL)

    def _drain(self, readers: dict[int, Callable[[bytes], None]]) -> None:
        for descriptor, take in readers.items():
            while data := _read(descriptor):
                take(data)
            os.close(descriptor)


def _pipe() -> tuple[int, int]:
    """Return a pipe whose reading end does not block."""
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    return ends


def _read(descriptor: int) -> bytes | None:
    """Return what is there now: None for nothing yet, empty at the end."""
    try:
        return os.read(descriptor, CHUNK)
    except BlockingIOError:
        return None


def _exit_code(status: int) -> int:
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


# -- the run -------------------------------------------------------------------------------------------------------


class Python:
    """The environment that dependencies go into and pytest runs from: the image's own, or a fresh one over it."""

    def __init__(self, program: str, packages: str) -> None:
        self.program = program
        self.packages = packages

    @classmethod
    def of_image(cls, home: str) -> Python:
        """Return the interpreter that runs us, if its packages can be added to; else a new environment over it."""
        packages = sysconfig.get_paths()["purelib"]
        if os.access(packages, os.W_OK):
            return cls(sys.executable, packages)
        place = os.path.join(home, ".ci-venv")
        subprocess.run(
            [sys.executable, "-I", "-m", "venv", "--system-site-packages", place],
            check=True,
            cwd="/",  # nothing of the tree's may be imported here: it is before `begun`, and on our own stream
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=Signals.unblock,
        )
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return cls(os.path.join(place, "bin", "python"), os.path.join(place, "lib", version, "site-packages"))

    def add_file(self, name: str, text: str) -> None:
        """A file of ours stands among the packages."""
        with open(os.path.join(self.packages, name), "w", encoding="utf-8") as file:
            file.write(text)


class Run:
    """Install, then pytest, as the header says."""

    def __init__(self, header: dict[str, Any], log: Log, runner: Runner) -> None:
        self._header = header
        self._log = log
        self._runner = runner
        home = os.environ.get("HOME", "")
        home = home if os.access(home, os.W_OK) else "/tmp"  # noqa: S108 - the container's own
        self._python = Python.of_image(home)
        self._environment = {**os.environ, "HOME": home, **header["environment"]}
        bin_directory = os.path.dirname(self._python.program)
        self._environment["PATH"] = bin_directory + os.pathsep + os.environ.get("PATH", os.defpath)
        if os.path.exists(os.path.join(os.path.dirname(bin_directory), "pyvenv.cfg")):
            self._environment["VIRTUAL_ENV"] = os.path.dirname(bin_directory)  # where `uv sync --active` goes
        self._uv = shutil.which("uv", path=self._environment["PATH"])

    def install(self) -> None:
        """Everything the tests need is installed; raises Ended."""
        paths: list[str] = [os.path.join(self._header["workspace"], path) for path in self._header["paths"]]
        self._python.add_file("_ci_reporter.py", self._header["reporter"])
        if paths:
            self._python.add_file("_ci_paths.pth", "\n".join(paths) + "\n")
        for step in self._header["steps"]:
            self._install(step)
        if not self._has_pytest():
            step = {"title": "pytest", "uv": ["pip", "install", "pytest"], "pip": ["install", "pytest"]}
            self._install(step, ", as nothing in the project brings it")

    def _install(self, step: dict[str, Any], because: str = "") -> None:
        tool = "uv" if self._uv else "pip"
        self._log.event("phase", name="install", title=step["title"])
        self._log.say(f"Installing {step['title']} with {tool}{because}")
        code = self._runner.run(self._install_command(step), self._environment)
        if code == 0:
            return
        if code == -signal.SIGKILL and self._runner.memory.kills():
            raise Ended("oom", self._runner.memory.sentence(f"Installing {step['title']} was", ""))
        raise Ended("install_failed", self._why_install_failed(step, tool, code), exit_code=code)

    def _install_command(self, step: dict[str, Any]) -> list[str]:
        if not self._uv:
            return [self._python.program, "-m", "pip", *step["pip"]]
        if step["uv"][:2] == ["pip", "install"]:
            return [self._uv, "pip", "install", "--python", self._python.program, *step["uv"][2:]]
        return [self._uv, *step["uv"]]

    def _why_install_failed(self, step: dict[str, Any], tool: str, code: int) -> str:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        note = " A process was killed for memory meanwhile." if self._runner.memory.kills() else ""
        return f"Installing {step['title']} failed: {tool} {how}: {self._log.complaint()}{note}"

    def _has_pytest(self) -> bool:
        if importlib.machinery.PathFinder.find_spec("pytest", [self._python.packages]) is not None:
            return True
        question = "import importlib.util as u, sys; sys.exit(u.find_spec('pytest') is None)"
        return self._runner.run([self._python.program, "-c", question], self._environment) == 0

    def test(self) -> NoReturn:
        """pytest has run; raises Ended with what became of it."""
        arguments: list[str] = self._header["pytest_args"]
        self._log.event("phase", name="test", title="pytest")
        self._log.say("Running " + shlex.join(["python", "-m", "pytest", *arguments]))
        own = [self._python.program, "-m", "pytest", "-p", "_ci_reporter", "--color=yes"]
        code = self._runner.run([*own, *arguments], self._environment, reports=True)
        reports, memory = self._runner.reports, self._runner.memory
        if code == -signal.SIGKILL and memory.kills():
            raise Ended("oom", memory.sentence("pytest was", reports.running), signal=int(signal.SIGKILL))
        raise Ended(
            "tests_ran",
            self._message(code),
            exit_code=None if code < 0 else code,
            signal=-code if code < 0 else None,
            session_finished=reports.finished == code,
            collection_errors=reports.collection_errors,
        )

    def _message(self, code: int) -> str | None:
        reports = self._runner.reports
        during = f" while {reports.running} ran" if reports.running else ""
        if code < 0:
            message = f"pytest was killed by signal {-code}{during}."
        elif reports.finished == code:
            message = reports.summary + "." if reports.summary else ""
        else:
            message = f"pytest left with {code} before its session was finished{during}."
        if self._runner.memory.kills():
            message += " " + self._runner.memory.sentence("A process that pytest started was", "")
        return message.strip() or None


def run(log: Log, signals: Signals) -> NoReturn:
    """Everything, in its order; always ends by raising Ended."""
    started = time.monotonic()
    feed = Feed(signals)
    header = json.loads(feed.expect(b"H"))
    unpack(Tree(feed), header["workspace"])
    feed.expect(b"G")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    log.limit = header["log_limit"]
    job = Run(header, log, Runner(header, log, signals, started))
    log.event("begun")  # from here on it is the user's own code: building a dependency is that, too
    job.install()
    job.test()


def exit_code(end: Ended) -> int:
    """Return what the container ends with: 0 only for a success, pytest's own where it has a meaning."""
    if end.outcome != "tests_ran":
        return EXIT_CODES[end.outcome]
    code: int | None = end.trailer["exit_code"]
    if code == 0:
        return 0 if end.trailer["session_finished"] else CRASHED
    return code if code is not None and 1 <= code <= 6 else CRASHED


def main() -> NoReturn:
    """The process has ended, its last word said."""
    os.umask(0o022)
    # From here on nobody of our own user can trace us or open our descriptors under /proc.
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    log = Log()
    try:
        run(log, Signals())
    except Ended as end:
        log.trailer(end.outcome, end.message, end.trailer)
        os._exit(exit_code(end))
    except BaseException:  # noqa: BLE001 - the traceback becomes text of the log, the missing trailer says the rest
        traceback.print_exc()
        os._exit(HARNESS_FAILED)


if __name__ == "__main__":
    main()
