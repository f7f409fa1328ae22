"""The doctor's checks against the real engine, and that nothing of its probe stays."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ci_common.clock import utcnow
from ci_controller.container_manager import ContainerManager
from ci_controller.doctor import run_checks, run_probes
from ci_controller.labels import KIND, KIND_PROBE
from ci_controller.probe_container import probe_spec, remove_stale_probes
from ci_controller.probes.all import PROBES
from tests.support.docker_cli import RUNNER_IMAGE, docker, require_engine
from tests.support.installation import Installation

pytestmark = pytest.mark.docker

PREFIX = "doctor-test-"


def _probes(prefix: str = PREFIX) -> list[str]:
    return docker("ps", "-aq", "--filter", f"label={KIND}={KIND_PROBE}", "--filter", f"name={prefix}").split()


@pytest.fixture(scope="module", autouse=True)
def _engine_is_there() -> None:
    require_engine()


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    assert _probes() == []


@pytest.fixture
async def manager() -> AsyncIterator[ContainerManager]:
    manager = ContainerManager(PREFIX)
    yield manager
    await manager.close()


async def test_all_is_well_on_this_machine(manager: ContainerManager) -> None:
    checks = await run_checks(manager, RUNNER_IMAGE)
    assert [check.name for check in checks] == [
        "docker engine",
        "runc",
        "cgroups",
        "engine isolation",
        "job runtime",
        "runner image",
        "job network",
        "job user",
        "limits",
        "disk limit",
        "network",
    ]
    assert [check for check in checks if check.status == "failed"] == []


async def test_a_missing_image_says_how_to_make_it(manager: ContainerManager) -> None:
    checks = await run_checks(manager, "ci-no-such-image:latest")
    assert [check.name for check in checks if check.status == "failed"] == ["runner image"]
    assert "make runner-image" in (checks[-1].fix or "")


async def test_no_engine_is_one_failed_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    manager = ContainerManager(PREFIX)
    [check] = await run_checks(manager, RUNNER_IMAGE)
    assert (check.name, check.status) == ("docker engine", "failed")
    await manager.close()


def test_the_command_tries_every_probe_and_says_of_each_why_it_failed(installation: Installation) -> None:
    done = installation.admin("doctor", "--probe", "--json")
    assert done.code == 0, done.text + done.err
    document = json.loads(done.out)
    statuses = {check["name"]: check["status"] for check in document["checks"]}
    assert list(statuses) == list(PROBES)
    assert statuses == dict.fromkeys(PROBES, "ok") | {"fill_disk": "not tried"}
    assert document["ok"] is True
    details = {check["name"]: check["detail"] for check in document["checks"]}
    for reached in ("reach_gateway", "reach_host", "reach_peer"):  # the fence, and not that nobody listened
        assert "EHOSTUNREACH" in details[reached], details[reached]
    assert _probes(installation.prefix) == []


def test_the_command_fails_in_words_without_an_image(installation: Installation) -> None:
    command = [Path(sys.executable).with_name("ci-admin"), "doctor", "--probe"]
    environment = installation.environment(CI_RUNNER_IMAGE="ci-no-such-image:latest")
    done = subprocess.run(
        command, cwd=installation.root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 69, done.stdout + done.stderr
    assert "make runner-image" in done.stdout


async def test_probes_without_an_image_are_one_failed_check(manager: ContainerManager) -> None:
    assert [check.status for check in await run_probes(manager, "ci-no-such-image:latest")] == ["failed"]


async def test_a_runtime_that_the_engine_does_not_have_is_named(engine: None) -> None:
    manager = ContainerManager(PREFIX, job_runtime="runsc-missing")
    checks = {check.name: check for check in await run_checks(manager, RUNNER_IMAGE)}
    await manager.close()
    assert checks["docker engine"].status == "failed"  # no container can be made
    assert "CI_JOB_RUNTIME" in checks["docker engine"].detail


async def test_the_operators_runtime_is_used_and_verified_by_the_engines_word(engine: None) -> None:
    """Another name for runc, which every engine of this kind has: that gVisor runs too is not shown here."""
    manager = ContainerManager(PREFIX, job_runtime="io.containerd.runc.v2")
    container = await manager.create(probe_spec(PREFIX, await manager.image_id(RUNNER_IMAGE) or ""))
    used = await manager.runtime_of(container)
    await manager.remove(container)
    await manager.close()
    assert used == "io.containerd.runc.v2"


async def test_what_a_killed_doctor_left_is_removed_ten_minutes_later(manager: ContainerManager) -> None:
    image = await manager.image_id(RUNNER_IMAGE)
    left = await manager.create(probe_spec(PREFIX, image or ""))
    await remove_stale_probes(manager, utcnow() + timedelta(minutes=9))
    assert [probe.id for probe in await manager.probes()] == [left]
    await remove_stale_probes(manager, utcnow() + timedelta(minutes=11))
    assert await manager.probes() == []


async def test_a_cancelled_check_leaves_nothing(manager: ContainerManager) -> None:
    checking = asyncio.create_task(run_checks(manager, RUNNER_IMAGE))
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(_probes):  # noqa: ASYNC110 - only the engine knows
            await asyncio.sleep(0.02)
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
