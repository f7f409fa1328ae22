"""What a container is fed over its standard input, once: the harness, the run's header, the tree, go.

The harness comes first, its modules as text behind one length; then records of one type byte, a four-byte
big-endian length and a payload. The input may break off anywhere: before `go` nothing of the user's has run.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from ci_common.stores import Archive
from ci_controller.archive_tar import tar_stream
from ci_controller.install_plan import InstallPlan

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
BOOTSTRAP_COMMAND: Final[tuple[str, ...]] = ("python3", "-I", "-u", "-c", _BOOTSTRAP)

_PACKAGE: Final = "ci_controller.harness"
# What the harness consists of, each behind what it imports: they are put in place one by one, there is no file.
HARNESS_MODULES: Final = (
    "ending", "output", "signals", "intake", "memory", "complaints", "reports", "stacks", "network", "runner", "harness"
)  # fmt: skip

_TREE_RECORD: Final = 256 * 1024


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
    workspace: str = "/workspace"


def feed(spec: RunSpec, archive: Archive) -> Iterator[bytes]:
    """Yield every byte of the container's standard input, in pieces of moderate size.

    Raises InvalidArchive, in the middle of the tree, when an entry is not what it was declared to be.
    """
    source = harness_source()
    yield len(source).to_bytes(4, "big") + source
    yield _record(b"H", _json(_header(spec)))
    yield from _tree(tar_stream(archive))
    yield _record(b"G", b"")


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


def _header(spec: RunSpec) -> dict[str, Any]:
    plan = spec.install
    return {
        "workspace": spec.workspace,
        "steps": [{"title": step.title, "uv": step.uv, "pip": step.pip} for step in plan.steps],
        "environment": dict(plan.environment),
        "paths": plan.paths,
        "pytest_args": spec.pytest_args,
        "timeout": spec.timeout_seconds,
        "idle_timeout": spec.idle_timeout_seconds,
        "log_limit": spec.log_limit,
        "isolate": spec.isolate,
        "interrupt_grace": spec.interrupt_grace_seconds,
        "terminate_grace": spec.terminate_grace_seconds,
        "reporter": _text("reporter.py"),
    }


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
