"""The whole of what is sent to the engine, frozen: a change here is a change of how jobs are confined."""

from typing import Any

import pytest

from ci_controller import labels
from ci_controller.container_runtime import ContainerSpec
from ci_controller.docker_payload import container_payload, is_job_network, network_arguments

SPEC = ContainerSpec(
    name="demo-job-4711-2",
    image_id="sha256:abc",
    command=("python3", "-I", "/opt/harness.py"),
    labels=labels.run_labels("instance", "4711", attempt=2, epoch=7),
    environment={"PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
    memory_bytes=1024**3,
    cpus=1.5,
    pids=256,
)

GOLDEN: dict[str, Any] = {
    "Image": "sha256:abc",
    "Entrypoint": [],
    "Cmd": ["python3", "-I", "/opt/harness.py"],
    "User": "1000:1000",
    "WorkingDir": "/workspace",
    "Hostname": "ci",
    "Domainname": "",
    "Env": ["COLUMNS=120", "PYTHONUNBUFFERED=1"],
    "Labels": {
        "ci.instance": "instance",
        "ci.kind": "run",
        "ci.job": "4711",
        "ci.attempt": "2",
        "ci.epoch": "7",
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
        "SecurityOpt": ["no-new-privileges:true"],
        "Devices": [],
        "Binds": [],
        "IpcMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "NetworkMode": "ci-jobs",
        "PublishAllPorts": False,
        "Memory": 1073741824,
        "MemorySwap": 1073741824,
        "NanoCpus": 1500000000,
        "PidsLimit": 256,
        "Ulimits": [
            {"Name": "nofile", "Soft": 4096, "Hard": 4096},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "OomScoreAdj": 500,
        "ShmSize": 67108864,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "300000000", "max-file": "1"}},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
        "Init": False,
    },
}


def test_the_whole_payload_is_this() -> None:
    assert container_payload(SPEC, engine_log_bytes=300_000_000) == GOLDEN


def test_a_container_without_network_has_none() -> None:
    spec = ContainerSpec(name="n", image_id="i", command=("true",), labels={}, network="none")
    assert container_payload(spec, 1)["HostConfig"]["NetworkMode"] == "none"


def test_an_unknown_network_is_a_programming_error() -> None:
    spec = ContainerSpec(name="n", image_id="i", command=("true",), labels={}, network="host")
    with pytest.raises(AssertionError, match="host"):
        container_payload(spec, 1)


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


@pytest.mark.parametrize(
    ("found", "ours"),
    [
        ({"Labels": network_arguments()["labels"], "Options": network_arguments()["options"]}, True),
        ({"Labels": None, "Options": network_arguments()["options"]}, False),
        ({"Labels": network_arguments()["labels"], "Options": {}}, False),
        ({"Labels": network_arguments()["labels"], "Options": None}, False),
    ],
)
def test_a_network_of_that_name_is_judged_by_label_and_isolation(found: dict[str, Any], ours: bool) -> None:
    assert is_job_network(found) is ours
