"""What the doctor says of what the engine says of itself."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ci_controller.container_manager import EngineInfo
from ci_controller.engine_judgements import (
    UNPROVED,
    judge_engine,
    judge_image,
    judge_runc,
    judge_used_runtime,
)
from ci_controller.probes import report
from ci_controller.probes.all import PROBES
from ci_controller.probes.container import judge_probes

GOOD = EngineInfo(
    version="28.0.1",
    runc="1.3.3",
    cgroup_version="2",
    storage_driver="overlay2",
    operating_system="Debian GNU/Linux 13",
    kernel="6.12.1",
    backing_filesystem="xfs",
    security_options=("name=seccomp,profile=builtin", "name=userns"),
    runtimes=("io.containerd.runc.v2", "runc", "runsc"),
)


def _statuses(info: EngineInfo, job_runtime: str | None = None) -> dict[str, str]:
    return {check.name: check.status for check in judge_engine(info, job_runtime)}


def test_a_modern_engine_with_all_its_fences_has_no_warning() -> None:
    assert set(_statuses(GOOD, "runsc").values()) == {"ok"}


def test_every_version_is_said() -> None:
    detail = judge_engine(GOOD, None)[0].detail
    assert all(part in detail for part in (GOOD.version, GOOD.kernel, GOOD.storage_driver, "xfs"))
    assert judge_runc(GOOD.runc).detail == "runc 1.3.3"


@pytest.mark.parametrize(
    ("changed", "name", "status"),
    [
        (replace(GOOD, runc="1.1.5+ds1-1+deb12u1"), "runc", "warning"),
        (replace(GOOD, runc="unknown"), "runc", "warning"),
        (replace(GOOD, runc="1.1.12"), "runc", "ok"),
        (replace(GOOD, cgroup_version="1"), "cgroups", "warning"),
        (replace(GOOD, security_options=("name=seccomp,profile=default",)), "engine isolation", "warning"),
        (replace(GOOD, security_options=("name=seccomp", "name=rootless")), "engine isolation", "ok"),
        (replace(GOOD, security_options=()), "engine isolation", "failed"),
    ],
)
def test_a_weakness_is_said(changed: EngineInfo, name: str, status: str) -> None:
    assert _statuses(changed) == {**_statuses(GOOD), name: status}


@pytest.mark.parametrize(
    ("info", "job_runtime", "unproved"),
    [
        (GOOD, "runsc", {"cgroups", "engine isolation", "job runtime"}),
        (GOOD, "io.containerd.runc.v2", {"cgroups", "engine isolation"}),
        (replace(GOOD, cgroup_version="1"), "runc", {"engine isolation"}),
        (
            replace(GOOD, security_options=("name=seccomp", "name=rootless")),
            None,
            {"cgroups", "engine isolation"},
        ),
        (replace(GOOD, cgroup_version="1", security_options=("name=seccomp",)), None, set[str]()),
    ],
)
def test_what_we_never_ran_on_is_said_to_be_unproved(
    info: EngineInfo, job_runtime: str | None, unproved: set[str]
) -> None:
    assert {check.name for check in judge_engine(info, job_runtime) if UNPROVED in check.detail} == unproved


def test_a_missing_runtime_is_a_failure_that_names_what_there_is() -> None:
    check = judge_engine(GOOD, "kata")[-1]
    assert (check.status, "runsc" in check.detail) == ("failed", True)
    assert "CI_JOB_RUNTIME" in (check.fix or "")


@pytest.mark.parametrize(
    ("used", "wanted", "failures"), [("runc", None, 0), ("runsc", "runsc", 0), ("runc", "runsc", 1)]
)
def test_a_container_with_another_runtime_is_a_failure(used: str, wanted: str | None, failures: int) -> None:
    assert [check.status for check in judge_used_runtime(used, wanted)] == ["failed"] * failures


def test_an_image_with_volumes_is_a_warning() -> None:
    assert judge_image("runner", "sha256:abc", ()).status == "ok"
    check = judge_image("runner", "sha256:abc", ["/data"])
    assert (check.status, "/data" in check.detail) == ("warning", True)


def test_a_probe_that_succeeded_and_one_that_said_nothing_are_failures() -> None:
    said = dict.fromkeys(PROBES, False) | {"mount_tmpfs": True}
    del said["reboot"]
    output = "\n".join(
        f'{{"probe": "{name}", "succeeded": {str(succeeded).lower()}, "evidence": "x"}}'
        for name, succeeded in said.items()
    )
    failed = [check.name for check in judge_probes("noise\n" + output) if check.status == "failed"]
    assert failed == ["reboot", "mount_tmpfs"]


def test_a_probe_that_had_nothing_to_try_it_on_is_not_ok(tmp_path: Path) -> None:
    """As in a container whose caller named no address: a fence that nobody touched proves nothing."""
    for path, text in report.files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "ci_controller" / "__init__.py").touch()  # else the one of this process is found
    names = ["reach_gateway", "reach_host", "reach_peer", "fill_disk"]
    command = [sys.executable, "-m", "ci_controller.probes", *names]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    checks = {check.name: check for check in judge_probes(said)}
    assert {checks[name].status for name in names} == {"not tried"}
    assert "not tried here (the limit is enforced by the controller" in checks["fill_disk"].detail
