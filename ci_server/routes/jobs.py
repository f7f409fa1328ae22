"""`/jobs`: list, read, follow, cancel; every query names the owner."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse

from ci_common.errors import InvalidOffset, InvalidRequest, JobNotFound, TooManyRequests
from ci_common.job_terms import JobStatus
from ci_common.models import DocumentPage, JobEvent, JobFilter
from ci_common.stores import LogStore
from ci_server.api_description import cancel_responses, event_stream, example, problems
from ci_server.cancels import cancel
from ci_server.dependencies import CurrentUser, JobId, MaySubmit, OwnedJob, Reader, Server
from ci_server.listings import Listings
from ci_server.log_stream import start_position
from ci_server.rendering import event_document, job_document, json_response
from ci_server.routes.streaming import open_stream
from ci_server.schemas import JobEventModel, JobModel, MomentModel
from ci_server.timeline import EVENTS_BYTES, attempts_of, timeline

router = APIRouter(tags=["jobs"])

_PAGE = 1000
_LARGEST_INDEX = 2**63 - 1  # what a database can be asked for

Limit = Annotated[
    int | None,
    Query(ge=1, le=1000, description="Jobs per page; the next page is linked. Without it, all jobs come."),
]
Cursor = Annotated[str | None, Query(description="Where a page begins: from the link to the next one.")]
Statuses = Annotated[list[JobStatus], Query(alias="status", description="Only these; may be repeated.")]
After = Annotated[datetime | None, Query(description="Only jobs created at that time or later.")]
Before = Annotated[datetime | None, Query(description="Only jobs created before that time.")]


@router.get(
    "/jobs",
    summary="List your jobs, newest first",
    response_model=list[JobModel],
    response_description='The jobs; with `limit`, a header `Link: <…>; rel="next"` where there are more.',
    description="Without `limit` all of them come at once; with it a page, the next of which the header `Link` names. "
    "A job is shown if all filters hold.",
    responses={**example("jobs"), **problems(InvalidRequest)},
)
async def list_jobs(
    request: Request,
    user: CurrentUser,
    server: Server,
    limit: Limit = None,
    cursor: Cursor = None,
    statuses: Statuses = [],  # noqa: B006 - FastAPI copies defaults
    created_after: After = None,
    created_before: Before = None,
) -> Response:
    wanted = JobFilter(
        user_id=user.id,
        statuses=frozenset(statuses),
        created_after=_utc("created_after", created_after),
        created_before=_utc("created_before", created_before),
        cursor=cursor,
        limit=limit or _PAGE,
    )
    page = await server.listings.page(wanted)
    if limit is None:
        return _all_jobs(server.listings, wanted, page)
    link = {"Link": _next_link(request, page.next_cursor)} if page.next_cursor else {}
    return _array(page, link)


@router.get(
    "/jobs/{job_id}",
    summary="Read one job",
    description="Where it stands, and once its status is final the verdict with the reason.",
    response_model=JobModel,
    response_description="The job.",
    responses={**example("finished_job"), **problems(JobNotFound, InvalidRequest)},
)
async def get_job(job: OwnedJob) -> Response:
    return json_response(job_document(job))


@router.delete(
    "/jobs/{job_id}",
    summary="Cancel a job",
    description="A queued job ends at once. One that is under way is stopped by the controller: follow it to see "
    "it end. Asking again meanwhile changes nothing.",
    response_model=JobModel,
    response_description="The job was queued and is cancelled.",
    responses=cancel_responses(),
)
async def cancel_job(request: Request, job_id: JobId, caller: MaySubmit, server: Server) -> Response:
    return await cancel(request, server, job_id, caller.user.id, caller.user)


@router.get(
    "/jobs/{job_id}/events",
    summary="Read the timeline of a job",
    description="What happened to it and when, oldest first: submitted, claimed, started, given up, ended. "
    "The output is in the log.",
    response_model=list[JobEventModel],
    response_description="The events.",
    responses={**example("timeline"), **problems(JobNotFound, InvalidRequest)},
)
async def get_events(
    job: OwnedJob,
    server: Server,
    from_index: Annotated[
        int, Query(ge=0, le=_LARGEST_INDEX, description="Only events from this index on.")
    ] = 0,
) -> Response:
    events = await server.repository.get_events(job.id, from_index)
    return json_response([event_document(event) for event in events])


@router.get(
    "/jobs/{job_id}/timeline",
    summary="Read when a job did what",
    description="The moments of `/events` and those inside its containers, by time: where the time of the job went. "
    "Dependencies being installed and tests being run are a `phase`, named in `data`; `first_output` and "
    "`session_end` are known once pytest has ended. What was pruned with the log is no longer there.",
    response_model=list[MomentModel],
    response_description="The moments.",
    responses={**example("moments"), **problems(JobNotFound, InvalidRequest)},
)
async def get_timeline(job: OwnedJob, server: Server) -> Response:
    events = await server.repository.get_events(job.id, 0)
    return await asyncio.to_thread(_timeline, job.id, events, server.logs)  # it may be megabytes


def _timeline(job_id: str, events: Sequence[JobEvent], logs: LogStore) -> Response:
    said = {attempt: logs.read_events(job_id, attempt, EVENTS_BYTES) for attempt in attempts_of(events)}
    return json_response(timeline(events, said))


@router.get(
    "/jobs/{job_id}/stream",
    summary="Follow a job",
    description="Its output and status as server-sent events until it ends. Any number may follow at once, and each "
    "may come back with `Last-Event-ID` at any replica.",
    response_class=Response,
    responses={
        **event_stream("The job's events; `complete` is the last. A finished job is replayed the same way."),
        **problems(JobNotFound, InvalidRequest, InvalidOffset, TooManyRequests),
    },
)
async def stream_job(
    job: OwnedJob,
    caller: Reader,
    server: Server,
    from_beginning: Annotated[bool, Query(description="Also send what was put out before now.")] = False,
    offset: Annotated[
        int | None, Query(ge=0, description="Begin at this byte of the current attempt's log.")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="The last id you saw, `<attempt>:<offset>`; beats the other two.")
    ] = None,
) -> Response:
    start = start_position(
        job, server.logs, last_event_id=last_event_id, offset=offset, from_beginning=from_beginning
    )
    with contextlib.ExitStack() as held:
        held.enter_context(server.slots.hold(caller.user.id))
        return open_stream(server, caller, job, start, held.pop_all())


def _all_jobs(listings: Listings, wanted: JobFilter, first: DocumentPage) -> Response:
    """Return every job in one array, a page at a time: neither memory nor other requests feel how many."""
    if first.next_cursor is None:
        return _array(first, {})

    async def pieces() -> AsyncIterator[bytes]:
        page = first
        yield page.content[:-1]
        while page.next_cursor is not None:
            page = await listings.page(replace(wanted, cursor=page.next_cursor))
            if page.content != b"[]":
                yield b"," + page.content[1:-1]
        yield b"]"

    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(pieces(), headers=headers, media_type="application/json")


def _array(page: DocumentPage, headers: dict[str, str]) -> Response:
    return Response(
        page.content, headers={"Cache-Control": "no-store", **headers}, media_type="application/json"
    )


def _next_link(request: Request, cursor: str) -> str:
    """Return the link to the next page, relative: a proxy may have changed host and scheme."""
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return f'<{request.url.path}?{urlencode([*query, ("cursor", cursor)])}>; rel="next"'


def _utc(name: str, moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise InvalidRequest(f"query {name}: in UTC that time is not of the years 1 to 9999.") from None
