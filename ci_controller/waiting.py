"""Containers that run and wait to be told what: created, started, their input held open, and nobody's yet.

The row of an attempt says that it has one. Until then only this process knows whose it is: its name is in
`names()` from before it is created, so that nobody here takes it for one that was left behind. When this
process dies the input ends, the container leaves by itself, and the successor removes it by its name.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ci_common.crash_points import crash_point
from ci_controller import labels
from ci_controller.container_runtime import ContainerInput, ContainerRuntime, ContainerSpec
from ci_controller.feed import BOOTSTRAP_COMMAND, prelude
from ci_controller.install_plan import ENVIRONMENT
from ci_controller.job_source import JobSource
from ci_controller.lease import Lease
from ci_controller.policy import Policy


@dataclass(frozen=True, slots=True)
class WaitingContainer:
    """One of them, running; whoever has it may feed it once."""

    id: str
    image_id: str
    input: ContainerInput


class WaitingContainers:
    """Makes containers that wait, and hands them out."""

    def __init__(self, jobs: JobSource, runtime: ContainerRuntime, policy: Policy, lease: Lease) -> None:
        self._jobs = jobs
        self._runtime = runtime
        self._policy = policy
        self._lease = lease
        self._names: set[str] = set()

    def names(self) -> frozenset[str]:
        """Return what the containers are called that are being made, wait or are being assigned."""
        return frozenset(self._names)

    @asynccontextmanager
    async def handed_out(self, image_id: str) -> AsyncGenerator[WaitingContainer]:
        """A container of that image is the caller's alone, who leaves behind a row that has it, or nothing to keep.

        When the context is left its input is closed.
        """
        name = labels.waiting_name(self._policy.container_prefix)
        self._names.add(name)
        try:
            container = await self._make(name, image_id)
            try:
                crash_point("after_start")
                await container.input.send(prelude(ENVIRONMENT, ahead=True))
                yield container
            finally:
                container.input.close()
        finally:
            self._names.remove(name)

    async def _make(self, name: str, image_id: str) -> WaitingContainer:
        self._lease.require()
        crash_point("before_create")
        container_id = await self._runtime.create(self._spec(name, image_id))
        crash_point("after_create")
        self._lease.require()
        return WaitingContainer(container_id, image_id, await self._runtime.start(container_id))

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
