"""The fake engine in a world that moves in steps: containers do something when they are told to, calls go wrong."""

import asyncio
import itertools
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from ci_common.clock import Clock
from ci_common.errors import EngineUnavailable
from ci_controller.container_runtime import (
    ContainerInput,
    ContainerSpec,
    ContainerState,
    ExitState,
    NewImage,
    ObservedContainer,
)
from ci_controller.operations import AttemptKey
from tests.simulation.behaviour import not_started
from tests.simulation.faults import Faults
from tests.support.controlled import GO, builds
from tests.support.fake_runtime import FakeContainer, FakeContainerRuntime, Script, Step, UntilSignal

Behaviour = Callable[[str], Script]  # of a job, by its id
_HEADER: Final = b'{"steps": '  # begins the first record of a job
_CATCHES_UP: Final = 2  # chunks between two readings: with all of a job's late, five readings find the last


def key_of(container: FakeContainer) -> AttemptKey | None:
    """Return the attempt that a container is named after, None while it waits for one."""
    found = re.fullmatch(r"job-(.+)-(\d+)", container.spec.name)
    return AttemptKey(found[1], int(found[2])) if found else None


class SimulatedEngine(FakeContainerRuntime):
    """Like the fake it is made of, but no script runs by itself, and `faults` says what goes wrong."""

    def __init__(self, behaviour: Behaviour, faults: Faults, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.faults = faults
        self.runs: Counter[AttemptKey] = Counter()  # containers that got all of their input
        self.feeds: Counter[str] = Counter()  # headers of a job that a container got, by its id
        self.before_removal: Callable[[FakeContainer], None] = lambda container: None
        self.stalled = 0
        self.log_stalls = False  # what is late stays so, however often it is read
        self.refuses: set[str] = set()  # calls that get no answer, whoever makes them
        self._behaviour = behaviour
        self._steps: dict[str, Iterator[Step]] = {}
        self._go_on = asyncio.Event()
        self._makers: dict[str, str] = {}  # who made a container, by the name it had at first
        self._late: dict[str, list[bytes]] = {}  # printed, and not in the engine's log yet; by container

    # -- what the world does to it -------------------------------------------------------------------------

    def running(self) -> list[FakeContainer]:
        """Return the containers that run, always in the same order."""
        found = [one for one in self.containers.values() if one.state is ContainerState.RUNNING]
        return sorted(found, key=lambda one: self._whom(one.spec.name))

    def advance(self, container: FakeContainer) -> None:
        """The container does one more thing, if its turn has come."""
        if container.id not in self._steps:
            return  # it still waits for its input
        match next(self._steps[container.id], ExitState(0)):
            case bytes() as data:
                self._write(container, data)
            case ExitState() as ending:
                self._exit(container, ending)
            case UntilSignal(name):
                if name not in container.signals:
                    self._steps[container.id] = itertools.chain(
                        [UntilSignal(name)], self._steps[container.id]
                    )
            case _:
                raise AssertionError("the world moves by steps alone")

    def restart(self) -> None:
        """The engine went down and came back: whatever ran has ended with 137."""
        for container in self.running():
            self.end(container.id, ExitState(137))

    def catch_up(self, container: FakeContainer, chunks: int | None = None) -> None:
        """That much, or all, of what was late stands in the engine's log, whether or not the container runs."""
        with self._changed:
            late = self._late.get(container.id, [])
            container.output += late[:chunks]
            del late[:chunks]
            self._changed.notify_all()

    def release(self) -> None:
        """Slow calls go on."""
        self._go_on.set()
        self._go_on = asyncio.Event()

    # -- how it fails --------------------------------------------------------------------------------------

    async def list(self, instance_id: str) -> list[ObservedContainer]:
        found = await super().list(instance_id)
        if self.faults.strikes("listing fails", ""):
            raise EngineUnavailable("the listing broke off")
        return [one for one in found if not self.faults.strikes("hidden", self._whom(one.name))]

    async def create(self, spec: ContainerSpec) -> str:
        maker = asyncio.current_task()
        assert maker is not None
        self._makers[spec.name] = maker.get_name()
        await self._slowly("create", spec.name)
        return await super().create(spec)

    async def start(self, container_id: str) -> ContainerInput:
        await self._slowly("start", self._name(container_id))
        return await super().start(container_id)

    async def rename(self, container_id: str, name: str) -> None:
        await self._slowly("rename", name)
        await super().rename(container_id, name)

    async def commit(self, container_id: str, image: NewImage) -> str:
        await self._slowly("commit", self._name(container_id))
        image_id = await super().commit(container_id, image)
        self._reply("commit", self._name(container_id))
        return image_id

    async def signal(self, container_id: str, signal: str) -> None:
        await self._slowly("signal", self._name(container_id))
        await super().signal(container_id, signal)
        self._reply("signal", self._name(container_id))

    async def exit_state(self, container_id: str) -> ExitState | None:
        await self._slowly("exit_state", self._name(container_id))
        return await super().exit_state(container_id)

    async def remove(self, container_id: str) -> None:
        name = self._name(container_id)
        await self._slowly("remove", name)
        if container := self._containers.get(container_id):
            self.before_removal(container)
        await super().remove(container_id)
        self._reply("remove", name)

    def _name(self, container_id: str) -> str:
        found = self._containers.get(container_id)
        return found.spec.name if found else ""

    def _whom(self, name: str) -> str:
        """Return what a fault is about: names of containers that wait are random, the same seed has others."""
        return self._makers.get(name, name)

    async def _slowly(self, call: str, name: str) -> None:
        if self.faults.strikes("slow", f"{call} {self._whom(name)}"):
            self.stalled += 1
            try:
                await self._go_on.wait()
            finally:
                self.stalled -= 1

    def _answer(self, call: str, container: str = "") -> None:
        super()._answer(call, container)
        key = f"{call} {self._whom(self._name(container) or container)}"
        if call in self.refuses or self.faults.strikes("refused", key):
            raise EngineUnavailable(f"{call}: no answer")

    def _reply(self, call: str, container: str) -> None:
        super()._reply(call, container)
        if self.faults.strikes("reply lost", f"{call} {self._whom(container)}"):
            raise EngineUnavailable(f"the reply to {call} was lost")

    def _hear(self, container: FakeContainer) -> None:
        """Installing takes no time, and what a container says then is never late: its feed waits for that."""
        for step in builds(container.fed) or ():
            assert isinstance(step, bytes)
            FakeContainerRuntime._write(self, container, step)

    def _begin(self, container: FakeContainer) -> None:
        self.feeds[container.id] += container.fed.count(_HEADER)
        if not container.fed.endswith(GO):
            self._steps[container.id] = not_started(container.fed)
            return
        key = key_of(container)
        assert key is not None, "what is fed has its job's name"
        self.runs[key] += 1
        said = len(container.output)  # while its environment was built
        self._steps[container.id] = itertools.islice(self._behaviour(key.job_id)(container.fed), said, None)

    def read_output(self, container_id: str) -> AbstractContextManager[Iterator[bytes]]:
        """The log lags behind the container's exit: each reading may find more than the one before."""
        if not self.log_stalls and (container := self._containers.get(container_id)):
            self.catch_up(container, _CATCHES_UP)
        return super().read_output(container_id)

    def _write(self, container: FakeContainer, data: bytes) -> None:
        with self._changed:
            late = self._late.setdefault(container.id, [])
            if not late and not self.faults.strikes("output late", self._whom(container.spec.name)):
                super()._write(container, data)
            else:
                late.append(data)  # behind what is late comes nothing in time

    def _notify(self, container: FakeContainer) -> None:
        for _ in range(self.faults.copies(self._whom(container.spec.name))):
            super()._notify(container)

    def _follow(self, container: FakeContainer, left: threading.Event) -> Iterator[bytes]:
        whole = super()._follow(container, left)
        cut = self.faults.strikes("output cut", self._whom(container.spec.name))
        return itertools.islice(whole, 2) if cut else whole
