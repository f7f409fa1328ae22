"""Listings as bytes: the same documents as one by one, made anew as soon as anything was committed."""

import json
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from ci_common.clock import utcnow
from ci_common.job_terms import JobOptions, Reason
from ci_common.models import Job, JobFilter
from ci_server.listings import Listings
from ci_server.rendering import job_document
from ci_server.schemas import JobModel
from tests.support.server import Account, Site, open_site


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site, None]:
    async with open_site(tmp_path) as opened:
        yield opened


async def one_of_each_kind(site: Site, ada: Account) -> None:
    """Every field of a job is null in one of them, and has a value in another."""
    await site.finished_job(ada, b"1 passed\n")
    await site.queue_job(ada)
    await site.hands.finish(await site.hands.start(), Reason.TESTS_FAILED)
    await site.queue_job(ada)
    lost, now = await site.hands.start(), utcnow()
    await site.repository.release_attempt(
        lost.fence,
        reason=Reason.INFRA,
        message="the engine went away",
        max_attempts=3,
        not_before=now + timedelta(minutes=5),
        now=now,
        log=site.hands.seal(lost),
    )
    await site.queue_job(
        ada,
        options=JobOptions(
            ("-k", 'né "x"\n\u2028\0'), 0.1 + 0.2, fresh=True, max_attempts=7, queue_timeout_seconds=0.7
        ),
    )
    running = await site.hands.start()
    await site.repository.request_cancel(running.fence.job_id, ada.user.id, ada.user.email, utcnow())
    on_the_second = utcnow().replace(microsecond=0)
    await site.repository.create_job(
        Job("on-the-second", ada.user.id, on_the_second, archive_ref="0" * 32 + ".zip")
    )


async def test_each_field_is_as_in_the_job_alone_and_as_the_schema_says(site: Site, ada: Account) -> None:
    await one_of_each_kind(site, ada)
    mine = JobFilter(user_id=ada.user.id, limit=100)
    jobs = (await site.repository.list_jobs(mine)).jobs
    shown = json.loads((await site.repository.list_documents(mine)).content)
    assert shown == json.loads(json.dumps([job_document(job) for job in jobs]))
    assert len(shown) == 5
    for document in shown:
        assert list(document) == list(JobModel.model_fields)
        JobModel.model_validate(document)
    for name in set(JobModel.model_fields) - {"image_cached"}:
        assert any(document[name] is not None for document in shown), f"{name} was compared with nothing"


async def test_pages_of_documents_are_those_of_jobs(site: Site, ada: Account) -> None:
    for _ in range(3):
        await site.queue_job(ada)
    for limit in (1, 2, 3):
        wanted = JobFilter(user_id=ada.user.id, limit=limit)
        jobs, documents = (
            await site.repository.list_jobs(wanted),
            await site.repository.list_documents(wanted),
        )
        assert documents.next_cursor == jobs.next_cursor
        assert len(json.loads(documents.content)) == limit


async def test_a_page_of_large_jobs_ends_early_and_none_is_left_out(
    site: Site, ada: Account, http: httpx.AsyncClient
) -> None:
    jobs = [await site.queue_job(ada, options=JobOptions(("\x01" * 126_000,))) for _ in range(8)]
    pages, cursor = list[list[str]](), None
    while not pages or cursor:
        page = await site.repository.list_documents(JobFilter(user_id=ada.user.id, limit=1000, cursor=cursor))
        assert len(page.content) < 5 * 1024**2
        pages.append([one["job_id"] for one in json.loads(page.content)])
        cursor = page.next_cursor
    assert [len(page) for page in pages] == [6, 2]
    newest_first = [job.id for job in reversed(jobs)]
    assert [job_id for page in pages for job_id in page] == newest_first
    assert [one["job_id"] for one in (await http.get("/jobs")).json()] == newest_first
    limited = await http.get("/jobs", params={"limit": 7})
    assert len(limited.json()) == 6
    assert 'rel="next"' in limited.headers["link"]


async def test_a_listing_is_kept_until_something_is_committed(site: Site, ada: Account) -> None:
    listings, mine = Listings(site.repository), JobFilter(user_id=ada.user.id, limit=10)
    first = await listings.page(mine)
    assert await listings.page(mine) is first
    async with open_site(site.settings.db_path.parent, initialize=False) as other_process:
        job = await other_process.queue_job(ada)
    assert job.id.encode() in (await listings.page(mine)).content
    await site.repository.request_cancel(job.id, ada.user.id, ada.user.email, utcnow())
    assert b'"cancelled"' in (await listings.page(mine)).content


async def test_what_is_kept_for_one_user_is_never_shown_to_another(site: Site, ada: Account) -> None:
    listings, bob = Listings(site.repository), await site.account("bob")
    job = await site.queue_job(ada)
    assert job.id.encode() in (await listings.page(JobFilter(user_id=ada.user.id))).content
    assert (await listings.page(JobFilter(user_id=bob.user.id))).content == b"[]"


async def test_no_more_is_kept_than_there_is_room_for(site: Site, ada: Account) -> None:
    await site.queue_job(ada)
    listings = Listings(site.repository, max_bytes=2_500)  # one page of one job, and its overhead
    first, second = (JobFilter(user_id=ada.user.id, limit=limit) for limit in (1, 2))
    kept = await listings.page(first)
    assert await listings.page(first) is kept
    await listings.page(second)
    assert await listings.page(first) is not kept
