"""Keys and scopes, at a real server: who is let in, what a refusal gives away, and what the log keeps."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator
from datetime import timedelta

import httpx
import pytest
from fastapi.routing import APIRoute

from ci_common.api_keys import checksum, generate_api_key, key_prefix
from ci_common.clock import SystemClock, utcnow
from ci_common.errors import Unauthorized
from ci_common.job_terms import new_id
from ci_common.models import AgentProfile, APIKey, Role, Scope, User
from ci_persistence.sqlite_repository import SQLiteJobRepository
from ci_server.app import create_app
from ci_server.auth import Authenticator, Caller
from tests.support.server import Account, Site, client, eventually, serving


@pytest.fixture
async def http(site: Site) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client without a key of its own."""
    with serving(site.settings) as url:
        async with client(url) as opened:
            yield opened


async def bad_headers(site: Site, ada: Account) -> dict[str, dict[str, str]]:
    """Return the header of a request for everything that may be wrong with its key."""
    revoked = await site.issue_key(ada.user)
    await site.repository.revoke_api_key(revoked.key.id, utcnow())
    expired = await site.issue_key(ada.user, lifetime=timedelta(seconds=-1))
    bob = await site.account("bob")
    await site.repository.set_user_active(bob.user.id, active=False, now=utcnow())
    return {
        "missing": {},
        "empty": {"Authorization": ""},
        "no credentials": {"Authorization": "Bearer"},
        "malformed": {"Authorization": "Bearer ci_short"},
        "another scheme": {"Authorization": f"Basic {ada.secret}"},
        "wrong checksum": {
            "Authorization": f"Bearer {ada.secret[:-1]}{'b' if ada.secret[-1] == 'a' else 'a'}"
        },
        "too long": {"Authorization": f"Bearer {ada.secret}x"},
        "unknown id": {"Authorization": f"Bearer {generate_api_key()}"},
        "wrong secret": {"Authorization": f"Bearer {same_id_other_secret(ada.secret)}"},
        "revoked": revoked.headers,
        "expired": expired.headers,
        "inactive user": bob.headers,
    }


def same_id_other_secret(key: str) -> str:
    """Return a well-formed key with the public part of that one."""
    body = f"{key_prefix(key)}_{generate_api_key().split('_')[2]}"
    return f"{body}_{checksum(body)}"


