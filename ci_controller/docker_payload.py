"""What is sent to the engine to make a container or the jobs' network: pure functions, frozen by a test.

Every limit that keeps hostile code in its place is here; nothing a user wrote reaches any field.
"""

from collections.abc import Mapping
from typing import Any, Final

from ci_controller.container_runtime import ContainerSpec

USER: Final = "1000:1000"
WORKSPACE: Final = "/workspace"
JOB_NETWORK: Final = "ci-jobs"  # shared by all installations on the host
NETWORK_LABEL: Final = "ci.network"
ICC_OPTION: Final = "com.docker.network.bridge.enable_icc"

_OPEN_FILES: Final = 4096
_SHM_BYTES: Final = 64 * 1024**2
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


def container_payload(spec: ContainerSpec, log_limit: int, job_network: str = JOB_NETWORK) -> dict[str, Any]:
    """Return the whole body of the engine's create call."""
    return {
        "Image": spec.image_id,
        "Entrypoint": [],  # not the image's
        "Cmd": list(spec.command),
        "User": USER,
        "WorkingDir": WORKSPACE,
        "Hostname": "ci",
        "Domainname": "",
        "Env": [],  # the harness makes the environment of what it runs
        "Labels": dict(spec.labels),
        "OpenStdin": True,
        "StdinOnce": True,  # a sender that dies is end of input
        "AttachStdin": True,
        "AttachStdout": False,  # an attached output would throttle the job; the output is read from the log
        "AttachStderr": False,
        "Tty": False,
        "ExposedPorts": {},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(spec, log_limit, job_network),
    }


def _host_config(spec: ContainerSpec, log_limit: int, job_network: str) -> dict[str, Any]:
    return {
        "Privileged": False,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],  # seccomp stays at the engine's default profile
        "Devices": [],
        "Binds": [],
        "IpcMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "NetworkMode": job_network if needs_network(spec) else "none",
        "PublishAllPorts": False,
        "Memory": spec.memory_bytes,
        "MemorySwap": spec.memory_bytes,  # equal: no swap
        "NanoCpus": round(spec.cpus * 1e9),
        "PidsLimit": spec.pids,
        "Ulimits": [
            {"Name": "nofile", "Soft": _OPEN_FILES, "Hard": _OPEN_FILES},
            {"Name": "core", "Soft": 0, "Hard": 0},
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
    """Tell whether a network that has the name is the one we would have made."""
    labels: Mapping[str, str] = found.get("Labels") or {}
    options: Mapping[str, str] = found.get("Options") or {}
    return NETWORK_LABEL in labels and options.get(ICC_OPTION) == "false"
