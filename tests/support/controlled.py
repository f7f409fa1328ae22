"""A controller over a real SQLite database, real stores and the engine in memory; and one that can die anywhere."""

import asyncio
import base64
import hashlib
import inspect
import io
import json
import threading
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from ci_common.clock import utcnow
from ci_common.job_terms import JobOptions, new_id
from ci_common.models import Job, User
from ci_common.repository import JobRepository
from ci_common.settings import StorageSettings
from ci_common.stores import ArchiveStore, LogStore, LogWriter, StoredArchive
from ci_controller.container_runtime import (
    ContainerInput,
    ContainerRuntime,
    ContainerState,
    ExitState,
    ObservedContainer,
)
from ci_controller.controller import JobController
from ci_controller.frames import Outcome
from ci_controller.image_retention import ImageLimits
from ci_controller.policy import Policy
from ci_persistence.factory import Stores, open_repository, open_stores
from tests.support.fake_runtime import FakeContainerRuntime, Step

T = TypeVar("T")

NO_ENVIRONMENTS: Final = ImageLimits(0, 0)
GO: Final = b"G\0\0\0\0"  # the last record of a complete feed
OUTPUT: Final = b"collected 1 item\n\xff\xfe not text\n1 passed\n"


class Frames:
    """Writes what the harness would."""

    def __init__(self) -> None:
        self._number = 0
        self._output = b""

    def output(self, data: bytes) -> bytes:
        self._output += data
        return self._frame(t="o", d=base64.b64encode(data).decode())

    def begun(self) -> bytes:
        return self.event("begun")

    def event(self, kind: str) -> bytes:
        return self._frame(t="e", k=kind, d={})

    def trailer(self, outcome: Outcome, **fields: Any) -> bytes:
        digest = hashlib.sha256(self._output).hexdigest()
        return self._frame(t="end", outcome=outcome, log_bytes=len(self._output), log_sha256=digest, **fields)

    def _frame(self, **fields: Any) -> bytes:
        self._number += 1
        return json.dumps({"n": self._number, **fields}, separators=(",", ":")).encode() + b"\n"


def records(fed: bytes) -> list[tuple[bytes, bytes]]:
    """Return the records behind the harness, type and payload; one that has not come whole is left out."""
    found: list[tuple[bytes, bytes]] = []
    at = 4 + int.from_bytes(fed[:4], "big")
    while len(fed) >= at + 5 and len(fed) >= (end := at + 5 + int.from_bytes(fed[at + 1 : at + 5], "big")):
        found.append((fed[at : at + 1], fed[at + 5 : end]))
        at = end
    return found


def header_of(fed: bytes) -> dict[str, Any] | None:
    """Return the header of the run, if it has come."""
    return next((json.loads(payload) for kind, payload in records(fed) if kind == b"H"), None)


def is_at_barrier(fed: bytes) -> bool:
    """Tell whether an environment's files have come, and nothing behind them."""
    kinds = [kind for kind, _ in records(fed)]
    return bool((header_of(fed) or {}).get("build")) and kinds[-1] == b"E" and kinds.count(b"E") == 1


def builds(fed: bytes) -> Iterable[Step] | None:
    """Do what every container does that is to build an environment, once it can."""
    return opening(fed, Frames()) if is_at_barrier(fed) else None


def opening(fed: bytes, frames: Frames) -> Iterator[bytes]:
    """Yield what a harness says before its tests, where it gets so far: again, as an engine may repeat itself."""
    if (header_of(fed) or {}).get("build"):
        yield frames.begun()
        yield frames.event("prepared")
    elif fed.endswith(GO):
        yield frames.begun()


def a_run(*middle: Step, exit_code: int = 0) -> Callable[[bytes], Iterable[Step]]:
    """Return the script of a container that prints OUTPUT, does `middle`, and ends as pytest with that code."""

    def script(fed: bytes) -> Iterator[Step]:
        frames = Frames()
        yield from opening(fed, frames)
        if not fed.endswith(GO):
            yield frames.trailer(Outcome.NOT_STARTED, message="The feed broke off.")
            yield ExitState(100)
            return
        for line in OUTPUT.splitlines(keepends=True):
            yield frames.output(line)
        yield from middle
        yield frames.trailer(Outcome.TESTS_RAN, exit_code=exit_code, session_finished=True)
        yield ExitState(exit_code)

    return script