async def test_every_kind_of_bad_key_gets_the_same_answer_to_the_byte(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    answers: list[tuple[int, bytes, list[tuple[str, str]]]] = []
    for header in (await bad_headers(site, ada)).values():
        answer = await http.get("/jobs", headers={**header, "X-Request-ID": "the-same"})
        headers = sorted((name, value) for name, value in answer.headers.items() if name != "date")
        answers.append((answer.status_code, answer.content, headers))
    assert answers == [answers[0]] * 12
    status, body, headers = answers[0]
    assert (status, json.loads(body)["code"]) == (401, "unauthorized")
    assert ("www-authenticate", 'Bearer realm="ci"') in headers


class CountingRepository(SQLiteJobRepository):
    """Counts how often a key is looked up."""

    lookups = 0

    async def find_api_key(self, prefix: str) -> tuple[APIKey, User] | None:
        self.lookups += 1
        return await super().find_api_key(prefix)


async def test_every_kind_of_bad_key_makes_the_same_work(site: Site, ada: Account) -> None:
    repository = CountingRepository(site.settings.db_path)
    authenticator = Authenticator(repository, SystemClock())
    tokens = [
        header.get("Authorization", "").partition(" ")[2]
        for header in (await bad_headers(site, ada)).values()
    ]
    bad = [token for token in tokens if token != ada.secret]
    for token in bad:
        with pytest.raises(Unauthorized):
            await authenticator.authenticate(token)
    assert repository.lookups == len(bad) == 11
    await authenticator.authenticate(ada.secret)
    assert repository.lookups == 12
    await authenticator.usage.settle()
    await repository.close()


async def test_a_key_is_found_by_its_id_and_judged_by_its_secret(site: Site, ada: Account) -> None:
    """The right id alone opens nothing, in whatever row it stands."""
    authenticator = Authenticator(site.repository, SystemClock())
    with pytest.raises(Unauthorized):
        await authenticator.authenticate(same_id_other_secret(ada.secret))
    assert (await authenticator.authenticate(ada.secret)).key.id == ada.key.id
    await authenticator.usage.settle()


class SetClock(SystemClock):
    """A monotonic clock that the test moves."""

    time = 0.0

    def monotonic(self) -> float:
        return self.time


async def test_an_open_stream_notices_a_revocation_within_its_interval(site: Site, ada: Account) -> None:
    clock = SetClock()
    authenticator = Authenticator(site.repository, clock)
    check = authenticator.guard(Caller(ada.user, ada.key), every=7.5)
    await site.repository.revoke_api_key(ada.key.id, utcnow())
    clock.time = 7.4
    await check()  # free of charge until then
    clock.time = 7.5
    with pytest.raises(Unauthorized):
        await check()


async def test_streams_of_one_key_share_a_look_at_it_for_one_interval(site: Site, ada: Account) -> None:
    clock = SetClock()
    authenticator = Authenticator(site.repository, clock)
    one, other = (authenticator.guard(Caller(ada.user, ada.key), every=7.5) for _ in range(2))
    clock.time = 7.5
    await one()
    await site.repository.revoke_api_key(ada.key.id, utcnow())
    clock.time = 14.9
    await other()  # that look still counts
    clock.time = 15.0
    found = await asyncio.gather(one(), other(), return_exceptions=True)
    assert [type(error) for error in found] == [Unauthorized, Unauthorized]


async def test_bytes_that_are_no_text_are_no_key(http: httpx.AsyncClient) -> None:
    response = await http.get("/jobs", headers={b"Authorization": b"Bearer \xff\xfe"})
    assert response.status_code == 401


async def test_a_key_works_until_it_is_revoked_and_never_in_the_url(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/jobs", headers=ada.headers)).status_code == 200
    assert (await http.get("/jobs", params={"api_key": ada.secret})).status_code == 401
    await site.repository.revoke_api_key(ada.key.id, utcnow())
    assert (await http.get("/jobs", headers=ada.headers)).status_code == 401


OPEN = "no key needed"
ANY = "any valid key"
EITHER = "the scope submit, for jobs of one's own, or admin"
# What each route asks of a key; a new route needs its line.
NEEDS: dict[tuple[str, str], Scope | str] = {
    ("POST", "/submit"): Scope.SUBMIT,
    ("POST", "/submit-stream"): Scope.SUBMIT,
    ("POST", "/submit-async"): Scope.SUBMIT,
    ("POST", "/submit-manifest"): Scope.SUBMIT,
    ("POST", "/submit-tree"): Scope.SUBMIT,
    ("POST", "/blobs/missing"): Scope.SUBMIT,
    ("PUT", "/blobs"): Scope.SUBMIT,
    ("GET", "/capacity"): Scope.SUBMIT,
    ("DELETE", "/jobs/{job_id}"): Scope.SUBMIT,
    ("PATCH", "/api/queue/jobs/{job_id}/priority"): EITHER,
    ("GET", "/api/queue/jobs"): Scope.READ,
    ("POST", "/api/queue/jobs"): Scope.SUBMIT,
    ("GET", "/api/queue/jobs/{job_id}"): Scope.READ,
    ("DELETE", "/api/queue/jobs/{job_id}"): EITHER,
    ("GET", "/api/queue/stats"): Scope.ADMIN,
    ("GET", "/jobs"): Scope.READ,
    ("GET", "/jobs/{job_id}"): Scope.READ,
    ("GET", "/jobs/{job_id}/events"): Scope.READ,
    ("GET", "/jobs/{job_id}/timeline"): Scope.READ,
    ("GET", "/jobs/{job_id}/stream"): Scope.READ,
    ("GET", "/jobs/{job_id}/log"): Scope.READ,
    ("HEAD", "/jobs/{job_id}/log"): Scope.READ,
    ("POST", "/api/agents/register"): Scope.AGENT,
    ("GET", "/api/agents"): Scope.ADMIN,
    ("GET", "/api/agents/healthy"): Scope.ADMIN,
    ("GET", "/api/agents/pools"): Scope.ADMIN,
    ("GET", "/api/agents/pools/{pool}"): Scope.ADMIN,
    ("POST", "/api/agents/pools/{pool}/scale"): Scope.ADMIN,
    ("GET", "/api/agents/{agent_id}"): Scope.ADMIN,
    ("PATCH", "/api/agents/{agent_id}/status"): Scope.ADMIN,
    ("POST", "/api/agents/{agent_id}/heartbeat"): Scope.AGENT,
    ("POST", "/api/agents/{agent_id}/deregister"): Scope.AGENT,
    ("GET", "/api/agents/{agent_id}/attempts"): Scope.AGENT,
    ("GET", "/api/agents/{agent_id}/news"): Scope.AGENT,
    ("POST", "/api/agents/{agent_id}/ended"): Scope.AGENT,
    ("GET", "/api/agents/{agent_id}/images"): Scope.AGENT,
    ("POST", "/api/queue/claim"): Scope.AGENT,
    ("PATCH", "/api/queue/jobs/{job_id}/start"): Scope.AGENT,
    ("PATCH", "/api/queue/jobs/{job_id}/begin"): Scope.AGENT,
    ("PATCH", "/api/queue/jobs/{job_id}/stop"): Scope.AGENT,
    ("PATCH", "/api/queue/jobs/{job_id}/complete"): Scope.AGENT,
    ("PATCH", "/api/queue/jobs/{job_id}/release"): Scope.AGENT,
    ("GET", "/api/queue/jobs/{job_id}/archive"): Scope.AGENT,
    ("PUT", "/api/queue/jobs/{job_id}/log"): Scope.AGENT,
    ("PUT", "/api/queue/jobs/{job_id}/events"): Scope.AGENT,
    ("POST", "/api/queue/maintenance/requeue-expired"): Scope.ADMIN,
    ("GET", "/info"): ANY,
    ("GET", "/health"): OPEN,
    ("GET", "/ready"): OPEN,
}


def test_every_route_says_what_it_asks_of_a_key(site: Site) -> None:
    routes = {
        (method, route.path)
        for route in all_routes(create_app(site.settings).routes)
        for method in route.methods or ()
    }
    assert routes == set(NEEDS)


def all_routes(routes: Iterable[object]) -> Iterator[APIRoute]:
    """Yield the routes of an app, those of its routers included."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from all_routes(getattr(getattr(route, "original_router", None), "routes", ()))


@pytest.mark.parametrize("scope", [None, *Scope])
async def test_a_key_may_do_what_its_scope_says_and_nothing_else(
    site: Site, http: httpx.AsyncClient, scope: Scope | None
) -> None:
    """One scope at a time; `admin` opens what operators do with queue and agents."""
    account = await site.account("someone", frozenset({scope} if scope else ()))
    job = await site.finished_job(account, b"output")
    agent = await site.repository.register_agent(account.key.id, AgentProfile("rack-1"), utcnow())
    names = {"job_id": job.id, "agent_id": agent.id, "pool": "default"}
    claims = {"Agent-Epoch": "1", "Claim-Token": "none"}
    for (method, path), needed in NEEDS.items():
        response = await http.request(method, path.format(**names), headers={**account.headers, **claims})
        either = needed == EITHER and scope in (Scope.SUBMIT, Scope.ADMIN)
        allowed = either or needed in (OPEN, ANY, scope)
        assert (response.status_code == 403) is not allowed, (method, path, response.status_code)
        assert response.status_code not in (401, 404, 500), (method, path)
        if not allowed and method != "HEAD":
            assert response.json()["code"] == "forbidden"


async def test_every_route_but_the_open_ones_needs_a_key(http: httpx.AsyncClient) -> None:
    for (method, path), needed in NEEDS.items():
        response = await http.request(method, path.format(job_id="any", agent_id="any", pool="any"))
        assert (response.status_code == 401) is (needed != OPEN), (method, path, response.status_code)


async def test_an_admin_sees_no_more_jobs_than_anybody(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    """What operators do goes through `ci-admin`; the API knows owners only."""
    root = User(new_id(), "root", "root@example.org", utcnow(), role=Role.ADMIN)
    await site.repository.create_user(root)
    admin = await site.issue_key(root, frozenset(Scope))
    job = await site.queue_job(ada)
    assert (await http.get("/jobs", headers=admin.headers)).json() == []
    for method in ("GET", "DELETE"):
        assert (await http.request(method, f"/jobs/{job.id}", headers=admin.headers)).status_code == 404


async def test_a_machine_that_may_only_submit_can_cancel(site: Site, http: httpx.AsyncClient) -> None:
    machine = await site.account("machine", frozenset({Scope.SUBMIT}))
    job = await site.queue_job(machine)
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
