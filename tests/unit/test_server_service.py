"""`/health`, `/ready` and a server that is there before its database."""

import shutil
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from ci_common import __version__
from ci_common.clock import utcnow
from ci_common.disk_space import Space
from ci_common.models import ControllerState
from ci_server.readiness import Health, judge_disk
from ci_server.settings import MIB
from ci_server.waiting import controller_trouble
from tests.support.server import Site, client, make_settings, open_site, serving, upload
from tests.support.small_disk import small_disk


@pytest.fixture
async def http(site: Site) -> AsyncGenerator[httpx.AsyncClient, None]:
    with serving(site.settings) as url:
        async with client(url) as opened:
            yield opened


async def test_health_is_as_documented_and_needs_no_key(http: httpx.AsyncClient) -> None:
    response = await http.get("/health")
    assert response.status_code == 200
    assert response.json() == {"status": "healthy", "version": __version__}


async def test_ready_is_ok_when_a_controller_is_alive(site: Site, http: httpx.AsyncClient) -> None:
    await site.hands.arrive()
    response = await http.get("/ready")
    assert response.status_code == 200
    found = response.json()
    assert (found["status"], found["reasons"]) == ("ok", [])
    assert found["checks"]["controller"]["heartbeat_age_seconds"] < 30
    assert (found["checks"]["controller"]["holder"], found["checks"]["controller"]["waiting"]) == ("test", 0)
    assert found["checks"]["disk"]["free_bytes"] > 0


async def test_ready_is_degraded_without_a_controller(http: httpx.AsyncClient) -> None:
    response = await http.get("/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert response.json()["reasons"] == [
        "controller: no controller has run on this database yet: start ci-controller",
        "engine: unknown: only a running controller can tell",
    ]


async def test_ready_is_degraded_when_the_controller_is_silent(site: Site, http: httpx.AsyncClient) -> None:
    await site.hands.arrive()
    assert site.hands.lease is not None
    await site.repository.heartbeat(site.hands.lease, utcnow() - timedelta(minutes=5))
    found = (await http.get("/ready")).json()
    assert found["status"] == "degraded"
    assert found["checks"]["controller"]["heartbeat_age_seconds"] >= 300
    assert "is not running" in found["reasons"][0]


async def test_ready_passes_on_the_note_of_the_controller(site: Site, http: httpx.AsyncClient) -> None:
    await site.hands.arrive(note="the Docker engine does not answer")
    found = (await http.get("/ready")).json()
    assert found["status"] == "degraded"
    assert found["reasons"] == ["engine: the Docker engine does not answer"]
    assert found["checks"]["controller"]["status"] == "ok"


async def test_ready_is_degraded_when_the_disk_is_nearly_full(site: Site) -> None:
    await site.hands.arrive()
    settings = site.settings.model_copy(update={"min_free_bytes": 1 << 62})
    with serving(settings) as url:
        async with client(url) as http:
            found = (await http.get("/ready")).json()
    assert found["status"] == "degraded"
    assert "free on the data disk" in found["reasons"][0]


async def test_ready_looks_at_the_disk_of_the_database_too_and_at_its_inodes(tmp_path: Path) -> None:
    """Two small disks: the data's is roomy, the database's has bytes but no inodes left."""
    disk = tmp_path / "database"
    with small_disk(disk, "16m", inodes=120):
        async with open_site(tmp_path, db_path=disk / "ci.db") as site:
            await site.hands.arrive()
            with serving(site.settings) as url:
                async with client(url) as http:
                    before = (await http.get("/ready")).json()
                    for number in range(130):
                        with suppress(OSError):
                            (disk / f"file-{number}").touch()
                    after = (await http.get("/ready")).json()
    assert (before["status"], before["reasons"]) == ("ok", [])
    assert after["status"] == "degraded"
    [reason] = after["reasons"]
    assert "inodes free on the database disk" in reason
    assert after["checks"]["disk"]["free_inodes_percent"] == 0
    assert after["checks"]["controller"]["status"] == "ok"


