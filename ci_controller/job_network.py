"""JobNetwork: the bridge that jobs are on, the fence around it, and how a container gets onto it and off again.

Synchronous, for the container manager's threads. What the fence is made of is decided in `network_rules`, how it
gets into the kernel in `firewall`.
"""

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from ci_common.errors import EngineUnavailable
from ci_controller.container_runtime import ContainerError, ContainerGone, NetworkState
from ci_controller.docker_engine import DockerEngine
from ci_controller.docker_payload import (
    JOB_NETWORK,
    guard_payload,
    guards_filter,
    is_job_network,
    network_arguments,
    networks_filter,
)
from ci_controller.firewall import (
    ContainerFirewall,
    Firewall,
    FirewallError,
    HostFirewall,
    NetworkGuard,
    host_firewall_works,
    remove_fences,
)
from ci_controller.network_rules import Destination, Fence, Network
from ci_controller.resolver import name_servers, write_resolv_conf

_PATIENCE_SECONDS: Final = 10.0  # with a network that another caller is just making
_PAUSE_SECONDS: Final = 0.05
_GUARD_SECONDS: Final = 30  # for a container that runs iptables
_WAY_OUT: Final = (
    "Let the controller run as root with iptables and nsenter installed, build the runner image again "
    "(`make runner-image`), or accept jobs that reach the host and its LAN with CI_JOB_NETWORK_UNGUARDED=1."
)
_NO_SERVERS: Final = (
    "no name server that a job could ask is known: name one of IPv4 in CI_JOB_DNS (the host's /etc/resolv.conf names "
    "none that is not on a loopback address)"
)
_UNGUARDED: Final = (
    "jobs run UNGUARDED, as CI_JOB_NETWORK_UNGUARDED=1 says: they may reach this host and its LAN"
)


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What was decided about the jobs' network.

    `bridge` is also the name of its interface: at most 15 characters, the kernel's limit. `resolv_conf` is where
    the jobs' list of name servers is kept; by default in a directory that lives as long as this process.
    """

    bridge: str = JOB_NETWORK
    dns: tuple[IPv4Address, ...] = ()
    allowed: tuple[Destination, ...] = ()
    unguarded: bool = False
    guard_image: str = "ci-runner:latest"
    resolv_conf: Path | None = None


def bridge_for(dns: Sequence[IPv4Address], allowed: Sequence[Destination]) -> str:
    """Return the bridge for such rules: controllers with other settings never share one, and never fight for it."""
    if not dns and not allowed:
        return JOB_NETWORK
    return f"{JOB_NETWORK}-{sha256(repr((*dns, *allowed)).encode()).hexdigest()[:6]}"


class JobNetwork:
    """One bridge on one engine; nothing is touched before it is needed."""

    def __init__(self, engine: DockerEngine, options: NetworkOptions) -> None:
        self.options = options
        self._engine = engine
        self._own_directory: tempfile.TemporaryDirectory[str] | None = None
        self._making_directory = threading.Lock()
        through_container = ContainerFirewall(self._run_guard)
        self._guards = {
            True: NetworkGuard(HostFirewall(), self._fence),
            False: NetworkGuard(through_container, self._fence),
        }
        self._firewalls: dict[bool, Firewall] = {True: HostFirewall(), False: through_container}

    def close(self) -> None:
        """Nothing on disk is left of what only this process needed."""
        if self._own_directory is not None:
            self._own_directory.cleanup()

    # -- the bridge ----------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """The network exists, made by us or by whoever was faster."""
        name, deadline = self.options.bridge, time.monotonic() + _PATIENCE_SECONDS
        while not self._exists():
            try:
                self._engine.act(name, lambda api: api.create_network(**network_arguments(name)))
            except ContainerError:  # another creator is just making it, and the engine refuses a second one
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def resolv_conf(self) -> Path:
        """Return the file to put in the place of a container's /etc/resolv.conf; raises ContainerError."""
        servers = name_servers(self.options.dns)
        if not servers:
            raise ContainerError(_NO_SERVERS)
        path = self.options.resolv_conf or self._temporary() / "resolv.conf"
        write_resolv_conf(path, servers)
        return path.absolute()

    def _temporary(self) -> Path:
        with self._making_directory:
            if self._own_directory is None:
                self._own_directory = tempfile.TemporaryDirectory(prefix="ci-network-")
            return Path(self._own_directory.name)

    def _exists(self) -> bool:
        found = self._engine.find(lambda api: api.inspect_network(self.options.bridge))
        if found is not None and not is_job_network(found):
            raise EngineUnavailable(
                f"The Docker network {self.options.bridge} is not one that ci made: remove it "
                f"(`docker network rm {self.options.bridge}`), it is made anew."
            )
        return found is not None

    # -- the fence -----------------------------------------------------------------------------------------

    def guard(self) -> NetworkState:
        """Return what was found of the fence; what was broken has been set again."""
        if not name_servers(self.options.dns):
            return NetworkState(trouble=_NO_SERVERS)
        try:
            guard = self._guards[_directly()]
            broken = guard.inspect()
            return NetworkState(broken, families=tuple(f"IPv{family}" for family in guard.families))
        except (FirewallError, ContainerError) as error:
            if self.options.unguarded:
                return NetworkState(trouble=f"{_UNGUARDED} ({error})", accepted=True)
            return NetworkState(trouble=f"the jobs' network cannot be guarded: {error}. {_WAY_OUT}")

    def enter(self, container_id: str) -> None:
        """A container that has just started cannot ask Docker's name server; raises ContainerError."""
        found = self._engine.act(container_id, lambda api: api.inspect_container(container_id))
        process: int = found["State"]["Pid"]
        if found["HostConfig"]["NetworkMode"] == "none" or not process:  # has none, or has ended already
            return
        try:
            self._guards[_directly()].close_embedded_dns(container_id, process)
        except (FirewallError, ContainerError) as error:
            if not self.options.unguarded:
                raise ContainerError(f"the container's network could not be guarded: {error}") from error

    def isolate(self, container_id: str) -> None:
        """The container has no network any more; no error where it has none, or is gone itself."""
        with suppress(ContainerGone):
            found = self._engine.act(container_id, lambda api: api.inspect_container(container_id))
            for name in found["NetworkSettings"]["Networks"]:
                self._disconnect(container_id, name)

    def _disconnect(self, container_id: str, network: str) -> None:
        def disconnect(api: Any) -> None:
            api.disconnect_container_from_network(container_id, network, force=True)

        try:
            self._engine.act(container_id, disconnect)
        except ContainerError as error:
            if not any(word in str(error) for word in ("is not connected", "not found")):
                raise

    def remove(self, only: str | None = None) -> list[str]:
        """No rule and no bridge is left but of networks that a container is on; returns what was removed.

        `only` names the one network that is meant. Raises EngineUnavailable.
        """
        try:
            return self._remove(only)
        except (ContainerError, FirewallError) as error:
            raise EngineUnavailable(f"The jobs' network could not be removed: {error}") from error

    def _remove(self, only: str | None) -> list[str]:
        known = {one["Name"] for one in self._engine.ask(lambda api: api.networks(filters=networks_filter()))}
        meant = known if only is None else known & {only}
        removed = {name for name in meant if self._remove_network(name)}

        def stays(bridge: str) -> bool:
            return bridge in known - removed or (only is not None and bridge != only)

        return sorted({*removed, *remove_fences(self._firewalls[_directly()], stays)})

    def _remove_network(self, name: str) -> bool:
        try:
            self._engine.act(name, lambda api: api.remove_network(name))
        except ContainerError as error:
            if "active endpoints" not in str(error):
                raise
            return False
        return True

    def _fence(self, connected: tuple[Network, ...]) -> Fence:
        return Fence(self.options.bridge, name_servers(self.options.dns), self.options.allowed, connected)

    def _run_guard(self, network: str, command: Sequence[str]) -> str:
        """Return what a command printed in a container of ours with the right to change that network."""
        self._sweep()
        payload = guard_payload(self.options.guard_image, network, command)
        name = f"{self.options.bridge}-guard-{uuid.uuid4().hex[:12]}"
        container = self._engine.act(name, lambda api: api.create_container_from_config(payload, name)["Id"])
        try:
            return self._engine.act(name, lambda api: _outcome(api, container))
        finally:
            with suppress(ContainerError, ContainerGone):
                self._engine.act(name, lambda api: api.remove_container(container, v=True, force=True))

    def _sweep(self) -> None:
        """No container is left of a guard that was killed."""
        for left in self._engine.ask(lambda api: api.containers(all=True, filters=guards_filter())):
            if left["Created"] < time.time() - 2 * _GUARD_SECONDS:
                with suppress(ContainerError, ContainerGone):
                    self._engine.act(left["Id"], lambda api: api.remove_container(left["Id"], force=True))  # noqa: B023


def _outcome(api: Any, container: str) -> str:
    api.start(container)
    code: int = api.wait(container, timeout=_GUARD_SECONDS)["StatusCode"]
    said: bytes = api.logs(container, stdout=code == 0, stderr=code != 0)
    text = said.decode(errors="replace")
    if code:
        raise ContainerError(f"in a container of the runner image: {text.strip() or f'exit code {code}'}")
    return text


def _directly() -> bool:
    """Tell whether the rules are set by this host's commands: it may, and the engine is here."""
    return host_firewall_works(os.environ.get("DOCKER_HOST"))
