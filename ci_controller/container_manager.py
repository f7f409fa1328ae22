"""ContainerManager: the real container runtime, Docker through its SDK in threads of its own.

What a container is made of is decided in `docker_payload`, how to talk to the engine in `docker_engine`.
"""

import asyncio
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from ci_common.errors import EngineUnavailable
from ci_controller import labels
from ci_controller.container_disk import disk_use
from ci_controller.container_runtime import (
    ContainerError,
    ContainerGone,
    ContainerSpec,
    ContainerState,
    DiskUse,
    EnvironmentImage,
    ExitState,
    NetworkState,
    NewImage,
    ObservedContainer,
)
from ci_controller.container_users import ContainerUsers, users_of
from ci_controller.docker_engine import ContainerConflict, DockerEngine
from ci_controller.docker_input import DockerInput
from ci_controller.docker_payload import (
    RUNTIME_FIX,
    committed_labels,
    container_payload,
    environments_filter,
    needs_network,
    refuses_quota,
    refuses_runtime,
    with_quota,
)
from ci_controller.docker_streams import Watch, followed_output, present_output
from ci_controller.job_network import JobNetwork, NetworkOptions

_THREADS: Final = 32
_PATIENCE_SECONDS: Final = 10.0  # with something that another caller is just making or removing
_PAUSE_SECONDS: Final = 0.05
_NO_NAME: Final = "<none>:<none>"  # of an image whose reference another one has by now
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
    kernel: str
    backing_filesystem: str  # of the storage driver; empty where it names none
    security_options: Sequence[str]  # as `name=userns`
    runtimes: Sequence[str]


