"""`/api/queue`: what waits, and in which order; people see their own share, who has the scope `admin` all of it."""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ci_common.errors import (
    ArchivePruned,
    ArchiveTooLarge,
    Conflict,
    IdempotencyConflict,
    InvalidRequest,
    JobFinished,
    JobNotFound,
    PriorityNotAllowed,
    QueueFull,
    TooManyRequests,
)
from ci_common.models import QueuePlace, Scope
from ci_common.queue_stats import DEFAULT_WINDOW, LONGEST_WINDOW, stats_document
from ci_server.api_description import PRIORITY_BODY, REPEAT_BODY, cancel_responses, example, problems
from ci_server.auth import Caller
from ci_server.cancels import cancel
from ci_server.dependencies import (
    AnyCaller,
    CurrentUser,
    IdempotencyKey,
    JobId,
    Operator,
    OwnedJob,
    Server,
    Submitter,
    unknown_job,
)
from ci_server.problems import request_id_of
from ci_server.queue_view import Waiting, waiting
from ci_server.rendering import job_document, json_response, timestamp
from ci_server.schemas import EnqueuedModel, JobInQueueModel, JobModel, QueuedJobModel, QueueStatsModel
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


@router.post(
    "/jobs",
    summary="Queue trees that are here already",
    description="Each job names an earlier one of yours: it takes that one's tree, and those of its options that it "
    'does not name itself. `{"jobs": [...]}` queues up to 100 in one transaction, all of them or none; an '
    "`Idempotency-Key` stands for all of it. New trees come in through the submit routes.",
    response_model=EnqueuedModel,
    response_description="All of them are queued.",
    responses={
        **example("enqueued"),
        **problems(
            JobNotFound,
            ArchivePruned,
            PriorityNotAllowed,
            IdempotencyConflict,
            InvalidRequest,
            ArchiveTooLarge,
            TooManyRequests,
            QueueFull,
        ),
    },
    openapi_extra=REPEAT_BODY,
)
async def enqueue(
    request: Request, caller: Submitter, server: Server, idempotency_key: IdempotencyKey = None
) -> Response:
    jobs = await server.repeats.submit(request, caller, idempotency_key)
    ids = [job.id for job in jobs]
    return json_response({"job_id": ids[0], "job_ids": ids}, headers={"Location": f"/jobs/{ids[0]}"})


@router.get(
    "/jobs/{job_id}",
    summary="Read one job, and why it waits",
    description="As `/jobs/{job_id}`, with its place in the queue; null of a job that is not queued any more.",
    response_model=JobInQueueModel,
    response_description="The job.",
    responses={**example("job_in_queue"), **problems(JobNotFound, InvalidRequest)},
)
async def get_queued(job: OwnedJob, user: CurrentUser, server: Server) -> Response:
    before = await server.repository.queue_position(job.id)
    if before is None:
        return json_response({**job_document(job), **_place(None, None)})
    place = QueuePlace(job, before)
    view = await server.repository.queue_view(user.id, limit=0)
    why = waiting(place, view, user.limits, server.clock.now())
    return json_response({**job_document(job), **_place(before, why)})


@router.delete(
    "/jobs/{job_id}",
    summary="Cancel a job",
    description="As `DELETE /jobs/{job_id}`; with the scope `admin` of whomever.",
    response_model=JobModel,
    response_description="The job was queued and is cancelled.",
    responses=cancel_responses(),
)
async def cancel_queued(request: Request, job_id: JobId, caller: AnyCaller, server: Server) -> Response:
    return await cancel(request, server, job_id, _owner(caller), caller.user)


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
    owner, user = _owner(caller), caller.user
    async with server.bodies.read(request, user.id, _SMALL_BODY, most_values=10) as document:
        priority = priority_named(document.get("priority"))
    await server.authenticator.recheck(caller)  # the body may have taken long
    now, request_id = server.clock.now(), request_id_of(request)
    try:
        job = await server.repository.set_priority(job_id, owner, priority, user.email, now, request_id)
    except JobNotFound:
        raise unknown_job(job_id) from None
    return json_response(job_document(job))


def queued_document(place: QueuePlace, waits: Waiting) -> dict[str, Any]:
    """Return a queued job as its owner sees it."""
    return {
        "job_id": place.job.id,
        "status": place.job.status.value,
        "priority": place.job.options.priority.value,
        "pool": place.job.options.pool,
        "created_at": timestamp(place.job.created_at),
        **_place(place.before, waits),
    }


def _place(before: int | None, waits: Waiting | None) -> dict[str, Any]:
    return {
        "position": before,
        "waiting_for": waits.why if waits else None,
        "estimated_wait_seconds": waits.about_seconds if waits else None,
    }


def _owner(caller: Caller) -> str | None:
    """Return whose jobs the caller may change; None: everybody's."""
    if Scope.ADMIN in caller.key.scopes:
        return None
    caller.require(Scope.SUBMIT)
    return caller.user.id