async def eventually(check: Callable[[], Awaitable[T | None]], *, seconds: float = 60) -> T:
    """Return the first true-ish answer; raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            answer = await check()
            if answer:
                return answer
            await asyncio.sleep(0.005)


@dataclass
class ControlledSystem:
    """One installation; controllers come and go."""

    repository: JobRepository
    stores: Stores
    runtime: FakeContainerRuntime
    user: User
    policy: Policy = field(
        default_factory=lambda: Policy(max_running_jobs=2, warm_containers=0, environments=NO_ENVIRONMENTS)
    )

    def controller(self, interval: float = 60, **changes: Any) -> JobController:
        """Return a controller that is not started; by default only hints make it move."""
        parts: dict[str, Any] = {
            "logs": self.stores.logs,
            "archives": self.stores.archives,
            "changes": self.stores.hub,
            "policy": self.policy,
            "holder": new_id(),
        }
        repository = changes.pop("repository", self.repository)
        runtime = changes.pop("runtime", self.runtime)
        return JobController(repository, runtime, interval, **{**parts, **changes})

    @asynccontextmanager
    async def running(self, interval: float = 60, **changes: Any) -> AsyncGenerator[JobController]:
        """A controller runs; at the end it is told to stop, as by SIGTERM."""
        controller = self.controller(interval, **changes)
        task = asyncio.create_task(controller.run())
        try:
            yield controller
        finally:
            controller.stop()
            await task

    async def submit(
        self, files: dict[str, bytes] | None = None, *, user: User | None = None, **options: Any
    ) -> str:
        """A job is queued; returns its id."""
        stored = await self.save_archive(files)
        job = Job(new_id(), (user or self.user).id, utcnow(), stored.ref, options=JobOptions(**options))
        return (await self.repository.create_job(job)).id

    async def save_archive(self, files: dict[str, bytes] | None = None) -> StoredArchive:
        """An upload stands in the store, without a job."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            for path, content in (files or {"test_a.py": b"def test_a(): pass\n"}).items():
                packed.writestr(path, content)

        async def chunks() -> AsyncIterator[bytes]:
            yield archive.getvalue()

        return await self.stores.archives.save(chunks(), 10**9)

    async def job(self, job_id: str) -> Job:
        job = await self.repository.get_job(job_id)
        assert job is not None
        return job

    async def cancel(self, job_id: str) -> None:
        await self.repository.request_cancel(job_id, self.user.id, self.user.email, utcnow())

    async def finished(self, job_id: str, *, seconds: float = 60) -> Job:
        """Return the job once it is terminal and nothing of it is left on the engine."""

        async def check() -> Job | None:
            job = await self.job(job_id)
            gone = not any(job_id in name for name in self.runtime.containers)
            return job if job.status.is_terminal and gone else None

        return await eventually(check, seconds=seconds)

    async def printed(self, job_id: str, attempt: int = 1) -> None:
        """Everything that a running script has printed stands in the log."""

        async def check() -> bool:
            return self.log(job_id, attempt) == OUTPUT

        await eventually(check)

    async def noted(self, note: str | None) -> None:
        """The controller says that, or nothing, to `/ready` and to whoever waits."""

        async def check() -> bool:
            state = await self.repository.controller_state()
            return state is not None and state.note == note

        await eventually(check)

    def log(self, job_id: str, attempt: int = 1) -> bytes:
        return self.stores.logs.read(job_id, attempt, 0, 10**9)

    async def verdicts(self, job_id: str) -> list[str]:
        """Return the final events of the job's timeline: exactly one, if all is well."""
        final = {"completed", "failed", "cancelled", "dead_lettered"}
        return [event.type for event in await self.repository.get_events(job_id) if event.type in final]


@asynccontextmanager
async def controlled_system(
    path: Path, script: Callable[[bytes], Iterable[Step]]
) -> AsyncGenerator[ControlledSystem]:
    """An installation in that directory, on an engine whose containers do `script`."""
    settings = StorageSettings(db_path=path / "ci_jobs.db")
    repository = open_repository(settings)
    stores = open_stores(settings)
    runtime = FakeContainerRuntime(script)
    runtime.ahead = builds
    try:
        await repository.initialize()
        await stores.hub.start()
        user = await repository.get_user_by_email("ada@example.org")  # of an installation that was restored
        if user is None:
            user = User(new_id(), "Ada", "ada@example.org", utcnow())
            await repository.create_user(user)
        yield ControlledSystem(repository, stores, runtime, user)
    finally:
        await runtime.close()
        await stores.hub.close()
        await repository.close()


