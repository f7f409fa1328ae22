"""Feeding the harness and reading what it says: as a plain process, or as the first process of a container."""

import io
import subprocess
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import BinaryIO

from ci_common.errors import InvalidArchive
from ci_common.stores import Archive, ArchiveEntry
from ci_controller.feed import RunSpec, prelude, run_feed
from ci_controller.frames import EventFrame, Frame, FrameDecoder, OutputFrame, StrayOutput, TrailerFrame
from ci_controller.install_plan import InstallPlan

DEFAULTS = RunSpec(
    install=InstallPlan(), pytest_args=(), timeout_seconds=60, idle_timeout_seconds=60, log_limit=1024**2
)


class MemoryArchive(Archive):
    """An accepted archive out of a dictionary; entries may lie about their sizes."""

    def __init__(self, files: Mapping[str, str | bytes], *, sizes: Mapping[str, int] | None = None) -> None:
        self._files = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
        self._sizes = {path: len(data) for path, data in self._files.items()} | dict(sizes or {})

    @property
    def entries(self) -> tuple[ArchiveEntry, ...]:
        return tuple(
            ArchiveEntry(path, 0o755 if path.endswith(".sh") else 0o644, self._sizes[path])
            for path in sorted(self._files)
        )

    @contextmanager
    def open(self, entry: ArchiveEntry) -> Generator[BinaryIO]:
        if entry.path not in self._files:
            raise InvalidArchive("gone")
        yield io.BytesIO(self._files[entry.path])


def feed(spec: RunSpec, archive: Archive) -> Iterator[bytes]:
    """Yield every byte of the standard input of a container that does not wait."""
    yield from prelude(spec.install.environment, ahead=False, workspace=spec.workspace)
    yield from run_feed(spec, archive)


def fed(files: Mapping[str, str | bytes], spec: RunSpec = DEFAULTS, **changes: object) -> bytes:
    """Return all of the standard input for a tree."""
    return b"".join(feed(replace(spec, **changes), MemoryArchive(files)))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Said:
    """What a run of the harness wrote, and the code it ended with."""

    stdout: bytes
    exit_code: int

    @cached_property
    def frames(self) -> list[Frame]:
        decoder = FrameDecoder()
        return [*decoder.feed(self.stdout), *decoder.finish()]

    @property
    def log(self) -> bytes:
        return b"".join(frame.data for frame in self.frames if isinstance(frame, OutputFrame))

    @property
    def stray(self) -> bytes:
        return b"".join(frame.data for frame in self.frames if isinstance(frame, StrayOutput))

    @property
    def events(self) -> list[str]:
        return [frame.type for frame in self.frames if isinstance(frame, EventFrame)]

    @property
    def trailer(self) -> TrailerFrame:
        last = self.frames[-1]
        assert isinstance(last, TrailerFrame), f"no trailer, but {last!r}"
        return last


def run_harness(command: list[str], stdin: bytes, env: Mapping[str, str] | None = None) -> Said:
    """Return what the harness said from beginning to end."""
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, env=env, check=False, timeout=90)
    return Said(done.stdout, done.returncode)


@contextmanager
def started_harness(
    command: list[str], stdin: bytes, until: bytes, env: Mapping[str, str] | None = None
) -> Generator[tuple[subprocess.Popen[bytes], list[bytes]]]:
    """Give a harness whose log has come to contain `until`, and what it wrote up to there."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stdin)
        process.stdin.close()
        lines: list[bytes] = []
        while until not in Said(b"".join(lines), -1).log:
            line = process.stdout.readline()
            assert line, f"it ended before {until!r}: {Said(b''.join(lines), -1).log!r}"
            lines.append(line)
        yield process, lines


def rest_of(process: subprocess.Popen[bytes], lines: list[bytes]) -> Said:
    """Return all that a started harness said once it has ended."""
    assert process.stdout is not None
    rest = process.stdout.read()
    return Said(b"".join(lines) + rest, process.wait(30))


class OpenHarness:
    """A harness whose input is open: what it is sent, and what it said so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._lines: list[bytes] = []

    def send(self, chunks: Iterable[bytes]) -> None:
        """It was sent these bytes."""
        assert self.process.stdin is not None
        for chunk in chunks:
            self.process.stdin.write(chunk)
        self.process.stdin.flush()

    def wait_for_log(self, text: bytes) -> None:
        """Its log has come to contain that."""
        self._read_until(lambda said: text in said.log)

    def wait_for(self, event: str) -> None:
        """It has said that event."""
        self._read_until(lambda said: event in said.events)

    def _read_until(self, holds: Callable[[Said], bool]) -> None:
        assert self.process.stdout is not None
        while not holds(said := Said(b"".join(self._lines), -1)):
            line = self.process.stdout.readline()
            assert line, f"it ended before that: {said.log.decode()}"
            self._lines.append(line)

    def rest(self) -> Said:
        """Return all that it said, from its beginning, once its input has ended and it too."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        return rest_of(self.process, self._lines)


@contextmanager
def open_harness(command: list[str], env: Mapping[str, str] | None = None) -> Generator[OpenHarness]:
    """Give a harness that was fed nothing yet; it is gone afterwards."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        try:
            yield OpenHarness(process)
        finally:
            process.kill()
