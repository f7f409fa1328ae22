"""Containers that run and wait to be told what: created, started, told how to wait, and nobody's yet.

The row of an attempt says that it has one. Until then only this process knows whose it is: its name is in
`names()` from before it is created, so that nobody here takes it for one that was left behind. When this
process dies the input ends, the container leaves by itself, and the successor removes it by its name.
"""

from dataclasses import dataclass

from ci_common.crash_points import crash_point
from ci_controller import labels
from ci_controller.container_runtime import (
    ContainerError,
    ContainerGone,
    ContainerInput,
    ContainerRuntime,
    ContainerSpec,
)
from ci_controller.feed import BOOTSTRAP_COMMAND, prelude
from ci_controller.install_plan import ENVIRONMENT
from ci_controller.job_source import JobSource
from ci_controller.lease import Lease
from ci_controller.policy import Policy


@dataclass(frozen=True, slots=True)
class WaitingContainer:
    """One of them, running; whoever has it may feed it once."""

    id: str
    name: str  # until it has its job's
    image_id: str
    input: ContainerInput


class WaitingContainers:
    """Makes containers that wait, and knows those that nobody else may touch."""

    def __init__(self, jobs: JobSource, runtime: ContainerRuntime, policy: Policy, lease: Lease) -> None:
        self._jobs = jobs
        self._runtime = runtime
        self._policy = policy
        self._lease = lease
        self._names: set[str] = set()

    def names(self) -> frozenset[str]:
        """Return what the containers are called that are being made, wait or are being assigned."""
        return frozenset(self._names)

    async def make(self, image_id: str) -> WaitingContainer:
        """A container of that image waits, and is the caller's alone until it is let go."""
        name = labels.waiting_name(self._policy.container_prefix)
        self._names.add(name)
        try:
            return await self._make(name, image_id)
        except BaseException:
            self._names.remove(name)
            raise

    async def is_alive(self, container: WaitingContainer) -> bool:
        """Tell whether the engine says that it runs; one whose input ended leaves by itself."""
        try:
            return await self._runtime.exit_state(container.id) is None
        except (ContainerGone, ContainerError):
            return False

    def let_go(self, container: WaitingContainer) -> None:
        """Its input is closed; unless a row has it, the next plan removes it."""
        container.input.close()
        self._names.discard(container.name)

    async def remove(self, container: WaitingContainer) -> None:
        """It is gone from the engine, where no next plan of ours would see to that."""
        self._lease.require()
        await self._runtime.remove(container.id)

    async def _make(self, name: str, image_id: str) -> WaitingContainer:
        self._lease.require()
        crash_point("before_create")
        container_id = await self._runtime.create(self._spec(name, image_id))
        crash_point("after_create")
        self._lease.require()
        container = WaitingContainer(container_id, name, image_id, await self._runtime.start(container_id))
        try:
            crash_point("after_start")
            await container.input.send(prelude(ENVIRONMENT, ahead=True))
        except BaseException:
            container.input.close()
            raise
        return container

    def _spec(self, name: str, image_id: str) -> ContainerSpec:
        return ContainerSpec(
            name=name,
            image_id=image_id,
            command=BOOTSTRAP_COMMAND,
            labels=labels.run_labels(self._jobs.instance_id, self._jobs.epoch),
            memory_bytes=self._policy.memory_bytes,
            cpus=self._policy.cpus,
            pids=self._policy.pids,
            disk_bytes=self._policy.disk_bytes,
        )
