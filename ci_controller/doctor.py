"""What `ci-admin doctor` asks of the engine: does it answer, is the image there, do limits and network hold.

The last two are not believed but tried, by a probe in a container made like a job's. The judgements are pure.
"""

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any, Final, Literal

from ci_common.clock import utcnow
from ci_common.errors import EngineUnavailable
from ci_controller import labels
from ci_controller.container_manager import ContainerManager
from ci_controller.container_runtime import ContainerError, ContainerGone, ContainerSpec

PROBE_SECONDS: Final = 60.0
STALE_AFTER: Final = timedelta(minutes=10)  # far beyond any probe whose doctor lives
_POLL_SECONDS: Final = 0.05

_NETWORK_FIXES: Final = {
    "resolve": "Containers need a name server they can reach: see `dns` in /etc/docker/daemon.json.",
    "connect": "Containers need a way out: check the host's firewall and `sysctl net.ipv4.ip_forward`.",
    "tls": "The image does not trust the network's certificate: name its CA bundle in CI_CA_BUNDLE and "
    "build the runner image again.",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what to do where it is not well."""

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    fix: str | None = None


async def run_checks(manager: ContainerManager, image: str) -> list[Check]:
    """Return the checks in the order in which one needs the other; nothing of the probe is left behind."""
    try:
        engine = await _check_engine(manager)
        image_id = await manager.image_id(image)
        if image_id is None:
            return [engine, _missing(image)]
        found = Check("runner image", "ok", f"{image} is {image_id}")
        return [engine, found, *await _check_inside(manager, image_id)]
    except EngineUnavailable as error:
        return [
            Check("docker engine", "failed", error.detail, "Start the engine, or name it in DOCKER_HOST.")
        ]


async def _check_engine(manager: ContainerManager) -> Check:
    info = await manager.info()
    detail = (
        f"Docker {info.version} on {info.operating_system}, runc {info.runc}, cgroup v{info.cgroup_version}, "
        f"storage {info.storage_driver}"
    )
    return Check("docker engine", "ok", detail)


def _missing(image: str) -> Check:
    fix = "Build it with `make runner-image`, or name another one in CI_RUNNER_IMAGE."
    return Check("runner image", "failed", f"The engine has no image {image}.", fix)


async def _check_inside(manager: ContainerManager, image_id: str) -> list[Check]:
    spec = probe_spec(manager.container_name_prefix, image_id)
    try:
        await remove_stale_probes(manager, utcnow())
        report = await _probe(manager, spec)
    except (ContainerError, ContainerGone, TimeoutError, ValueError) as error:
        fix = "Look at the engine's log; is the image a runner image?"
        return [Check("container", "failed", f"A probe in a container failed: {error}", fix)]
    return [judge_limits(report["limits"], spec), judge_network(report["network"])]


def probe_spec(prefix: str, image_id: str) -> ContainerSpec:
    """Return a container like a job's, but for its labels: it belongs to no installation."""
    probe_id = str(uuid.uuid4())
    return ContainerSpec(
        name=f"{prefix}probe-{probe_id}",
        image_id=image_id,
        command=("python3", "-"),
        labels={labels.INSTANCE: f"probe-{probe_id}", labels.KIND: labels.KIND_PROBE},
    )


async def remove_stale_probes(manager: ContainerManager, now: datetime) -> None:
    """No probe is left of a doctor that was killed: it belongs to no installation, so nobody else removes it."""
    for probe in await manager.probes():
        if now - probe.created_at > STALE_AFTER:
            await manager.remove(probe.id)


async def _probe(manager: ContainerManager, spec: ContainerSpec) -> dict[str, Any]:
    creating = asyncio.ensure_future(manager.create(spec))
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            container = await asyncio.shield(creating)
            return json.loads(await _run(manager, container))
    finally:
        # A cancelled caller leaves nothing behind either, even where the engine was still creating.
        await asyncio.shield(asyncio.ensure_future(_clean_up(manager, creating)))


async def _run(manager: ContainerManager, container: str) -> bytes:
    program = files("ci_controller").joinpath("doctor_probe.py").read_bytes()
    await manager.start_and_feed(container, [program], lambda: None)
    while await manager.exit_state(container) is None:  # noqa: ASYNC110 - the engine is asked, nobody tells
        await asyncio.sleep(_POLL_SECONDS)
    return await asyncio.to_thread(_output, manager, container)


def _output(manager: ContainerManager, container: str) -> bytes:
    with manager.read_output(container) as output:
        return b"".join(output)


async def _clean_up(manager: ContainerManager, creating: asyncio.Future[str]) -> None:
    await asyncio.wait([creating])
    if creating.exception() is None:
        await manager.remove(creating.result())


def judge_limits(report: Mapping[str, Any], spec: ContainerSpec) -> Check:
    """Return whether what the kernel says inside is what was asked for outside."""
    expected = {
        "uid": 1000,
        "capabilities": 0,
        "no_new_privileges": 1,
        "seccomp": 2,
        "memory": spec.memory_bytes,
        "pids": spec.pids,
    }
    wrong = [
        f"{key} is {report.get(key)} instead of {want}"
        for key, want in expected.items()
        if report.get(key) != want
    ]
    if not wrong:
        return Check("limits", "ok", "user, capabilities, seccomp, memory and processes hold in a container")
    fix = "The host's kernel or engine does not enforce this: enable the memory and pids cgroups and seccomp."
    return Check("limits", "failed", "In a container, " + ", ".join(wrong) + ".", fix)


def judge_network(report: Mapping[str, Any]) -> Check:
    """Return whether a container reaches the package index; jobs without dependencies work without."""
    host, step = report["host"], report["step"]
    if step == "ok":
        return Check("network", "ok", f"{host} answers from inside a container")
    detail = f"{host} does not answer from inside a container ({step}: {report['error']})."
    return Check("network", "failed", detail, _NETWORK_FIXES[step])
