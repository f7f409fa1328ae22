"""The whole of what is sent to the engine, frozen: a change here is a change of how jobs are confined."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from ci_controller import labels
from ci_controller.container_runtime import ContainerSpec
from ci_controller.docker_payload import (
    container_payload,
    engine_log_bytes,
    guard_payload,
    is_job_network,
    network_arguments,
    refuses_quota,
    refuses_runtime,
    with_quota,
)
from ci_controller.seccomp import profile

SPEC = ContainerSpec(
    name="demo-waiting-0123456789ab",
    image_id="sha256:abc",
    command=("python3", "-I", "/opt/harness.py"),
    labels=labels.run_labels("instance", epoch=7),
    memory_bytes=1024**3,
    cpus=1.5,
    pids=256,
)

GOLDEN: dict[str, Any] = {
    "Image": "sha256:abc",
    "Entrypoint": [],
    "Cmd": ["python3", "-I", "/opt/harness.py"],
    "User": "60706:1000",
    "WorkingDir": "/workspace",
    "Hostname": "ci",
    "Domainname": "",
    "Env": [],
    "Labels": {
        "ci.instance": "instance",
        "ci.kind": "run",
        "ci.epoch": "7",
        "ci.uid": "60706",
    },
    "OpenStdin": True,
    "StdinOnce": True,
    "AttachStdin": True,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "ExposedPorts": {},
    "Healthcheck": {"Test": ["NONE"]},
    "HostConfig": {
        "Privileged": False,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", "seccomp=" + profile()],
        "Runtime": "",
        "Devices": [],
        "Binds": [],
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "NetworkMode": "ci-jobs",
        "PublishAllPorts": False,
        "Memory": 1073741824,
        "MemorySwap": 1073741824,
        "NanoCpus": 1500000000,
        "CpuShares": 256,
        "PidsLimit": 256,
        "Ulimits": [
            {"Name": "nofile", "Soft": 4096, "Hard": 4096},
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "fsize", "Soft": 4294967296, "Hard": 4294967296},
        ],
        "OomScoreAdj": 500,
        "ShmSize": 67108864,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1305920000", "max-file": "1"}},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
        "Init": False,
    },
}


def test_the_whole_payload_is_this() -> None:
    assert container_payload(SPEC, 60706, log_limit=100_000_000) == GOLDEN


def test_the_name_servers_come_by_file_to_whoever_has_a_network() -> None:
    networked = container_payload(SPEC, 60706, 1, resolv_conf="/data/resolv.conf")["HostConfig"]
    assert networked["Binds"] == ["/data/resolv.conf:/etc/resolv.conf:ro"]
    alone = container_payload(replace(SPEC, network="none"), 60706, 1, resolv_conf="/data/resolv.conf")[
        "HostConfig"
    ]
    assert alone["Binds"] == []


def test_the_container_that_sets_packet_filter_rules_is_this() -> None:
    assert guard_payload("ci-runner:latest", "host", ["iptables-save"]) == {
        "Image": "ci-runner:latest",
        "Entrypoint": [],
        "Cmd": ["iptables-save"],
        "User": "0:0",
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "Labels": {"ci.kind": "guard"},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": "host",
            "CapDrop": ["ALL"],
            "CapAdd": ["NET_ADMIN", "NET_RAW"],
            "SecurityOpt": ["no-new-privileges:true"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/run": "rw,nosuid,nodev,noexec,size=1m"},
            "LogConfig": {"Type": "json-file", "Config": {}},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        },
    }


def test_the_whole_payload_for_an_engine_with_quotas_is_this() -> None:
    """The disk limit of 4 GiB and 64 MiB more: who meets this wall is above the limit."""
    plain = container_payload(SPEC, 60706, log_limit=100_000_000)
    bounded = {"HostConfig": {**GOLDEN["HostConfig"], "StorageOpt": {"size": "4362076160"}}}
    assert with_quota(plain, SPEC) == GOLDEN | bounded
    assert plain == GOLDEN, "what goes to an engine without quotas is another one"


@pytest.mark.parametrize(
    ("message", "refuses"),
    [
        (  # Docker 20.10 on ext4
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
            True,
        ),
        ("--storage-opt is not supported for vfs", True),
        ("no space left on device", False),
    ],
)
def test_a_refused_quota_is_told_from_other_refusals(message: str, refuses: bool) -> None:
    assert refuses_quota(message) is refuses


def test_the_operators_runtime_is_passed_on() -> None:
    assert container_payload(SPEC, 60706, 1, runtime="runsc")["HostConfig"]["Runtime"] == "runsc"


@pytest.mark.parametrize(
    ("message", "refuses"),
    [
        ("Unknown runtime specified runsc", True),  # Docker 20.10
        ("unknown or invalid runtime name: runsc", True),  # Docker 24 and later
        ("No such image: runsc", False),
    ],
)
def test_a_refused_runtime_is_told_from_other_refusals(message: str, refuses: bool) -> None:
    assert refuses_runtime(message) is refuses


def _engines_line(number: int, data: bytes) -> int:
    """Return how many bytes a frame takes in the engine's file."""
    frame = json.dumps({"n": number, "t": "o", "d": base64.b64encode(data).decode()}, separators=(",", ":"))
    line = {"log": frame + "\n", "stream": "stdout", "time": "2026-03-01T12:00:00.123456789Z"}
    return len(json.dumps(line, separators=(",", ":"))) + 1


