"""What is answered past the router is answered as the router would: the same status, headers and bytes."""

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from ci_common.clock import utcnow
from ci_common.models import Scope
from ci_server.app import create_app
from tests.support.server import Account, Site, make_settings, upload

SUBMISSIONS = ("/submit", "/submit-stream", "/submit-async", "/submit-tree")


@pytest.fixture
async def app(site: Site) -> AsyncGenerator[FastAPI]:
    app = create_app(site.settings)
    async with app.router.lifespan_context(app):
        yield app


def asking(app: FastAPI, address: str = "192.0.2.1") -> httpx.AsyncClient:
    """Return a client of the app without a server between; answers come whole."""
    transport = httpx.ASGITransport(app, client=(address, 5))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def plain(answer: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    return answer.status_code, answer.content, sorted(answer.headers.items())


async def both_ways(
    app: FastAPI, method: str, path: str, headers: Mapping[str, str], **more: Any
) -> list[httpx.Response]:
    """Return the direct answer and the router's: what the query says is something that no route knows."""
    said = {"X-Request-ID": "the-same", **headers}
    async with asking(app) as http:
        return [
            await http.request(method, path + query, headers=said, **more) for query in ("", "?unknown=1")
        ]


async def test_what_is_read_is_the_same_for_whoever_asks(site: Site, ada: Account, app: FastAPI) -> None:
    bob = await site.account("bob")
    submitter = await site.issue_key(ada.user, scopes=frozenset({Scope.SUBMIT}))
    revoked = await site.issue_key(ada.user)
    await site.repository.revoke_api_key(revoked.key.id, utcnow())
    job = await site.finished_job(ada, b"1 passed\n")
    await site.queue_job(ada)
    found: set[int] = set()
    for headers in (ada.headers, bob.headers, submitter.headers, revoked.headers, {}, {"Authorization": "?"}):
        for path in ("/jobs", f"/jobs/{job.id}", "/jobs/never-was", "/jobs/%2E", f"/jobs/{'x' * 101}"):
            direct, routed = await both_ways(app, "GET", path, headers)
            assert plain(direct) == plain(routed), (path, direct.text, routed.text)
            found.add(direct.status_code)
    assert found == {200, 401, 403, 404, 422}


@pytest.mark.parametrize("path", SUBMISSIONS)
async def test_a_submission_is_refused_alike(site: Site, ada: Account, app: FastAPI, path: str) -> None:
    reader = await site.issue_key(ada.user, scopes=frozenset({Scope.READ}))
    wishes: list[tuple[Mapping[str, str], dict[str, Any]]] = [
        ({}, {"content": b"no form"}),
        (reader.headers, {"files": upload()}),
        ({**ada.headers, "Idempotency-Key": "not allowed"}, {"files": upload()}),
        (ada.headers, {"content": b"no form"}),
    ]
    found: list[int] = []
    for headers, body in wishes:
        direct, routed = await both_ways(app, "POST", path, headers, **body)
        assert plain(direct) == plain(routed), (direct.text, routed.text)
        found.append(direct.status_code)
    assert found[:2] == [401, 403]
    assert {found[2], found[3]} == {422}


async def test_an_idempotency_key_is_read_alike(ada: Account, app: FastAPI) -> None:
    headers = {**ada.headers, "Idempotency-Key": "once"}
    direct, routed = await both_ways(app, "POST", "/submit-async", headers, files=upload())
    assert direct.status_code == 200
    assert plain(direct) == plain(routed)


async def test_no_router_is_asked(site: Site, ada: Account, app: FastAPI) -> None:
    job = await site.queue_job(ada)
    app.router.routes.clear()
    async with asking(app) as http:
        assert (await http.get("/jobs", headers=ada.headers)).json()[0]["job_id"] == job.id
        assert (await http.get(f"/jobs/{job.id}", headers=ada.headers)).json()["job_id"] == job.id
        submitted = await http.post("/submit-async", headers=ada.headers, files=upload())
        assert submitted.status_code == 200
        for path in ("/jobs?limit=1", f"/jobs/{job.id}/events", "/jobs/"):
            assert (await http.get(path, headers=ada.headers)).status_code == 404, path


async def test_each_is_counted(site: Site, tmp_path: Path, ada: Account) -> None:
    limits = {"max_requests_per_key": 4, "max_submissions_per_key": 1, "max_requests_per_address": 6}
    changed = make_settings(tmp_path, **limits)
    app = create_app(site.settings.model_copy(update={name: getattr(changed, name) for name in limits}))
    async with app.router.lifespan_context(app), asking(app) as http:
        said = [
            (await http.request(method, path, headers=ada.headers)).status_code
            for method, path in (
                ("POST", "/submit-async"),
                ("POST", "/submit-async"),
                ("GET", "/jobs"),
                ("GET", "/jobs/any"),
                ("GET", "/jobs"),
            )
        ]
        assert said == [422, 429, 200, 404, 429]
        async with asking(app) as stranger:
            last = [(await stranger.get("/jobs")).status_code for _ in range(2)]
        assert last == [401, 429]
