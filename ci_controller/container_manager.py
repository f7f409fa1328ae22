"""ContainerManager: the real container runtime, Docker through its SDK in threads of its own.

What a container is made of is decided in `docker_payload`, how to talk to the engine in `docker_engine`.
"""

import asyncio
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from ci_common.errors import EngineUnavailable
from ci_controller import labels
from ci_controller.container_runtime import (
    ContainerError,
    ContainerGone,
    ContainerSpec,
    ContainerState,
    ExitState,
    ObservedContainer,
)
from ci_controller.docker_engine import ContainerConflict, DockerEngine
from ci_controller.docker_payload import (
    JOB_NETWORK,
    container_payload,
    is_job_network,
    needs_network,
    network_arguments,
)
from ci_controller.docker_streams import Feed, Watch, followed_output, present_output

_THREADS: Final = 32
_PATIENCE_SECONDS: Final = 10.0  # with something that another caller is just making or removing
_PAUSE_SECONDS: Final = 0.05
_STATES: Final = {
    "created": ContainerState.CREATED,
    "running": ContainerState.RUNNING,
    "paused": ContainerState.RUNNING,
    "restarting": ContainerState.RUNNING,
    "removing": ContainerState.EXITED,
    "exited": ContainerState.EXITED,
    "dead": ContainerState.EXITED,
}

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine says of itself."""

    version: str
    runc: str
    cgroup_version: str
    storage_driver: str
    operating_system: str


class ContainerManager:
    """A `ContainerRuntime` over the Docker engine; needs none until it is first asked something.

    `job_log_bytes` is the limit of a job's log; that of the engine's own copy follows from it. `job_network` is
    a bridge that is made on demand (a name of at most 15 characters: the kernel's limit for interfaces).
    """

    def __init__(
        self,
        container_name_prefix: str = "",
        *,
        job_log_bytes: int = 100 * 1024**2,
        job_network: str = JOB_NETWORK,
        call_timeout: float = 60.0,
        send_timeout: float = 60.0,
    ) -> None:
        self.container_name_prefix = container_name_prefix
        self._job_log_bytes = job_log_bytes
        self._job_network = job_network
        self._send_timeout = send_timeout
        self._engine = DockerEngine(call_timeout, pool_size=_THREADS)
        # Never the loop's default executor: it is small, and feeds last as long as containers read.
        self._threads = ThreadPoolExecutor(_THREADS, "docker")

    async def close(self) -> None:
        self._engine.abort_streams()
        with ThreadPoolExecutor(1, "docker-close") as closer:
            await asyncio.get_running_loop().run_in_executor(closer, self._shut_down)

    async def ping(self) -> None:
        await self._ask(lambda api: api.ping())

    async def info(self) -> EngineInfo:
        """Return what the engine says of itself; raises EngineUnavailable."""
        version, info = await self._ask(lambda api: (api.version(), api.info()))
        runc = next((part["Version"] for part in version["Components"] if part["Name"] == "runc"), "unknown")
        return EngineInfo(
            version["Version"],
            runc,
            str(info.get("CgroupVersion", "1")),
            info["Driver"],
            info["OperatingSystem"],
        )

    async def image_id(self, reference: str) -> str | None:
        found = await self._in_thread(lambda: self._engine.find(lambda api: api.inspect_image(reference)))
        return found["Id"] if found else None

    async def list(self, instance_id: str) -> list[ObservedContainer]:
        return [*await self._labelled(labels.INSTANCE, instance_id)]

    async def probes(self) -> Sequence[ObservedContainer]:
        """Return the doctor's probes under our prefix, which belong to no installation."""
        found = await self._labelled(labels.KIND, labels.KIND_PROBE)
        return [probe for probe in found if probe.name.startswith(self.container_name_prefix)]

    async def create(self, spec: ContainerSpec) -> str:
        return await self._in_thread(lambda: self._create(spec))

    async def start_and_feed(
        self, container_id: str, chunks: Iterable[bytes], on_started: Callable[[], None]
    ) -> None:
        feed = Feed(self._engine, container_id, self._send_timeout)
        work = asyncio.ensure_future(self._in_thread(lambda: feed.run(chunks, on_started)))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            feed.abort()
            await asyncio.gather(work, return_exceptions=True)  # its thread still reads the caller's chunks
            raise

    async def signal(self, container_id: str, signal: str) -> None:
        with suppress(ContainerGone, ContainerConflict):  # gone, or not running
            await self._act(container_id, lambda api: api.kill(container_id, signal))

    async def exit_state(self, container_id: str) -> ExitState | None:
        found = await self._act(container_id, lambda api: api.inspect_container(container_id))
        state = found["State"]
        if _STATES[state["Status"]] is not ContainerState.EXITED:
            return None
        return ExitState(state["ExitCode"], state["OOMKilled"], state["Error"])

    async def remove(self, container_id: str) -> None:
        await self._in_thread(lambda: self._remove(container_id))

    def follow_output(self, container_id: str) -> AbstractContextManager[Iterator[bytes]]:
        return followed_output(self._engine, container_id)

    def read_output(self, container_id: str) -> AbstractContextManager[Iterator[bytes]]:
        return present_output(self._engine, container_id)

    @contextmanager
    def watch(self, instance_id: str, on_change: Callable[[], None]) -> Generator[None]:
        watch = Watch(self._engine, instance_id, on_change)
        watch.start()
        try:
            yield
        finally:
            watch.close()

    # -- in worker threads ---------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _ask(self, question: Callable[[Any], Result]) -> Result:
        return await self._in_thread(lambda: self._engine.ask(question))

    async def _act(self, container: str, action: Callable[[Any], Result]) -> Result:
        return await self._in_thread(lambda: self._engine.act(container, action))

    async def _labelled(self, key: str, value: str) -> Sequence[ObservedContainer]:
        wanted = {"label": f"{key}={value}"}
        # Not the SDK's high-level list: that inspects one by one and fails when one vanishes meanwhile.
        found = await self._ask(lambda api: api.containers(all=True, filters=wanted))
        return [_observed(summary) for summary in found]

    def _shut_down(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._engine.close()

    def _create(self, spec: ContainerSpec) -> str:
        if needs_network(spec):
            self._ensure_job_network()
        payload = container_payload(spec, self._job_log_bytes, self._job_network)
        try:
            return self._post(spec.name, payload)
        except ContainerConflict:
            self._make_room(spec)
            return self._post(spec.name, payload)

    def _post(self, name: str, payload: dict[str, Any]) -> str:
        return self._engine.act(name, lambda api: api.create_container_from_config(payload, name)["Id"])

    def _make_room(self, spec: ContainerSpec) -> None:
        """The name is free: a container of ours under it that was never started was removed."""
        found = self._engine.find(lambda api: api.inspect_container(spec.name))
        if found is None:
            return
        if not labels.are_ours(spec.labels, found["Config"]["Labels"] or {}):
            raise ContainerError(f"a container named {spec.name} exists that is not ours")
        if found["State"]["Status"] != "created":
            raise ContainerError(f"the container {spec.name} was started before")
        # Not by force: should somebody start it just now, this fails instead of killing it.
        self._engine.act(spec.name, lambda api: api.remove_container(found["Id"], v=True))

    def _remove(self, container_id: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                self._engine.act(
                    container_id, lambda api: api.remove_container(container_id, v=True, force=True)
                )
            except ContainerGone:
                return
            except ContainerConflict:  # somebody else is removing it at this moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)
            else:
                return

    def _ensure_job_network(self) -> None:
        """The jobs' network exists, made by us or by whoever was faster."""
        name, deadline = self._job_network, time.monotonic() + _PATIENCE_SECONDS
        while not self._job_network_exists():
            try:
                self._engine.act(name, lambda api: api.create_network(**network_arguments(name)))
            except ContainerError:  # another creator is just making it, and the engine refuses a second one
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def _job_network_exists(self) -> bool:
        found = self._engine.find(lambda api: api.inspect_network(self._job_network))
        if found is not None and not is_job_network(found):
            raise EngineUnavailable(
                f"The Docker network {self._job_network} is not one that ci made: remove it "
                f"(`docker network rm {self._job_network}`), it is made anew."
            )
        return found is not None


def _observed(summary: dict[str, Any]) -> ObservedContainer:
    return ObservedContainer(
        id=summary["Id"],
        name=summary["Names"][0].removeprefix("/") if summary["Names"] else "",
        labels=summary["Labels"] or {},
        state=_STATES[summary["State"]],
        created_at=datetime.fromtimestamp(summary["Created"], UTC),
    )