class ContainerManager:
    """A `ContainerRuntime` over the Docker engine; needs none until it is first asked something.

    `job_log_bytes` is the limit of a job's log; that of the engine's own copy follows from it. The jobs' network
    is made on demand.
    """

    def __init__(
        self,
        container_name_prefix: str = "",
        *,
        job_log_bytes: int = 100 * 1024**2,
        network: NetworkOptions | None = None,
        job_runtime: str | None = None,
        call_timeout: float = 60.0,
        send_timeout: float = 60.0,
        commit_timeout: float = 600.0,
    ) -> None:
        self.container_name_prefix = container_name_prefix
        self._job_log_bytes = job_log_bytes
        self.job_runtime = job_runtime
        self._send_timeout = send_timeout
        self._has_quotas: bool | None = None
        self._engine = DockerEngine(call_timeout, pool_size=_THREADS)
        self._slow_engine = DockerEngine(commit_timeout, pool_size=1)  # copies whatever an installer wrote
        self._network = JobNetwork(self._engine, network or NetworkOptions())
        self._users = ContainerUsers(self._taken_users)
        # Never the loop's default executor: it is small, and feeds last as long as containers read.
        self._threads = ThreadPoolExecutor(_THREADS, "docker")

    async def close(self) -> None:
        self._engine.abort_streams()
        with ThreadPoolExecutor(1, "docker-close") as closer:
            await asyncio.get_running_loop().run_in_executor(closer, self._shut_down)

    async def ping(self) -> None:
        await self._ask(lambda api: api.ping())

    async def engine_id(self) -> str:
        """Return what tells this engine from every other one."""
        return await self._ask(lambda api: api.info()["ID"])

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
            info["KernelVersion"],
            next((value for key, value in info.get("DriverStatus") or () if key == "Backing Filesystem"), ""),
            tuple(info.get("SecurityOptions") or ()),
            tuple(info.get("Runtimes") or ()),
        )

    async def image_id(self, reference: str) -> str | None:
        found = await self._in_thread(lambda: self._engine.find(lambda api: api.inspect_image(reference)))
        return found["Id"] if found else None

    async def image_size(self, image_id: str) -> int:
        return int((await self._act(image_id, lambda api: api.inspect_image(image_id)))["Size"])

    async def volumes_of(self, image_id: str) -> Sequence[str]:
        """Return the paths that an image declares as volumes."""
        found = await self._ask(lambda api: api.inspect_image(image_id))
        return sorted(found["Config"].get("Volumes") or ())

    async def runtime_of(self, container_id: str) -> str:
        """Return the runtime a container has, as the engine says of it: what runs inside can be lied to."""
        found = await self._act(container_id, lambda api: api.inspect_container(container_id))
        return found["HostConfig"]["Runtime"]

    async def gateway(self) -> str | None:
        """Return the host's address in the jobs' network, None before there is one."""
        name = self._network.options.bridge
        found = await self._in_thread(lambda: self._engine.find(lambda api: api.inspect_network(name)))
        return None if found is None else found["IPAM"]["Config"][0].get("Gateway")

    async def list(self, instance_id: str) -> list[ObservedContainer]:
        return [*await self._labelled(labels.INSTANCE, instance_id)]

    async def probes(self) -> Sequence[ObservedContainer]:
        """Return the doctor's probes under our prefix, which belong to no installation."""
        found = await self._labelled(labels.KIND, labels.KIND_PROBE)
        return [probe for probe in found if probe.name.startswith(self.container_name_prefix)]

    async def guard_network(self) -> NetworkState:
        return await self._in_thread(self._network.guard)

    async def remove_networks(self, only: str | None = None) -> Sequence[str]:
        """No jobs' network that no container is on is left, nor a rule of it; returns what was removed.

        `only` names the one that is meant. Raises EngineUnavailable.
        """
        return await self._in_thread(lambda: self._network.remove(only))

    async def create(self, spec: ContainerSpec) -> str:
        return await self._in_thread(lambda: self._create(spec))

    async def start(self, container_id: str) -> DockerInput:
        held = DockerInput(self._engine, container_id, self._threads, self._send_timeout)
        return await held.open(lambda: self._network.enter(container_id))

    async def rename(self, container_id: str, name: str) -> None:
        await self._in_thread(
            lambda: self._named(name, container_id, lambda api: api.rename(container_id, name))
        )

    async def commit(self, container_id: str, image: NewImage) -> str:
        return await self._in_thread(lambda: self._commit(container_id, image))

    async def environment_image(self, reference: str) -> EnvironmentImage | None:
        found = await self._in_thread(lambda: self._engine.find(lambda api: api.inspect_image(reference)))
        return _inspected_image(found, reference) if found else None

    async def environment_images(self, instance_id: str) -> Sequence[EnvironmentImage]:
        wanted = environments_filter(instance_id)
        return [_image(one) for one in await self._ask(lambda api: api.images(filters=wanted))]

    async def remove_image(self, reference: str) -> None:
        try:
            await self._act(reference, lambda api: api.remove_image(reference))
        except ContainerError:
            if await self.image_id(reference) is not None:
                raise

    async def signal(self, container_id: str, signal: str) -> None:
        with suppress(ContainerGone, ContainerConflict):  # gone, or not running
            await self._act(container_id, lambda api: api.kill(container_id, signal))

    async def isolate(self, container_id: str) -> None:
        await self._in_thread(lambda: self._network.isolate(container_id))

    async def exit_state(self, container_id: str) -> ExitState | None:
        found = await self._act(container_id, lambda api: api.inspect_container(container_id))
        return exit_state_of(
            found["State"], found["HostConfig"]["Memory"], off_network=_is_off_network(found)
        )

    @property
    def has_quotas(self) -> bool | None:
        """Tell whether the engine bounds a writable layer itself; None before a container was made."""
        return self._has_quotas

    async def storage_root(self) -> str:
        return await self._ask(lambda api: api.info()["DockerRootDir"])

    async def layer_sizes(self, instance_id: str) -> dict[str, int]:
        return await self._in_thread(lambda: self._layer_sizes(instance_id))

    async def layer_size(self, container_id: str) -> int:
        # The inspection's own `size` is not in the SDK.
        wanted = {"id": container_id}
        found = await self._ask(lambda api: api.containers(all=True, size=True, filters=wanted))
        if not found:
            raise ContainerGone(container_id)
        return int(found[0].get("SizeRw") or 0)

    async def disk_uses(self, instance_id: str) -> dict[str, DiskUse]:
        return await self._in_thread(lambda: self._disk_uses(instance_id))

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
        self._slow_engine.close()
        self._network.close()

    def _layer_sizes(self, instance_id: str) -> dict[str, int]:
        wanted = {"label": f"{labels.INSTANCE}={instance_id}"}  # those that run, unless asked for all
        found = self._engine.ask(lambda api: api.containers(size=True, filters=wanted))
        return {one["Id"]: int(one.get("SizeRw") or 0) for one in found}  # without it when empty

    def _disk_uses(self, instance_id: str) -> dict[str, DiskUse]:
        uses: dict[str, DiskUse] = {}
        for container, size in self._layer_sizes(instance_id).items():
            with suppress(ContainerGone, ContainerError):
                uses[container] = self._engine.act(container, lambda api: _disk_use(api, container, size))  # noqa: B023
        return uses

    def _create(self, spec: ContainerSpec) -> str:
        resolv_conf = self._prepared_network(spec)
        with self._users.reserved() as uid:
            return self._create_as(uid, spec, resolv_conf)

    def _create_as(self, uid: int, spec: ContainerSpec, resolv_conf: str | None) -> str:
        payload = container_payload(
            spec, uid, self._job_log_bytes, self._network.options.bridge, resolv_conf, self.job_runtime
        )
        return self._post_bounded(spec, payload)

    def _taken_users(self) -> set[int]:
        """Return the users of all containers on the engine, of whatever installation."""
        wanted = {"label": labels.UID}
        found = self._engine.ask(lambda api: api.containers(all=True, filters=wanted))
        return users_of(summary["Labels"] or {} for summary in found)

    def _prepared_network(self, spec: ContainerSpec) -> str | None:
        """The network that the container is to have exists; returns the file with its name servers."""
        if not needs_network(spec):
            return None
        self._network.ensure()
        return str(self._network.resolv_conf())

    def _post_bounded(self, spec: ContainerSpec, payload: dict[str, Any]) -> str:
        """The container has a quota where the engine has any: nothing else than trying tells for every driver."""
        if self._has_quotas is not False:
            try:
                container = self._post(spec.name, with_quota(payload, spec))
            except ContainerError as error:
                if not refuses_quota(str(error)):
                    raise
                self._has_quotas = False
            else:
                self._has_quotas = True
                return container
        return self._post(spec.name, payload)

    def _post(self, name: str, payload: dict[str, Any]) -> str:
        try:
            return self._named(name, name, lambda api: api.create_container_from_config(payload, name)["Id"])
        except ContainerError as error:
            if refuses_runtime(str(error)):  # no fault of the job: it waits until the engine has the runtime
                raise EngineUnavailable(f"{error}: {RUNTIME_FIX}") from error
            raise

    def _named(self, name: str, container: str, action: Callable[[Any], Result]) -> Result:
        """Return the result of a call that gives a container a name; the engine's refusal tells of others' ids."""
        try:
            return self._engine.act(container, action)
        except ContainerConflict as error:
            raise ContainerError(f"the name {name} is taken by another container") from error

    def _commit(self, container_id: str, image: NewImage) -> str:
        found = self._engine.act(container_id, lambda api: api.inspect_container(container_id))
        named = committed_labels(found["Config"]["Labels"] or {}, image.labels)
        repository, _, tag = image.reference.rpartition(":")
        return self._slow_engine.act(
            container_id,
            lambda api: api.commit(container_id, repository, tag, conf={"Labels": named})["Id"],
        )

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


