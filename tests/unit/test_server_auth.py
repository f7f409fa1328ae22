"""Keys and scopes, at a real server: who is let in, what a refusal gives away, and what the log keeps."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from datetime import timedelta

import httpx
import pytest

from ci_common.api_keys import generate_api_key
from ci_common.clock import utcnow
from ci_common.models import APIKey, Scope
from tests.support.server import Account, Site, client, eventually, serving


@pytest.fixture
async def http(site: Site) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client without a key of its own."""
    with serving(site.settings) as url:
        async with client(url) as opened:
            yield opened


async def test_every_kind_of_bad_key_gets_the_same_answer(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    revoked = await site.issue_key(ada.user)
    await site.repository.revoke_api_key(revoked.key.id)
    expired = await site.issue_key(ada.user, lifetime=timedelta(seconds=-1))
    bob = await site.account("bob")
    await site.repository.set_user_active(bob.user.id, active=False, now=utcnow())
    headers: list[dict[str, str]] = [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer ci_short"},
        {"Authorization": f"Basic {ada.secret}"},
        {"Authorization": f"Bearer {ada.secret}x"},
        {"Authorization": f"Bearer {generate_api_key()}"},
        revoked.headers,
        expired.headers,
        bob.headers,
    ]
    answers = [await http.get("/jobs", headers=header) for header in headers]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["www-authenticate"] for answer in answers} == {'Bearer realm="ci"'}
    bodies = [{**answer.json(), "request_id": ""} for answer in answers]
    assert all(body == bodies[0] for body in bodies)
    assert bodies[0]["code"] == "unauthorized"


async def test_bytes_that_are_no_text_are_no_key(http: httpx.AsyncClient) -> None:
    response = await http.get("/jobs", headers={b"Authorization": b"Bearer \xff\xfe"})
    assert response.status_code == 401


async def test_a_key_works_until_it_is_revoked_and_never_in_the_url(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/jobs", headers=ada.headers)).status_code == 200
    assert (await http.get("/jobs", params={"api_key": ada.secret})).status_code == 401
    await site.repository.revoke_api_key(ada.key.id)
    assert (await http.get("/jobs", headers=ada.headers)).status_code == 401


async def test_reading_needs_the_scope_read(site: Site, http: httpx.AsyncClient) -> None:
    machine = await site.account("machine", frozenset({Scope.SUBMIT}))
    job = await site.queue_job(machine)
    for path in ("/jobs", f"/jobs/{job.id}", f"/jobs/{job.id}/log", f"/jobs/{job.id}/stream"):
        response = await http.get(path, headers=machine.headers)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden"), path
    assert (await http.delete(f"/jobs/{job.id}", headers=machine.headers)).status_code == 200


async def test_the_use_of_a_key_is_noted_but_not_at_every_request(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    async def noted() -> APIKey | None:
        [key] = await site.repository.list_api_keys(ada.user.id)
        return key if key.last_used_at is not None else None

    await http.get("/jobs", headers=ada.headers)
    first: APIKey = await eventually(noted)
    assert first.last_used_at is not None
    assert abs(utcnow() - first.last_used_at) < timedelta(seconds=30)
    for _ in range(3):
        await http.get("/jobs", headers=ada.headers)
    assert await noted() == first


async def test_info_tells_who_the_key_belongs_to(ada: Account, http: httpx.AsyncClient) -> None:
    shown = (await http.get("/info", headers=ada.headers)).json()
    assert shown["user"] == {"user_id": ada.user.id, "name": "ada", "email": "ada@example.org"}
    assert shown["key"]["prefix"] == ada.key.prefix
    assert shown["key"]["scopes"] == ["read", "submit"]
    assert ada.secret not in str(shown)


async def test_the_log_has_a_line_per_request_with_the_user_and_never_the_key(
    ada: Account, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    headers = {**ada.headers, "X-Request-ID": "mine-1"}
    response = await http.get("/jobs", params={"cursor": ada.secret}, headers=headers)
    assert response.headers["x-request-id"] == response.json()["request_id"] == "mine-1"

    async def logged() -> logging.LogRecord | None:
        lines = [record for record in caplog.records if record.name == "ci_server.access"]
        return lines[0] if lines else None

    line = (await eventually(logged)).getMessage()
    for expected in ("mine-1", ada.user.id, "'path': '/jobs'", "'status': 422"):
        assert expected in line
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("ci_server")]
    assert ada.secret not in "".join(ours)


async def test_a_request_id_that_could_forge_the_log_is_replaced(http: httpx.AsyncClient) -> None:
    response = await http.get("/health", headers={"X-Request-ID": "a b;c"})
    assert response.headers["x-request-id"] != "a b;c"
    assert len(response.headers["x-request-id"]) == 32


async def test_many_requests_at_once_with_one_key_are_all_let_in(
    ada: Account, http: httpx.AsyncClient
) -> None:
    answers = await asyncio.gather(*(http.get("/jobs", headers=ada.headers) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
