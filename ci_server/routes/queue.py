"""`/api/queue`: what waits, and in which order; people see their own share, who has the scope `admin` all of it."""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ci_common.errors import (
    ArchiveTooLarge,
    Conflict,
    InvalidRequest,
    JobFinished,
    JobNotFound,
    PriorityNotAllowed,
    TooManyRequests,
)
from ci_common.models import QueuePlace, Scope
from ci_common.queue_stats import DEFAULT_WINDOW, LONGEST_WINDOW, stats_document
from ci_server.api_description import PRIORITY_BODY, example, problems
from ci_server.dependencies import AnyCaller, CurrentUser, JobId, Operator, Server, unknown_job
from ci_server.problems import request_id_of
from ci_server.queue_view import Waiting, waiting
from ci_server.rendering import job_document, json_response, timestamp
from ci_server.schemas import JobModel, QueuedJobModel, QueueStatsModel
from ci_server.uploads import priority_named

router = APIRouter(prefix="/api/queue", tags=["queue"])

_SMALL_BODY = 4096  # bytes
_MOST_SHOWN = 100


def _seconds(window: timedelta) -> int:
    return int(window.total_seconds())


@router.get(
    "/jobs",
    summary="List your queued jobs, and why each waits",
    description="The first 100, in the order in which they will be claimed. `position` 0 is next; others' jobs come "
    "and end meanwhile, so it is what holds now. The estimate is rough: from the runs that ended last.",
    response_model=list[QueuedJobModel],
    response_description="The jobs.",
    responses={**example("queued_jobs"), **problems()},
)
async def list_queued(user: CurrentUser, server: Server) -> Response:
    view = await server.repository.queue_view(user.id, _MOST_SHOWN)
    now = server.clock.now()
    return json_response(
        [queued_document(place, waiting(place, view, user.limits, now)) for place in view.places]
    )


@router.get(
    "/stats",
    summary="Statistics of the whole queue",
    description="Needs the scope `admin`. What is queued, claimed and running is counted now, all else over the jobs "
    "that ended in the window. A wait lasts from the submission to the start of the attempt that counted.",
    response_model=QueueStatsModel,
    response_description="The statistics.",
    responses={**example("queue_stats"), **problems(InvalidRequest)},
)
async def queue_stats(
    _operator: Operator,
    server: Server,
    seconds: Annotated[
        int,
        Query(alias="window", ge=1, le=_seconds(LONGEST_WINDOW), description="Seconds back from now."),
    ] = _seconds(DEFAULT_WINDOW),
) -> Response:
    window, now = timedelta(seconds=seconds), server.clock.now()
    return json_response(stats_document(await server.repository.queue_figures(now - window), window, now))


@router.patch(
    "/jobs/{job_id}/priority",
    summary="Change a job's priority",
    description="From the next claim on; of a job that is under way it counts if the job comes back to the queue. "
    "Owners stay within what they may use; with the scope `admin` any job may get any priority.",
    response_model=JobModel,
    response_description="The job.",
    responses={
        **example("queued_job"),
        **problems(
            JobNotFound,
            JobFinished,
            PriorityNotAllowed,
            Conflict,
            InvalidRequest,
            ArchiveTooLarge,
            TooManyRequests,
        ),
    },
    openapi_extra=PRIORITY_BODY,
)
async def set_priority(request: Request, job_id: JobId, caller: AnyCaller, server: Server) -> Response:
    operator = Scope.ADMIN in caller.key.scopes
    if not operator:
        caller.require(Scope.SUBMIT)
    user = caller.user
    async with server.bodies.read(request, user.id, _SMALL_BODY, most_values=10) as document:
        priority = priority_named(document.get("priority"))
    await server.authenticator.recheck(caller)  # the body may have taken long
    owner, now = None if operator else user.id, server.clock.now()
    try:
        job = await server.repository.set_priority(
            job_id, owner, priority, user.email, now, request_id_of(request)
        )
    except JobNotFound:
        raise unknown_job(job_id) from None
    return json_response(job_document(job))


def queued_document(place: QueuePlace, waits: Waiting) -> dict[str, Any]:
    """Return a queued job as its owner sees it."""
    return {
        "job_id": place.job.id,
        "status": place.job.status.value,
        "priority": place.job.options.priority.value,
        "created_at": timestamp(place.job.created_at),
        "position": place.before,
        "waiting_for": waits.why,
        "estimated_wait_seconds": waits.about_seconds,
    }
