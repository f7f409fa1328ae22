"""What `ci-admin doctor` asks of the engine: does it answer, is the image there, do limits and network hold.

The last two are not believed but tried, by a probe in a container made like a job's. The judgements are pure.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from ci_common.clock import utcnow
from ci_common.errors import EngineUnavailable
from ci_controller.container_manager import ContainerManager
from ci_controller.container_runtime import ContainerError, ContainerGone, ContainerSpec, NetworkState
from ci_controller.container_users import GROUP, USERS
from ci_controller.engine_judgements import UNPROVED, Check, judge_engine, judge_image, judge_used_runtime
from ci_controller.probe_container import probe_spec, remove_stale_probes, run_program
from ci_controller.probes.container import try_probes

FENCE_FIX: Final = (
    "Look at what else changes this host's packet filter, and run the controller as root, or build the runner image "
    "again (`make runner-image`): see docs/operations.md, The jobs' network."
)
_IMAGE_FIX: Final = (
    "Build the runner image again (`make runner-image`); what an image of your own needs is in docs/operations.md, "
    "The jobs' users."
)
_NETWORK_FIXES: Final = {
    "resolve": "Containers need a name server they can reach: see `dns` in /etc/docker/daemon.json.",
    "connect": "Containers need a way out: check the host's firewall and `sysctl net.ipv4.ip_forward`.",
    "tls": "The image does not trust the network's certificate: name its CA bundle in CI_CA_BUNDLE and "
    "build the runner image again.",
}


async def run_probes(manager: ContainerManager, image: str) -> list[Check]:
    """Return how each attempt to leave a job's container went; nothing of it is left behind."""
    try:
        image_id = await manager.image_id(image)
        if image_id is None:
            return [_missing(image)]
        await _fence(manager)  # as for a job
        return await try_probes(manager, image_id)
    except EngineUnavailable as error:
        return [_unavailable(error)]
    except (ContainerError, ContainerGone, TimeoutError) as error:
        return [_broken(error)]


async def run_checks(manager: ContainerManager, image: str) -> list[Check]:
    """Return the checks in the order in which one needs the other; nothing of the probe is left behind."""
    try:
        engine = judge_engine(await manager.info(), manager.job_runtime)
        image_id = await manager.image_id(image)
        if image_id is None:
            return [*engine, _missing(image)]
        found = judge_image(image, image_id, await manager.volumes_of(image_id))
        fence = judge_fence(await _fence(manager))
        return [*engine, found, fence, *await _check_inside(manager, image_id)]
    except EngineUnavailable as error:
        return [_unavailable(error)]


def _unavailable(error: EngineUnavailable) -> Check:
    return Check("docker engine", "failed", error.detail, "Start the engine, or name it in DOCKER_HOST.")


def _broken(error: Exception) -> Check:
    fix = "Look at the engine's log; is the image a runner image?"
    return Check("container", "failed", f"A probe in a container failed: {error}", fix)


def _missing(image: str) -> Check:
    fix = "Build it with `make runner-image`, or name another one in CI_RUNNER_IMAGE."
    return Check("runner image", "failed", f"The engine has no image {image}.", fix)


async def _check_inside(manager: ContainerManager, image_id: str) -> list[Check]:
    spec = probe_spec(manager.container_name_prefix, image_id)
    try:
        await remove_stale_probes(manager, utcnow())
        ran = await run_program(manager, spec, _program())
        report = json.loads(ran.output)
    except (ContainerError, ContainerGone, TimeoutError, ValueError) as error:
        return [_broken(error)]
    return [
        judge_user(report["user"]),
        judge_limits(report["limits"], spec),
        judge_disk(has_quotas=manager.has_quotas is True),
        judge_network(report["network"]),
        *judge_used_runtime(ran.runtime, manager.job_runtime),
    ]


def _program() -> bytes:
    return files("ci_controller").joinpath("doctor_probe.py").read_bytes()


async def _fence(manager: ContainerManager) -> NetworkState:
    """Return what was found of the fence around jobs, looking again where it had to be set."""
    found = await manager.guard_network()
    return await manager.guard_network() if found.broken else found


def judge_fence(state: NetworkState) -> Check:
    """Return whether jobs are kept from this host, its LAN and each other."""
    if state.trouble:
        return Check("job network", "warning" if state.accepted else "failed", state.trouble, FENCE_FIX)
    if state.broken:
        return Check(
            "job network", "failed", f"somebody undoes our rules: {'; '.join(state.broken)}", FENCE_FIX
        )
    detail = (
        f"the fence around jobs stands whole in {' and '.join(state.families)}; the bridge itself has no IPv6"
    )
    return Check("job network", "ok", detail)


def judge_user(report: Mapping[str, Any]) -> Check:
    """Return whether the image serves whatever user a job's container has."""
    closed: Sequence[str] = report["closed"]
    if closed:
        detail = (
            f"A job's user cannot write to the image's {' and '.join(closed)}: jobs make places of their own."
        )
        return Check("job user", "warning", detail, _IMAGE_FIX)
    if report["name"] is None:
        detail = "The image has no names for the jobs' users: tests that ask for their user's name fail."
        return Check("job user", "warning", detail, _IMAGE_FIX)
    return Check(
        "job user", "ok", "every container has a user of its own, and the image's places are open to it"
    )


def judge_limits(report: Mapping[str, Any], spec: ContainerSpec) -> Check:
    """Return whether what the kernel says inside is what was asked for outside."""
    expected = {
        "gid": GROUP,
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
    if report.get("uid") not in USERS:
        wrong.append(f"uid is {report.get('uid')} instead of one of {USERS[0]} to {USERS[-1]}")
    if not wrong:
        return Check("limits", "ok", "user, capabilities, seccomp, memory and processes hold in a container")
    fix = "The host's kernel or engine does not enforce this: enable the memory and pids cgroups and seccomp."
    return Check("limits", "failed", "In a container, " + ", ".join(wrong) + ".", fix)


def judge_disk(*, has_quotas: bool) -> Check:
    """Return how the disk limit of a job holds; the engine told by taking or refusing the probe's quota."""
    if has_quotas:
        detail = f"the engine has quotas: a job's disk is bounded, and polled for the verdict ({UNPROVED})"
        return Check("disk limit", "ok", detail)
    return Check(
        "disk limit",
        "ok",
        "the engine has no quotas (overlay2 has them on xfs with pquota): what a job writes is polled, a job above "
        "its limit is stopped, and the room on Docker's disk is watched twice a second",
    )


def judge_network(report: Mapping[str, Any]) -> Check:
    """Return whether a container reaches the package index; jobs without dependencies work without."""
    host, step = report["host"], report["step"]
    if step == "ok":
        return Check("network", "ok", f"{host} answers from inside a container")
    detail = f"{host} does not answer from inside a container ({step}: {report['error']})."
    return Check("network", "failed", detail, _NETWORK_FIXES[step])