class Faulty:
    """Stands in front of something whose calls of some names raise, for as long as `faults` has them."""

    def __init__(self, real: Any, **faults: Exception) -> None:
        self._real = real
        self.faults = faults
        self.raised: list[str] = []

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._real, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            if error := self.faults.get(name):
                self.raised.append(name)
                raise error
            return attribute(*args, **kwargs)

        return call


class Held:
    """Stands in front of something whose calls of one name wait until the test lets them go on."""

    def __init__(self, real: Any, name: str) -> None:
        self._real = real
        self._name = name
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._real, name)
        return partial(self._wait, attribute) if name == self._name else attribute

    async def _wait(self, method: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        self.reached.set()
        await self.go_on.wait()
        return await method(*args, **kwargs)


class LateListing:
    """Stands in front of an engine that lists what has exited as running until it is asked about that one."""

    def __init__(self, real: FakeContainerRuntime) -> None:
        self._real = real
        self._asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def list(self, instance_id: str) -> Sequence[ObservedContainer]:
        return [
            replace(one, state=ContainerState.RUNNING)
            if one.state is ContainerState.EXITED and one.id not in self._asked
            else one
            for one in await self._real.list(instance_id)
        ]

    async def exit_state(self, container_id: str) -> ExitState | None:
        self._asked.add(container_id)
        return await self._real.exit_state(container_id)


# -- a process that dies between two durable effects -------------------------------------------------------


class ProcessDied(OSError):
    """Whatever a process that is dead would do."""


class Life:
    """The life of a process that dies after the n-th effect of that name; from then on it can do nothing."""

    def __init__(self, death: str, nth: int = 1) -> None:
        self._death = death
        self._left = nth
        self._lock = threading.Lock()
        self.died = threading.Event()

    def effect(self, name: str) -> None:
        """The effect stands; raises ProcessDied if it was the last one, before anybody heard of it."""
        self.require()
        with self._lock:
            self._left -= name == self._death
            if self._left:
                return
        self.died.set()
        raise ProcessDied(f"died after {name}")

    def require(self) -> None:
        if self.died.is_set():
            raise ProcessDied("dead")


class _Mortal:
    """Stands in front of something and lets its user die after an effect on it."""

    def __init__(self, real: Any, life: Life, effects: frozenset[str]) -> None:
        self._real = real
        self._life = life
        self._effects = effects

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name == "close" or not callable(method):  # files of a dead process are closed, too
            return method

        if inspect.iscoroutinefunction(method):
            return partial(self._awaited, name, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._life.require()
            result = method(*args, **kwargs)
            if name in self._effects:
                self._life.effect(name)
            return result

        return call

    async def _awaited(
        self, name: str, method: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
    ) -> Any:
        self._life.require()
        value = await method(*args, **kwargs)
        if name in self._effects:
            self._life.effect(name)
        self._life.require()
        return value


class _MortalRuntime(_Mortal):
    """What is started has an input, and feeding it is more than one effect."""

    async def start(self, container_id: str) -> ContainerInput:
        self._life.require()
        held: ContainerInput = await self._real.start(container_id)
        try:
            self._life.effect("start")
        except ProcessDied:
            held.close()
            raise
        return cast("ContainerInput", _MortalInput(held, self._life, frozenset({"finish"})))


class _MortalInput(_Mortal):
    async def send(self, chunks: Iterable[bytes]) -> None:
        def sent() -> Iterator[bytes]:
            for chunk in chunks:
                yield chunk
                self._life.effect("feed")

        self._life.require()
        await self._real.send(sent())


class _MortalLogs(_Mortal):
    def writer(self, job_id: str, attempt: int) -> LogWriter:
        self._life.require()
        writer = self._real.writer(job_id, attempt)
        return cast("LogWriter", _Mortal(writer, self._life, frozenset({"write", "write_events", "seal"})))


def mortal(system: ControlledSystem, life: Life) -> dict[str, Any]:
    """Return the parts of a controller that dies when its life is over."""
    writes = frozenset(
        {
            "take_over",
            "claim_jobs",
            "mark_started",
            "mark_begun",
            "record_stop",
            "finish_attempt",
            "release_attempt",
        }
    )
    calls = frozenset({"create", "rename", "commit", "signal", "remove"})
    return {
        "repository": cast("JobRepository", _Mortal(system.repository, life, writes)),
        "runtime": cast("ContainerRuntime", _MortalRuntime(system.runtime, life, calls)),
        "logs": cast("LogStore", _MortalLogs(system.stores.logs, life, frozenset())),
        "archives": cast("ArchiveStore", _Mortal(system.stores.archives, life, frozenset({"delete"}))),
    }
