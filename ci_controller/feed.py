"""What a container is fed over its standard input, once: the harness, then a run.

The harness comes before any job is known, its modules as text behind one length; then records of one type byte, a
four-byte big-endian length and a payload. The first says how to wait; the container may idle behind it for ever. A
run is its header, the tree, go; between header and tree, where an environment is to be built, the files that it
follows from, and a pause in which it is kept. The input may break off anywhere: before `go` nothing of the user's
has run, but for what `begun` was said of.
"""

import functools
import hashlib
import io
import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any, BinaryIO, Final

from ci_common.stores import Archive, ArchiveEntry
from ci_controller.archive_tar import tar_stream
from ci_controller.install_plan import InstallPlan, InstallStep

# The image needs nothing of ours but a Python: the harness is always this controller's version.
_BOOTSTRAP: Final = """\
import json, os, sys, types
def read(size):
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            os._exit(100)
        data += chunk
    return data
for name, source in json.loads(read(int.from_bytes(read(4), "big"))):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
module.main()
"""
# The image's own environment may hold what a user had installed there, its Python and whatever that imports at its
# start included. So the harness runs in one that a job cannot write to, and without `site`; only an image that has
# none outside of an environment gives us that one.
_FIND_PYTHON: Final = """\
path=$PATH; PATH=/usr/local/bin:/usr/bin:/bin
python=$(command -v python3)
PATH=$path; unset path PWD OLDPWD SHLVL
exec "${python:-python3}" "$@"
"""
PYTHON_ARGUMENTS: Final[tuple[str, ...]] = ("-I", "-S", "-u", "-c", _BOOTSTRAP)
BOOTSTRAP_COMMAND: Final[tuple[str, ...]] = ("/bin/sh", "-c", _FIND_PYTHON, "sh", *PYTHON_ARGUMENTS)

_PACKAGE: Final = "ci_controller.harness"
# What the harness consists of, each behind what it imports: they are put in place one by one, there is no file.
HARNESS_MODULES: Final = (
    "ending", "output", "signals", "intake", "memory", "complaints", "reports", "stacks", "network", "leftovers",
    "interpreter", "program", "ahead", "runner", "installer", "harness",
)  # fmt: skip

_TREE_RECORD: Final = 256 * 1024


WORKSPACE: Final = "/workspace"


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything the harness needs to know about a run beside the tree."""

    install: InstallPlan
    pytest_args: tuple[str, ...]
    timeout_seconds: float
    idle_timeout_seconds: float
    log_limit: int
    interrupt_grace_seconds: float = 10
    terminate_grace_seconds: float = 5
    isolate: bool = False  # once everything is installed it waits until it has no network
    workspace: str = WORKSPACE
    project_steps: tuple[InstallStep, ...] = ()  # behind the plan's own, and never part of an environment
    kept_from: str = ""  # when the environment was built that the container has, for the log


@dataclass(frozen=True, slots=True)
class Build:
    """The run makes an environment on its way: what its plan's steps read, path and content, in any order."""

    files: tuple[tuple[str, bytes], ...]


def prelude(environment: Mapping[str, str], *, ahead: bool, workspace: str = WORKSPACE) -> Iterator[bytes]:
    """Yield what a container is fed before there is a job for it: with `ahead`, pytest is started already, in that
    environment, where the image has one."""
    source = harness_source()
    yield len(source).to_bytes(4, "big") + source
    waiting = {
        "workspace": workspace,
        "environment": dict(environment),
        "reporter": _text("reporter.py"),
        "forerunner": _text("forerunner.py"),
        "ahead": ahead,
    }
    yield _record(b"W", _json(waiting))


def run_feed(spec: RunSpec, archive: Archive) -> Iterator[bytes]:
    """Yield a run, up to the last byte of the input, in pieces of moderate size.

    Raises InvalidArchive, in the middle of the tree, when an entry is not what it was declared to be.
    """
    yield _record(b"H", _json(_header(spec, is_build=False)))
    yield from tree_feed(archive)


def build_feed(spec: RunSpec, build: Build) -> Iterator[bytes]:
    """Yield the beginning of a run that makes an environment; when that was kept, `tree_feed` goes on."""
    yield _record(b"H", _json(_header(spec, is_build=True)))
    yield from _tree(tar_stream(_Files(build.files)))


def tree_feed(archive: Archive) -> Iterator[bytes]:
    """Yield the tree and go; raises InvalidArchive as `run_feed` does."""
    yield from _tree(tar_stream(archive))
    yield _record(b"G", b"")


class _Files(Archive):
    """A few files as an archive."""

    def __init__(self, files: tuple[tuple[str, bytes], ...]) -> None:
        self._files = dict(files)

    @property
    def entries(self) -> tuple[ArchiveEntry, ...]:
        return tuple(ArchiveEntry(path, 0o644, len(data)) for path, data in sorted(self._files.items()))

    @contextmanager
    def open(self, entry: ArchiveEntry) -> Generator[BinaryIO]:
        yield io.BytesIO(self._files[entry.path])


def _tree(chunks: Iterable[bytes]) -> Iterator[bytes]:
    digest, count = hashlib.sha256(), 0
    for chunk in _in_pieces(chunks, _TREE_RECORD):
        digest.update(chunk)
        count += len(chunk)
        yield _record(b"T", chunk)
    yield _record(b"E", _json({"bytes": count, "sha256": digest.hexdigest()}))


def _in_pieces(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the same bytes in pieces of about `size`: many small files cost few writes."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        if len(buffer) >= size:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


def _header(spec: RunSpec, *, is_build: bool) -> dict[str, Any]:
    plan = spec.install
    return {
        "steps": _steps(plan.steps),
        "project_steps": _steps(spec.project_steps),
        "environment": dict(plan.environment),
        "paths": plan.paths,
        "pytest_args": spec.pytest_args,
        "timeout": spec.timeout_seconds,
        "idle_timeout": spec.idle_timeout_seconds,
        "log_limit": spec.log_limit,
        "isolate": spec.isolate,
        "interrupt_grace": spec.interrupt_grace_seconds,
        "terminate_grace": spec.terminate_grace_seconds,
        "build": is_build,
        "kept_from": spec.kept_from,
    }


def _steps(steps: tuple[InstallStep, ...]) -> list[dict[str, Any]]:
    return [{"title": step.title, "uv": step.uv, "pip": step.pip} for step in steps]


def _record(kind: bytes, payload: bytes) -> bytes:
    return kind + len(payload).to_bytes(4, "big") + payload


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


@functools.cache
def harness_source() -> bytes:
    """Return the harness as the bootstrap takes it: JSON pairs of a module's name and text."""
    modules = [(f"{_PACKAGE}.{name}", _text(f"{name}.py")) for name in HARNESS_MODULES]
    return json.dumps(modules).encode()


@functools.cache
def _text(name: str) -> str:
    return resources.files(_PACKAGE).joinpath(name).read_text("utf-8")
