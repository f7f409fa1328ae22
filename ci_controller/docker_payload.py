"""What is sent to the engine to make a container or the jobs' network: pure functions, frozen by a test.

Every limit that keeps hostile code in its place is here; nothing a user wrote reaches any field.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ci_controller import labels
from ci_controller.container_runtime import ContainerSpec
from ci_controller.container_users import GROUP
from ci_controller.seccomp import profile

WORKSPACE: Final = "/workspace"
JOB_NETWORK: Final = "ci-jobs"  # shared by all installations on the host
NETWORK_LABEL: Final = "ci.network"
ICC_OPTION: Final = "com.docker.network.bridge.enable_icc"

RUNTIME_FIX: Final = "register it in /etc/docker/daemon.json and restart the engine, or unset CI_JOB_RUNTIME"

_OPEN_FILES: Final = 4096
_SHM_BYTES: Final = 64 * 1024**2
_QUOTA_SLACK: Final = 64 * 1024**2
_CPU_SHARES: Final = 256  # a quarter of what the engine's other containers get when both want all
_OOM_SCORE: Final = 500  # the kernel takes a job before it takes a daemon of the host

_LINE_OVERHEAD: Final = (
    128  # of a frame in the engine's file, beside its base64: JSON within JSON, and a time stamp
)
_FRAMES_PER_SECOND: Final = 100  # that are not full; the harness gathers bursts (`GATHER_SECONDS`)
_LONGEST_RUN: Final = 24 * 3600  # seconds: what a server allows unless it is told otherwise


def engine_log_bytes(log_limit: int) -> int:
    """Return how large the engine's own copy of a log may grow, which is never reached by a log within its limit.

    Each byte of a full frame takes 1.35 bytes there; twice leaves room for what we say ourselves. Beside that,
    every frame costs its line, and a job that prints single bytes makes as many frames as time and limit allow:
    without this second term the engine would throw output away before our own limit is reached.
    """
    return 2 * log_limit + _LINE_OVERHEAD * min(log_limit, _FRAMES_PER_SECOND * _LONGEST_RUN)


def with_quota(payload: dict[str, Any], spec: ContainerSpec) -> dict[str, Any]:
    """Return the payload for an engine with quotas: the wall behind the limit, for what polling cannot see.

    It stands a little further out, so that whoever meets it is above the limit, and the verdict says so.
    """
    size = {"size": str(spec.disk_bytes + _QUOTA_SLACK)}
    return {**payload, "HostConfig": {**payload["HostConfig"], "StorageOpt": size}}


def refuses_quota(message: str) -> bool:
    """Tell whether an engine refused a container because it has no quotas."""
    return "storage-opt" in message.lower()


def refuses_runtime(message: str) -> bool:
    """Tell whether an engine refused a container because it does not know the runtime."""
    return "unknown runtime" in message.lower() or "unknown or invalid runtime" in message.lower()


def container_payload(
    spec: ContainerSpec,
    uid: int,
    log_limit: int,
    job_network: str = JOB_NETWORK,
    resolv_conf: str | None = None,
    runtime: str | None = None,
) -> dict[str, Any]:
    """Return the whole body of the engine's create call; `resolv_conf` is a file of the host."""
    return {
        "Image": spec.image_id,
        "Entrypoint": [],  # not the image's
        "Cmd": list(spec.command),
        "User": f"{uid}:{GROUP}",
        "WorkingDir": WORKSPACE,
        "Hostname": "ci",
        "Domainname": "",
        "Env": [],  # the harness makes the environment of what it runs
        "Labels": {**spec.labels, labels.UID: str(uid)},
        "OpenStdin": True,
        "StdinOnce": True,  # a sender that dies is end of input
        "AttachStdin": True,
        "AttachStdout": False,  # an attached output would throttle the job; the output is read from the log
        "AttachStderr": False,
        "Tty": False,
        "ExposedPorts": {},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(spec, log_limit, job_network, resolv_conf, runtime),
    }


