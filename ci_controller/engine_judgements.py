"""What the doctor says of what the engine says of itself: pure judgements, nothing is tried here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ci_controller.container_manager import EngineInfo
from ci_controller.docker_payload import RUNTIME_FIX

# runc 1.1.12 closed the leak of a host directory into containers (CVE-2024-21626).
_SOUND_RUNC: Final = (1, 1, 12)
_TESTED_RUNTIMES: Final = frozenset({"runc", "io.containerd.runc.v2"})
# The machines where this is built have Docker 20.10 with runc, cgroup v1 and overlay2 on ext4.
UNPROVED: Final = "not proved: never run by us on such a host"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what to do where it is not well."""

    name: str
    status: Literal["ok", "warning", "failed", "not tried"]
    detail: str
    fix: str | None = None


def judge_engine(info: EngineInfo, job_runtime: str | None) -> list[Check]:
    """Return what is known of the engine without making a container."""
    return [
        judge_versions(info),
        judge_runc(info.runc),
        judge_cgroups(info),
        judge_user_namespaces(info),
        judge_runtime(info, job_runtime),
    ]


def judge_versions(info: EngineInfo) -> Check:
    """Return what the parts are."""
    detail = (
        f"Docker {info.version} on {info.operating_system}, kernel {info.kernel}, storage {info.storage_driver}"
        + (f" on {info.backing_filesystem}" if info.backing_filesystem else "")
    )
    return Check("docker engine", "ok", detail)


def judge_runc(version: str) -> Check:
    """Tell whether runc is one with the known ways out closed."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found and tuple(int(part) for part in found.groups()) >= _SOUND_RUNC:
        return Check("runc", "ok", f"runc {version}")
    detail = (
        f"runc {version} is older than 1.1.12, which closed a way out of containers (CVE-2024-21626); a distribution "
        "may have mended its older version, which this number does not tell."
    )
    return Check("runc", "warning", detail, "Update runc, or see your distribution's list of advisories.")


def judge_cgroups(info: EngineInfo) -> Check:
    """Tell which cgroups there are."""
    if info.cgroup_version == "2":
        return Check("cgroups", "ok", f"cgroup v2 ({UNPROVED})")
    detail = f"cgroup v{info.cgroup_version}: limits hold, but newer engines and distributions go without it."
    return Check("cgroups", "warning", detail, "Boot with systemd.unified_cgroup_hierarchy=1.")


def judge_user_namespaces(info: EngineInfo) -> Check:
    """Tell whether root in a container is nobody on the host."""
    options = {option.partition("=")[2].partition(",")[0] for option in info.security_options}
    if "seccomp" not in options:
        fix = "Use a kernel and an engine with seccomp: no container of ours starts without."
        return Check("engine isolation", "failed", "The engine does not filter system calls.", fix)
    found = sorted(options & {"userns", "rootless", "selinux", "apparmor"})
    if options & {"userns", "rootless"}:
        return Check("engine isolation", "ok", f"seccomp, {', '.join(found)} ({UNPROVED})")
    detail = "User ids are not remapped: a process that left its container would have its id on the host."
    fix = 'On a machine of its own, set "userns-remap": "default" in /etc/docker/daemon.json, or use a rootless engine.'
    return Check("engine isolation", "warning", detail, fix)


def judge_runtime(info: EngineInfo, job_runtime: str | None) -> Check:
    """Tell whether the runtime that the operator named is there."""
    if job_runtime is None:
        return Check("job runtime", "ok", "the engine's own")
    if job_runtime in info.runtimes:
        caveat = "" if job_runtime in _TESTED_RUNTIMES else f" ({UNPROVED})"
        return Check("job runtime", "ok", f"{job_runtime} is registered with the engine{caveat}")
    offered = ", ".join(sorted(info.runtimes))
    detail = f"The engine has no runtime {job_runtime}, so no job starts; it has {offered}."
    return Check("job runtime", "failed", detail, RUNTIME_FIX[0].upper() + RUNTIME_FIX[1:] + ".")


def judge_image(reference: str, image_id: str, volumes: Sequence[str]) -> Check:
    """Tell whether the runner image keeps jobs within their own layer."""
    if not volumes:
        return Check("runner image", "ok", f"{reference} is {image_id}")
    detail = f"{reference} declares {', '.join(volumes)} as volumes: what jobs write there is not bounded."
    return Check("runner image", "warning", detail, "Build it without VOLUME.")


def judge_used_runtime(used: str, job_runtime: str | None) -> list[Check]:
    """Tell whether a container got the runtime that the operator named, as the engine itself says of it."""
    if job_runtime is None or used == job_runtime:
        return []
    detail = f"A container for {job_runtime} was given {used}."
    return [Check("job runtime", "failed", detail, "Look at the engine's log.")]
