"""`/jobs`: listing, reading, cancelling, the timeline; and that nobody sees a trace of another's jobs."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from ci_common.clock import utcnow
from ci_common.job_terms import JobOptions, JobStatus, Reason, new_id
from ci_common.models import Job, Scope
from ci_server.rendering import job_document, timestamp
from ci_server.schemas import JobModel
from tests.support.server import Account, Site, client, serving

DOCUMENTED = {"job_id", "status", "success", "start_time", "end_time"}


def ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [job["job_id"] for job in response.json()]


# -- one job -------------------------------------------------------------------------------------------


async def test_a_job_shows_the_documented_fields(site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    job = await site.finished_job(ada, b"out")
    assert job.start_time is not None
    assert job.end_time is not None
    response = await http.get(f"/jobs/{job.id}")
    shown = response.json()
    assert {name: shown[name] for name in DOCUMENTED} == {
        "job_id": job.id,
        "status": "completed",
        "success": True,
        "start_time": timestamp(job.start_time),
        "end_time": timestamp(job.end_time),
    }
    assert shown["end_time"].endswith("Z")
    assert (shown["exit_code"], shown["reason"], shown["attempt"], shown["log_size"]) == (0, None, 1, 3)
    assert response.headers["cache-control"] == "no-store"


async def test_a_queued_job_has_nulls_where_nothing_is_known(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.queue_job(ada, options=JobOptions(("-x",), 5.0))
    shown = (await http.get(f"/jobs/{job.id}")).json()
    assert (shown["status"], shown["success"], shown["start_time"], shown["end_time"]) == (
        "queued",
        None,
        None,
        None,
    )
    assert (shown["pytest_args"], shown["timeout"]) == (["-x"], 5.0)


async def test_a_job_tells_which_image_it_ran_in_and_whether_that_was_kept(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.queue_job(ada)
    attempt = await site.hands.claim()
    await site.repository.mark_started(attempt.fence, "c", "sha256:kept", utcnow(), cached=True)
    shown = (await http.get(f"/jobs/{job.id}")).json()
    assert (shown["image_id"], shown["image_cached"], shown["fresh"]) == ("sha256:kept", True, False)


async def test_a_job_tells_when_its_log_lacks_output(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    whole = await site.finished_job(ada, b"out")
    lossy = await site.queue_job(ada)
    attempt = await site.hands.start()
    site.hands.write(attempt, b"out [ci] The engine lost output here")
    shown = (await http.get(f"/jobs/{lossy.id}")).json()
    assert shown["log_truncated"] is None
    await site.hands.finish(attempt, log=replace(site.hands.seal(attempt), truncated=True))
    for job, truncated in ((whole, False), (lossy, True)):
        assert (await http.get(f"/jobs/{job.id}")).json()["log_truncated"] is truncated


async def test_what_is_shown_is_what_openapi_describes(site: Site, ada: Account) -> None:
    job = await site.finished_job(ada, b"out")
    document = job_document(job)
    assert list(document) == list(JobModel.model_fields)
    JobModel.model_validate(document)


@pytest.mark.parametrize("job_id", ["nonsense", "0" * 90, "%2e%2e%2fci.db", "a%00b"])
async def test_an_unknown_job_is_404(http: httpx.AsyncClient, job_id: str) -> None:
    response = await http.get(f"/jobs/{job_id}")
    assert response.status_code == 404
    assert response.json()["code"] in ("job_not_found", "not_found")


async def test_a_job_of_somebody_else_looks_unknown_everywhere(site: Site, ada: Account) -> None:
    bob = await site.account("bob")
    job = await site.finished_job(ada, b"secret")
    unknown = new_id()
    with serving(site.settings) as url:
        async with client(url, bob) as http:
            assert ids(await http.get("/jobs")) == []
            for method, path in [
                ("GET", "/jobs/{}"),
                ("DELETE", "/jobs/{}"),
                ("GET", "/jobs/{}/log"),
                ("GET", "/jobs/{}/events"),
                ("GET", "/jobs/{}/timeline"),
                ("GET", "/jobs/{}/stream"),
                ("GET", "/jobs/{}/stream?offset=999999"),
            ]:
                foreign = await http.request(method, path.format(job.id))
                absent = await http.request(method, path.format(unknown))
                assert foreign.status_code == absent.status_code == 404, path
                assert _shape(foreign, job.id) == _shape(absent, unknown), path
            assert (await http.head(f"/jobs/{job.id}/log")).status_code == 404


def _shape(response: httpx.Response, job_id: str) -> dict[str, Any]:
    document = {**response.json(), "request_id": ""}
    return {name: str(value).replace(job_id, "<id>") for name, value in document.items()}


# -- lists ---------------------------------------------------------------------------------------------


async def test_the_list_is_an_array_newest_first(site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    jobs = [await site.queue_job(ada) for _ in range(3)]
    assert ids(await http.get("/jobs")) == [job.id for job in reversed(jobs)]


async def test_pages_are_linked_until_the_last_and_keep_their_filters(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    jobs = [await site.queue_job(ada) for _ in range(5)]
    response = await http.get("/jobs?limit=2&status=queued&status=running")
    found = ids(response)
    while "next" in response.links:
        link = response.links["next"]["url"]
        assert "limit=2" in link
        assert "status=queued&status=running" in link
        response = await http.get(link)
        assert len(response.json()) <= 2
        found += ids(response)
    assert found == [job.id for job in reversed(jobs)]


async def test_the_list_can_be_filtered(site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    done = await site.finished_job(ada, b"")
    middle = utcnow()
    queued = await site.queue_job(ada)
    params = {"created_after": middle.isoformat()}
    assert ids(await http.get("/jobs", params=params)) == [queued.id]
    assert ids(await http.get("/jobs", params={"created_before": middle.isoformat()})) == [done.id]
    assert ids(await http.get("/jobs", params={"created_before": timestamp(middle)[:-1]})) == [done.id]
    assert ids(await http.get("/jobs?status=completed")) == [done.id]
    assert ids(await http.get("/jobs?status=completed&status=queued")) == [queued.id, done.id]
    assert ids(await http.get("/jobs?status=failed")) == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "status=done",
        "created_after=yesterday",
        "created_after=0001-01-01T00:00:00%2B14:00",  # before the year 1, in UTC
        "created_before=9999-12-31T23:59:59-23:00",  # after the year 9999
        "cursor=x",
    ],
)
async def test_a_malformed_filter_says_which(http: httpx.AsyncClient, query: str) -> None:
    response = await http.get(f"/jobs?{query}")
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert query.partition("=")[0] in response.json()["detail"]


async def test_a_thousand_jobs_are_listed_whole_and_a_page_at_a_time(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    jobs = await asyncio.gather(*(site.queue_job(ada) for _ in range(1001)))
    newest_first = [job.id for job in sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)]
    streamed = await http.get("/jobs")
    assert ids(streamed) == newest_first
    assert "content-length" not in streamed.headers  # sent before it was all read
    assert ids(await http.get("/jobs?limit=1000")) == newest_first[:1000]


# -- cancelling ----------------------------------------------------------------------------------------


async def test_a_queued_job_is_cancelled_at_once(site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    job = await site.queue_job(ada)
    response = await http.delete(f"/jobs/{job.id}")
    assert response.status_code == 200
    shown = response.json()
    assert (shown["status"], shown["success"], shown["reason"]) == ("cancelled", False, "cancelled")


async def test_the_cancel_of_a_running_job_is_requested_however_often(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.queue_job(ada)
    await site.hands.start()
    first, again = await http.delete(f"/jobs/{job.id}"), await http.delete(f"/jobs/{job.id}")
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert (first.json()["status"], first.json()["cancel_requested_by"]) == ("running", "ada@example.org")


async def test_a_finished_job_cannot_be_cancelled(site: Site, ada: Account, http: httpx.AsyncClient) -> None:
    job = await site.finished_job(ada, b"")
    response = await http.delete(f"/jobs/{job.id}")
    assert (response.status_code, response.json()["code"]) == (409, "job_finished")


async def test_cancelling_needs_the_scope_submit(site: Site) -> None:
    reader = await site.account("reader", frozenset({Scope.READ}))
    job = await site.queue_job(reader)
    with serving(site.settings) as url:
        async with client(url, reader) as http:
            assert (await http.delete(f"/jobs/{job.id}")).status_code == 403
            assert (await http.get(f"/jobs/{job.id}")).json()["status"] == "queued"


# -- the timeline --------------------------------------------------------------------------------------


async def test_the_timeline_tells_what_happened_in_order(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job: Job = await site.queue_job(ada)
    attempt = await site.hands.start()
    await site.hands.finish(attempt, Reason.TESTS_FAILED)
    events = (await http.get(f"/jobs/{job.id}/events")).json()
    types = [event["type"] for event in events]
    assert types[0] == "submitted"
    assert types.index("claimed") < types.index("running") < types.index(JobStatus.COMPLETED)
    assert [event["index"] for event in events] == list(range(len(events)))
    later = (await http.get(f"/jobs/{job.id}/events", params={"from_index": 2})).json()
    assert later == events[2:]


async def test_an_index_that_no_timeline_can_have_is_refused(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    path = f"/jobs/{(await site.queue_job(ada)).id}/events"
    largest = await http.get(path, params={"from_index": 2**63 - 1})
    assert (largest.status_code, largest.json()) == (200, [])
    response = await http.get(path, params={"from_index": 10**30})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


async def test_a_job_submitted_earlier_but_listed_by_time_is_found(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    job = await site.queue_job(ada)
    tomorrow = (utcnow() + timedelta(days=1)).isoformat()
    assert ids(await http.get("/jobs", params={"created_after": tomorrow})) == []
    assert ids(await http.get("/jobs", params={"created_before": tomorrow})) == [job.id]
