"""The doctor's checks against the real engine, and that nothing of its probe stays."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ci_common.clock import utcnow
from ci_controller.container_manager import ContainerManager
from ci_controller.doctor import probe_spec, remove_stale_probes, run_checks
from ci_controller.labels import KIND, KIND_PROBE
from tests.support.docker_cli import RUNNER_IMAGE, docker, require_engine

pytestmark = pytest.mark.docker

PREFIX = "doctor-test-"


def _probes() -> list[str]:
    return docker("ps", "-aq", "--filter", f"label={KIND}={KIND_PROBE}", "--filter", f"name={PREFIX}").split()


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
    assert [check.name for check in checks] == ["docker engine", "runner image", "limits", "network"]
    assert [check for check in checks if check.status != "ok"] == []


async def test_a_missing_image_says_how_to_make_it(manager: ContainerManager) -> None:
    checks = await run_checks(manager, "ci-no-such-image:latest")
    assert [check.status for check in checks] == ["ok", "failed"]
    assert "make runner-image" in (checks[-1].fix or "")


async def test_no_engine_is_one_failed_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    manager = ContainerManager(PREFIX)
    [check] = await run_checks(manager, RUNNER_IMAGE)
    assert (check.name, check.status) == ("docker engine", "failed")
    await manager.close()


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