@pytest.mark.parametrize("size", [1, 10, 25, 50, 80, 1000, 12_000])
@pytest.mark.parametrize("limit", [10_000, 100 * 1024**2, 2 * 1024**3])
def test_the_engine_keeps_every_log_that_is_within_its_limit(size: int, limit: int) -> None:
    """A day of gathered frames of that size, then as many full ones as the limit still allows."""
    small = min(24 * 3600 * 100, limit // size)
    full = max(0, limit - small * size) // 12_000
    used = small * _engines_line(24 * 3600 * 100, b"x" * size) + full * _engines_line(10**8, b"x" * 12_000)
    assert used < engine_log_bytes(limit)


def test_a_container_without_network_has_none() -> None:
    spec = ContainerSpec(name="n", image_id="i", command=("true",), labels={}, network="none")
    assert container_payload(spec, 60706, 1)["HostConfig"]["NetworkMode"] == "none"


def test_an_unknown_network_is_a_programming_error() -> None:
    spec = ContainerSpec(name="n", image_id="i", command=("true",), labels={}, network="host")
    with pytest.raises(AssertionError, match="host"):
        container_payload(spec, 60706, 1)


def test_the_jobs_network_is_this() -> None:
    assert network_arguments() == {
        "name": "ci-jobs",
        "driver": "bridge",
        "check_duplicate": True,
        "enable_ipv6": False,
        "options": {
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.name": "ci-jobs",
        },
        "labels": {"ci.network": "jobs"},
    }


ICC, BRIDGE = "com.docker.network.bridge.enable_icc", "com.docker.network.bridge.name"


@pytest.mark.parametrize(
    ("name", "labels", "options", "ours"),
    [
        ("ci-jobs", {"ci.network": "jobs"}, {ICC: "false", BRIDGE: "ci-jobs"}, True),
        ("ci-jobs-1a", {"ci.network": "jobs"}, {ICC: "false", BRIDGE: "ci-jobs-1a"}, True),
        ("ci-jobs", {"ci.network": "jobs"}, {ICC: "false", BRIDGE: "ci-jobs", "mtu": "1400"}, True),
        ("ci-jobs", {"ci.network": "jobs"}, {ICC: "false", BRIDGE: "br-other"}, False),
        ("ci-jobs-1a", {"ci.network": "jobs"}, {ICC: "false", BRIDGE: "ci-jobs"}, False),
        ("ci-jobs", {"ci.network": "jobs"}, {ICC: "false"}, False),
        ("ci-jobs", {"ci.network": "jobs"}, {ICC: "true", BRIDGE: "ci-jobs"}, False),
        ("ci-jobs", {"ci.network": "jobs"}, {BRIDGE: "ci-jobs"}, False),
        ("ci-jobs", {"ci.network": "jobs"}, None, False),
        ("ci-jobs", None, {ICC: "false", BRIDGE: "ci-jobs"}, False),
    ],
)
def test_a_network_of_that_name_is_judged_by_label_isolation_and_bridge(
    name: str, labels: dict[str, str] | None, options: dict[str, str] | None, ours: bool
) -> None:
    """A fence around the bridge that has the network's name would guard nothing of one on another bridge."""
    assert is_job_network({"Name": name, "Labels": labels, "Options": options}) is ours