def _host_config(
    spec: ContainerSpec, log_limit: int, job_network: str, resolv_conf: str | None, runtime: str | None
) -> dict[str, Any]:
    return {
        "Privileged": False,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={profile()}"],
        "Runtime": runtime or "",  # the engine's own choice unless the operator named one
        "Devices": [],
        # The name servers by file: Docker would name its own, which tells of other containers.
        "Binds": [f"{resolv_conf}:/etc/resolv.conf:ro"] if resolv_conf and needs_network(spec) else [],
        "IpcMode": "private",
        "CgroupnsMode": "private",  # its place among the host's groups is nobody's business inside
        "PidMode": "",
        "UTSMode": "",
        "NetworkMode": job_network if needs_network(spec) else "none",
        "PublishAllPorts": False,
        "Memory": spec.memory_bytes,
        "MemorySwap": spec.memory_bytes,  # equal: no swap
        "NanoCpus": round(spec.cpus * 1e9),
        "CpuShares": _CPU_SHARES,
        "PidsLimit": spec.pids,  # no `nproc` beside it: that one would count the same again
        "Ulimits": [
            {"Name": "nofile", "Soft": _OPEN_FILES, "Hard": _OPEN_FILES},
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "fsize", "Soft": spec.disk_bytes, "Hard": spec.disk_bytes},  # one file, at once
        ],
        "OomScoreAdj": _OOM_SCORE,
        "ShmSize": _SHM_BYTES,
        "LogConfig": {
            "Type": "json-file",
            # A backstop for the host. One file only: rotation loses lines silently, whatever the number of files.
            "Config": {"max-size": str(engine_log_bytes(log_limit)), "max-file": "1"},
        },
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
        "Init": False,  # the harness is process 1 and reaps
    }


def guard_payload(image: str, network: str, command: Sequence[str]) -> dict[str, Any]:
    """Return the create call's body for a container of ours that changes the packet filter of `network`."""
    return {
        "Image": image,
        "Entrypoint": [],
        "Cmd": list(command),
        "User": "0:0",
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "Labels": {labels.KIND: labels.KIND_GUARD},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": network,
            "CapDrop": ["ALL"],
            "CapAdd": ["NET_ADMIN", "NET_RAW"],  # what iptables asks for
            "SecurityOpt": ["no-new-privileges:true"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/run": "rw,nosuid,nodev,noexec,size=1m"},  # for iptables' lock
            "LogConfig": {"Type": "json-file", "Config": {}},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        },
    }


def guards_filter() -> dict[str, str]:
    """Return the engine's filter for such containers."""
    return {"label": f"{labels.KIND}={labels.KIND_GUARD}"}


def committed_labels(found: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the labels to commit a container with: an image gets those of its container, unless they are named."""
    return {**dict.fromkeys(found, ""), **wanted}


def environments_filter(instance_id: str) -> dict[str, list[str]]:
    """Return the engine's filter for the images that an installation made of containers."""
    kind = f"{labels.KIND}={labels.KIND_ENVIRONMENT}"
    return {"label": [f"{labels.INSTANCE}={instance_id}", kind]}


def networks_filter() -> dict[str, str]:
    """Return the engine's filter for the jobs' networks, of whatever installation."""
    return {"label": NETWORK_LABEL}


def needs_network(spec: ContainerSpec) -> bool:
    """Tell whether a container is to have the jobs' network."""
    assert spec.network in {"internet", "none"}, f"unknown network {spec.network!r}"
    return spec.network == "internet"


def network_arguments(job_network: str = JOB_NETWORK) -> dict[str, Any]:
    """Return the arguments of the SDK's call that creates the jobs' network."""
    return {
        "name": job_network,
        "driver": "bridge",
        "check_duplicate": True,
        "enable_ipv6": False,
        "options": {
            ICC_OPTION: "false",  # jobs cannot reach each other
            # The driver refuses a second bridge of one name: of two creators at once, one loses.
            "com.docker.network.bridge.name": job_network,
        },
        "labels": {NETWORK_LABEL: "jobs"},
    }


def is_job_network(found: Mapping[str, Any]) -> bool:
    """Tell whether a network is the one we would have made under its name: the fence is around that bridge."""
    named: Mapping[str, str] = found.get("Labels") or {}
    options: Mapping[str, str] = found.get("Options") or {}
    ours: Mapping[str, str] = network_arguments(found["Name"])["options"]
    return NETWORK_LABEL in named and ours.items() <= options.items()