def _disk_use(api: Any, container: str, layer_bytes: int) -> DiskUse:
    stats = api.stats(container, stream=False, one_shot=True)
    return disk_use(stats, api.inspect_container(container), layer_bytes)


def exit_state_of(
    state: Mapping[str, Any], memory_limit: int = 0, *, off_network: bool = False
) -> ExitState | None:
    """Return what the engine's own `State` of a container says of its end, None while it has not ended."""
    if _STATES[state["Status"]] is not ContainerState.EXITED:
        return None
    return ExitState(state["ExitCode"], state["OOMKilled"], state["Error"], memory_limit or None, off_network)


def _is_off_network(found: Mapping[str, Any]) -> bool:
    """Tell whether a container has lost its network; the engine remembers that of one that just ended."""
    return found["HostConfig"]["NetworkMode"] != "none" and not found["NetworkSettings"]["Networks"]


def _observed(summary: dict[str, Any]) -> ObservedContainer:
    return ObservedContainer(
        id=summary["Id"],
        name=summary["Names"][0].removeprefix("/") if summary["Names"] else "",
        labels=_given(summary["Labels"]),
        state=_STATES[summary["State"]],
        created_at=datetime.fromtimestamp(summary["Created"], UTC),
    )


def _image(summary: dict[str, Any]) -> EnvironmentImage:
    names = [name for name in summary["RepoTags"] or () if name != _NO_NAME]
    return EnvironmentImage(
        id=summary["Id"],
        reference=names[0] if names else summary["Id"],
        labels=_given(summary["Labels"]),
        size=summary["Size"],
        created_at=datetime.fromtimestamp(summary["Created"], UTC),
    )


def _inspected_image(found: dict[str, Any], reference: str) -> EnvironmentImage:
    return EnvironmentImage(
        id=found["Id"],
        reference=reference,
        labels=_given(found["Config"]["Labels"]),
        size=found["Size"],
        created_at=datetime.fromisoformat(found["Created"]),
    )


def _given(found: Mapping[str, str] | None) -> dict[str, str]:
    """Return the labels that say anything: what an image inherits cannot be taken off, only emptied."""
    return {key: value for key, value in (found or {}).items() if value}
