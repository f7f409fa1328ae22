"""Two servers over one PostgreSQL: who waits at one of them is answered by what comes in at the other."""

import asyncio
from pathlib import Path

import pytest

from ci_common.models import Scope
from ci_server.routes import attempts
from tests.support.postgres_fixtures import url
from tests.support.server import client, open_site, serving, upload
from tests.unit.test_server_agents import registered

__all__ = ["url"]

AT_MOST = 8  # claims of one key that wait at the same time
PATIENCE = 25.0  # seconds


async def test_claims_that_wait_at_one_server_are_woken_by_submissions_at_another(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_LOOK_AGAIN", 2 * PATIENCE)  # so that nobody merely happens to look
    place = {"database_url": url, "db_path": tmp_path / "data" / "controller"}
    async with open_site(tmp_path, initialize=False, **place) as site:
        ada = await site.account("ada")
        rack_key = await site.account("rack", frozenset({Scope.AGENT}))
        with serving(site.settings) as here, serving(site.settings) as there:
            async with registered(here, rack_key, slots=AT_MOST) as rack, client(there, ada) as http:
                waiting = [asyncio.create_task(rack.claim(wait=PATIENCE)) for _ in range(AT_MOST + 1)]
                refused, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                assert [one.result().status_code for one in refused] == [429], "all the others wait"
                submitted = {
                    (await http.post("/submit-async", data={"pool": "gpu"}, files=upload())).json()["job_id"]
                    for _ in others
                }
                answers = await asyncio.gather(*others)
    assert {one.status_code for one in answers} == {200}
    assert {job["id"] for one in answers for job in one.json()["jobs"]} == submitted