@pytest.mark.parametrize(
    ("data", "database", "said"),
    [
        (Space(100 * MIB, 50, 100), Space(100 * MIB, 0, 0), []),  # 0 inodes in all: they are not counted
        (
            Space(9 * MIB, 50, 100),
            Space(100 * MIB, 50, 100),
            ["9 MiB free on the data disk, less than 10 MiB"],
        ),
        (Space(100 * MIB, 50, 100), Space(9 * MIB, 50, 100), ["9 MiB free on the database disk"]),
        (Space(100 * MIB, 9, 1000), Space(100 * MIB, 50, 100), ["9 inodes free on the data disk"]),
        (
            Space(0, 0, 9),
            Space(0, 0, 9),
            ["data disk", "inodes", "database disk", "inodes free on the database"],
        ),
    ],
)
def test_every_shortage_is_named(data: Space, database: Space, said: list[str]) -> None:
    found = judge_disk({"data": data, "database": database}, 10 * MIB)
    assert found.health is (Health.DEGRADED if said else Health.OK)
    parts = (found.message or "").split("; ") if said else []
    assert len(parts) == len(said)
    assert all(expected in part for expected, part in zip(said, parts, strict=True))


async def test_a_server_without_a_database_says_what_to_start_and_recovers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is up first; nothing but the database's appearance makes it work."""
    settings = make_settings(tmp_path)
    with serving(settings) as url:
        async with client(url) as http:
            assert (await http.get("/health")).status_code == 200
            before = await http.get("/ready")
            assert (before.status_code, before.json()["status"]) == (503, "failing")
            assert before.json()["checks"]["database"]["code"] == "schema_missing"
            assert "start ci-controller" in before.json()["reasons"][0]
            assert str(tmp_path) not in before.text, "where its files are is the operator's business"
            assert str(settings.db_path) in caplog.text
            async with open_site(tmp_path, initialize=False) as site:
                key = {"Authorization": "Bearer ci_AAAAAAAA_" + "A" * 43 + "_000000"}
                nonsense = await http.get("/jobs", headers=key)
                assert nonsense.status_code == 503, "looked up like any other, so that time tells nothing"
                await site.repository.initialize()
                ada = await site.account("ada")
            after = await http.post("/submit-async", files=upload(), headers=ada.headers)
            assert after.status_code == 200
            assert (await http.get("/ready")).status_code == 200


async def test_a_server_whose_folder_is_missing_says_the_same_and_recovers(tmp_path: Path) -> None:
    root = tmp_path / "later"
    with serving(make_settings(root)) as url:
        async with client(url) as http:
            before = await http.get("/ready")
            assert (before.status_code, before.json()["status"]) == (503, "failing")
            assert before.json()["checks"]["database"]["code"] == "schema_missing"
            root.mkdir()
            async with open_site(root) as site:
                ada = await site.account("ada")
            shutil.rmtree(site.settings.data_path)  # `ci-admin user create` makes the database only
            after = await http.post("/submit-async", files=upload(), headers=ada.headers)
            assert after.status_code == 200, after.text
            assert (await http.get("/ready")).status_code == 200


@pytest.mark.parametrize(("silent", "alive"), [(0, True), (15, True), (15.1, False)])
def test_the_controller_counts_as_alive_until_another_one_may_take_over(silent: float, alive: bool) -> None:
    now = utcnow()
    state = ControllerState(1, "holder", now - timedelta(seconds=silent))
    assert state.is_alive(now) is alive
    assert (controller_trouble(state, now) is None) is alive


async def test_requests_without_a_schema_are_told_what_to_start(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    async with open_site(tmp_path / "elsewhere") as elsewhere:
        ada = await elsewhere.account("ada")
    with serving(make_settings(tmp_path)) as url:
        async with client(url, ada) as http:
            for response in (await http.get("/jobs"), await http.post("/submit", files=upload())):
                assert (response.status_code, response.json()["code"]) == (503, "schema_missing")
                assert "start ci-controller" in response.json()["detail"]
                assert str(tmp_path) not in response.text
                assert int(response.headers["retry-after"]) > 0
    assert not (tmp_path / "ci.db").exists(), "only the migrator creates databases"
