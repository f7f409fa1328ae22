"""How often one may ask: per key, per address, and how many wrong keys may be tried."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ci_common.api_keys import generate_api_key
from ci_common.errors import RateLimited
from ci_common.models import Scope
from ci_server.rate_limits import BoundedWindows, RateLimits, caller_of
from tests.support.server import Account, Site, client, make_settings, open_site, serving, upload
from tests.unit.test_server_auth import NEEDS


class HandClock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def limits_of(clock: HandClock, tmp_path: Path, **changes: Any) -> RateLimits:
    return RateLimits(make_settings(tmp_path, **changes), clock)


# -- the windows -----------------------------------------------------------------------------------------


def test_a_window_moves_with_time(clock: HandClock, tmp_path: Path) -> None:
    limits = limits_of(clock, tmp_path, max_requests_per_key=3)
    for _ in range(3):
        limits.request_by("key")
        clock.seconds += 10
    with pytest.raises(RateLimited) as refused:
        limits.request_by("key")
    assert (refused.value.retry_after, refused.value.limit) == (30, 3)
    limits.request_by("another")
    clock.seconds += 30
    limits.request_by("key")  # the first one is a minute ago
    with pytest.raises(RateLimited):
        limits.request_by("key")


def test_zero_is_no_limit(clock: HandClock, tmp_path: Path) -> None:
    limits = limits_of(clock, tmp_path)
    for _ in range(10_000):
        limits.request_by("key")


def test_the_memory_of_callers_is_bounded(clock: HandClock) -> None:
    windows = BoundedWindows(clock, most=100)
    for number in range(10_000):
        assert windows.acquire_entry(f"caller {number}", 5, 60)
    assert len(windows) == 100


def test_who_has_not_asked_for_a_window_is_forgotten(clock: HandClock) -> None:
    windows = BoundedWindows(clock)
    for number in range(50):
        windows.acquire_entry(f"caller {number}", 5, 60)
    clock.seconds += 61
    windows.acquire_entry("the last", 5, 60)
    assert len(windows) == 1


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
        ("a name", "a name"),
    ],
)
def test_addresses_of_one_customer_are_one_caller(address: str, caller: str) -> None:
    assert caller_of(address) == caller


# -- wrong keys ------------------------------------------------------------------------------------------


def test_wrong_keys_close_an_address_for_unknown_keys_only(clock: HandClock, tmp_path: Path) -> None:
    limits = limits_of(clock, tmp_path, max_failed_keys_per_address=3)
    limits.guess_from("192.0.2.7", "good")
    limits.key_was("192.0.2.7", "good", good=True)
    for _ in range(3):
        limits.guess_from("192.0.2.7", "wrong")
        limits.key_was("192.0.2.7", "wrong", good=False)
    with pytest.raises(RateLimited):
        limits.guess_from("192.0.2.7", "another guess")
    limits.guess_from("192.0.2.7", "good")  # whoever shares the address goes on
    limits.guess_from("192.0.2.8", "another guess")
    clock.seconds += 61
    limits.guess_from("192.0.2.7", "another guess")


def test_a_key_that_is_good_no_more_is_a_guess_like_any_other(clock: HandClock, tmp_path: Path) -> None:
    limits = limits_of(clock, tmp_path, max_failed_keys_per_address=1)
    limits.key_was("192.0.2.7", "revoked", good=True)
    limits.key_was("192.0.2.7", "revoked", good=False)
    with pytest.raises(RateLimited):
        limits.guess_from("192.0.2.7", "revoked")


# -- over HTTP -------------------------------------------------------------------------------------------


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site, None]:
    changes: dict[str, Any] = {
        "max_requests_per_key": 5,
        "max_requests_per_agent": 4,
        "max_submissions_per_key": 2,
        "max_requests_per_address": 30,
        "max_failed_keys_per_address": 3,
    }
    async with open_site(tmp_path, **changes) as opened:
        yield opened


def assert_limited(response: httpx.Response, limit: int) -> None:
    assert response.status_code == 429
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "rate_limited"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert response.headers["ratelimit-limit"] == str(limit)
    assert response.headers["ratelimit-remaining"] == "0"
    assert response.headers["ratelimit-reset"] == response.headers["retry-after"]


async def test_a_key_that_asks_too_often_is_told_when_to_go_on(site: Site, http: httpx.AsyncClient) -> None:
    for _ in range(5):
        assert (await http.get("/jobs")).status_code == 200
    assert_limited(await http.get("/jobs"), 5)
    bob = await site.account("bob")
    assert (await http.get("/jobs", headers=bob.headers)).status_code == 200


async def test_a_key_of_an_agent_too_is_counted_where_people_ask(site: Site) -> None:
    both = await site.account("both", frozenset({Scope.AGENT, Scope.READ}))
    with serving(site.settings) as url:
        async with client(url, both) as http:
            for _ in range(5):
                assert (await http.get("/jobs")).status_code == 200
            assert_limited(await http.get("/jobs"), 5)
            registered = await http.post("/api/agents/register", json={"name": "rack"})
            assert registered.status_code == 200, "what it reports is counted apart"


LOGS = {("PUT", "/api/queue/jobs/{job_id}/log"), ("PUT", "/api/queue/jobs/{job_id}/events")}
NEVER_HELD_UP = {
    ("POST", "/api/agents/{agent_id}/heartbeat"),
    ("GET", "/api/agents/{agent_id}/news"),
    ("POST", "/api/queue/claim"),
}


async def limited_of(http: httpx.AsyncClient, key_id: str) -> set[tuple[str, str]]:
    """Return the routes of agents that are told now that they are asked too often."""
    names, limited = {"agent_id": key_id, "job_id": "any"}, set[tuple[str, str]]()
    for (method, path), needed in NEEDS.items():
        if needed is Scope.AGENT:
            answer = await http.request(method, path.format(**names), headers=HELD)
            if answer.json().get("code") == "rate_limited":
                limited.add((method, path))
    return limited


HELD = {"Agent-Epoch": "1", "Claim-Token": "any"}
AGENTS = {route for route, needed in NEEDS.items() if needed is Scope.AGENT}


async def test_an_agent_that_reports_too_much_still_beats_claims_and_sends_logs(site: Site) -> None:
    rack = await site.account("rack", frozenset({Scope.AGENT}))
    other = await site.account("other", frozenset({Scope.AGENT}))
    with serving(site.settings) as url:
        async with client(url, rack) as http:
            for _ in range(4):
                assert (await http.post("/api/agents/register", json={"name": "rack"})).status_code == 200
            assert await limited_of(http, rack.key.id) == AGENTS - NEVER_HELD_UP - LOGS
            assert_limited(await http.get(f"/api/agents/{rack.key.id}/attempts", headers=HELD), 4)
        async with client(url, other) as http:
            assert (await http.post("/api/agents/register", json={"name": "other"})).status_code == 200


async def test_a_flood_of_log_keeps_no_report_from_being_heard(site: Site) -> None:
    rack = await site.account("rack", frozenset({Scope.AGENT}))
    with serving(site.settings) as url:
        async with client(url, rack) as http:
            assert (await http.post("/api/agents/register", json={"name": "rack"})).status_code == 200
            for _ in range(4):
                answer = await http.put("/api/queue/jobs/any/log", content=b"x", headers=HELD)
                assert answer.json()["code"] == "stale_claim"
            assert_limited(await http.put("/api/queue/jobs/any/log", content=b"x", headers=HELD), 4)
            assert_limited(await http.put("/api/queue/jobs/any/events", content=b"", headers=HELD), 4)
            for word in ("start", "stop", "complete"):
                answer = await http.patch(f"/api/queue/jobs/any/{word}", headers=HELD)
                assert answer.json()["code"] == "stale_claim", "it is heard"


async def test_submissions_have_a_limit_of_their_own(http: httpx.AsyncClient) -> None:
    for _ in range(2):
        assert (await http.post("/submit-async", files=upload())).status_code == 200
    assert_limited(await http.post("/submit-async", files=upload()), 2)
    assert (await http.get("/jobs")).status_code == 200


async def test_each_job_of_a_batch_is_a_submission(http: httpx.AsyncClient) -> None:
    batch = {"jobs": [{"from_job": "nobody"}] * 3}
    assert_limited(await http.post("/api/queue/jobs", json=batch), 2)


async def test_an_address_that_asks_too_often_is_refused_but_may_watch(http: httpx.AsyncClient) -> None:
    for _ in range(30):
        assert (await http.get("/nowhere")).status_code == 404
    assert_limited(await http.get("/nowhere"), 30)
    assert (await http.get("/health")).status_code == 200
    assert (await http.get("/ready")).status_code == 200


async def test_guessing_keys_is_stopped_before_the_database_is_asked(
    site: Site, ada: Account, tmp_path: Path
) -> None:
    """Without a database every look-up is a 503; a 429 shows that none was made."""
    with serving(site.settings) as url:
        async with client(url) as http:
            assert (await http.get("/info", headers=ada.headers)).status_code == 200
            for _ in range(3):
                assert (await _guess(http)).status_code == 401
            assert_limited(await _guess(http), 3)
            # Somebody behind the same address, whose key this process knows to be good.
            assert (await http.get("/info", headers=ada.headers)).status_code == 200
            site.settings.db_path.rename(tmp_path / "elsewhere")
            assert_limited(await _guess(http), 3)


async def _guess(http: httpx.AsyncClient) -> httpx.Response:
    return await http.get("/info", headers={"Authorization": f"Bearer {generate_api_key()}"})
