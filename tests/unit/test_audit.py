"""Who did what: through the API, through `ci-admin`, and with nothing secret in it."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx
import pytest

from ci_admin.operator_name import operator
from ci_common.job_terms import JobStatus
from ci_common.models import AuditAction, AuditEvent
from ci_controller.frames import Outcome
from tests.support.admin_crashes import Admin, a_key_is_rotated
from tests.support.controlled import OUTPUT, Frames, controlled_system
from tests.support.fake_runtime import Step, UntilSignal
from tests.support.server import Account, Site, client, eventually, open_site, serving, stream

ME = operator()


@pytest.fixture
async def bob(site: Site, http: httpx.AsyncClient) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with client(str(http.base_url), await site.account("bob")) as opened:
        yield opened


async def cancels(site: Site) -> list[AuditEvent]:
    return [one for one in await site.repository.list_audit() if one.action is AuditAction.JOB_CANCEL]


async def test_a_cancel_through_the_api_names_person_and_request(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.queue_job(ada)
    await http.delete(f"/jobs/{job.id}", headers={"X-Request-ID": "mine-7"})
    [event] = await cancels(site)
    assert (event.actor, event.subject, event.request_id) == (ada.user.email, job.id, "mine-7")
    assert event.details == {"user_id": ada.user.id, "status": "queued"}


async def test_who_cancels_again_or_what_is_not_theirs_adds_nothing(
    site: Site, ada: Account, http: httpx.AsyncClient, bob: httpx.AsyncClient
) -> None:
    await site.queue_job(ada)
    attempt = await site.hands.start()
    path = f"/jobs/{attempt.job.id}"
    answers = [
        await bob.delete(path),
        await http.delete(path),
        await http.delete(path),
        await bob.delete(path),
    ]
    assert [answer.status_code for answer in answers] == [404, 202, 202, 404]
    assert len(await cancels(site)) == 1


async def test_the_log_of_the_server_tells_of_a_cancel_once(
    site: Site, ada: Account, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await site.queue_job(ada)
    attempt = await site.hands.start()
    for request in ("mine-1", "mine-2"):
        await http.delete(f"/jobs/{attempt.job.id}", headers={"X-Request-ID": request})

    async def logged() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.name == "ci_server.audit"]

    [line] = await eventually(logged)
    for expected in ("'event': 'audit'", "job.cancel", ada.user.email, attempt.job.id, "mine-1"):
        assert expected in line


# -- ci-admin ----------------------------------------------------------------------------------------------------


async def test_what_an_operator_did_is_listed_and_holds_no_secret(tmp_path: Path) -> None:
    admin = Admin(tmp_path / "ci_jobs.db")
    user = await admin.json("user", "create", "--name", "Eve", "--email", "eve@example.org")
    old = await admin.json("key", "create", "--email", user["id"], "--name", "laptop")
    new = await admin.json("key", "rotate", old["id"])
    await admin.json("key", "revoke", old["prefix"])
    await admin.json("user", "deactivate", user["id"])
    await admin.json("user", "activate", user["id"])

    trail = await admin.json("audit", "--since", "1h")
    assert [(event["action"], event["subject"]) for event in trail] == [
        ("user.create", user["id"]),
        ("key.create", old["id"]),
        ("key.rotate", old["id"]),
        ("key.revoke", old["id"]),
        ("user.deactivate", user["id"]),
        ("user.activate", user["id"]),
    ]
    assert {event["actor"] for event in trail} == {ME}
    shown = (await admin.run("audit")).stdout + str(trail)
    for key in (old, new):
        assert key["api_key"].split("_")[2] not in shown
        assert key["prefix"] in shown
    assert await admin.json("audit", "--since", "0h") == []


async def test_a_backup_a_restore_and_a_prune_are_told_of(tmp_path: Path) -> None:
    admin, backup = Admin(tmp_path / "ci_jobs.db"), str(tmp_path / "backup")
    await admin.json("user", "create", "--name", "Eve", "--email", "eve@example.org")
    await admin.json("backup", backup)
    await admin.json("prune", "--dry-run")
    await admin.json("prune")
    told = [(event["action"], event["actor"]) for event in await admin.json("audit")]
    assert told == [("user.create", ME), ("database.backup", ME), ("database.prune", ME)]
    await admin.json("restore", backup, "--force")
    event = (await admin.json("audit"))[-1]
    assert (event["action"], event["subject"], event["actor"]) == ("database.restore", backup, ME)


async def test_a_key_revoked_by_the_command_ends_an_open_stream(tmp_path: Path) -> None:
    """Row 64 of the fault catalogue, with every part as a user has it but the uvicorn process."""
    async with open_site(tmp_path, stream_ping_interval=0.5) as site:
        ada = await site.account("ada")
        job = await site.queue_job(ada)
        with serving(site.settings) as url:
            async with (
                client(url, ada) as http,
                stream(http, f"/jobs/{job.id}/stream") as events,
                asyncio.timeout(30),
            ):
                assert (await anext(events)).type == "status"
                await Admin(site.settings.db_path).json("key", "revoke", ada.key.prefix)
                rest = [event async for event in events]
        assert [event.data["code"] for event in rest if event.type == "error"] == ["unauthorized"]
        assert rest[-1].type == "error"


async def test_a_new_key_that_nobody_saw_can_be_revoked_and_rotated_again(tmp_path: Path) -> None:
    assert await a_key_is_rotated(tmp_path, "after_key_created", 1), "the point was never reached"


def test_an_operator_is_the_account_and_under_sudo_who_called_it() -> None:
    assert operator({"LOGNAME": "somebody", "USER": "somebody"}) == ME
    under_sudo = operator({"SUDO_USER": "maria"})
    assert under_sudo == ("operator (maria)" if os.getuid() == 0 else ME)


def until_stopped(_fed: bytes) -> Iterator[Step]:
    frames = Frames()
    yield frames.begun()
    yield frames.output(OUTPUT)
    yield UntilSignal("SIGINT")
    yield frames.trailer(Outcome.STOPPED)


async def test_who_is_deactivated_loses_queued_and_running_jobs(tmp_path: Path) -> None:
    """By the command, with a controller that runs: row 65 of the fault catalogue."""
    async with controlled_system(tmp_path, until_stopped) as system, system.running(0.05):
        running = [await system.submit() for _ in range(2)]
        for job_id in running:
            await system.printed(job_id)
        queued = await system.submit()
        answer = await Admin(tmp_path / "ci_jobs.db").json("user", "deactivate", system.user.email)
        assert answer["cancelled_jobs"] == 3
        jobs = [await system.finished(job_id) for job_id in (*running, queued)]
        assert {job.status for job in jobs} == {JobStatus.CANCELLED}
        assert {job.cancel_requested_by for job in jobs} == {ME}
        assert jobs[-1].attempt == 0, "what was queued never ran"
        assert not system.runtime.containers
        told = await system.repository.list_audit()
        assert [one.action.value for one in told][1:] == ["user.deactivate", *["job.cancel"] * 3]
