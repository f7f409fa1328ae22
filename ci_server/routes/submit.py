"""`POST /submit…`: archives and trees come in, and there are three ways to hear about it.

The body is not a parameter of these functions: FastAPI would read it before it asks who is calling.
"""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from ci_common.errors import InvalidBlob, MissingBlobs, QueueFull, TooManyRequests
from ci_common.events import JobIdEvent, Position
from ci_common.models import Job
from ci_server.api_description import (
    MANIFEST_BODY,
    TREE_BODY,
    UPLOAD_FORM,
    event_stream,
    example,
    problems,
    submit_problems,
)
from ci_server.auth import Caller
from ci_server.dependencies import IdempotencyKey, MaySubmit, Resources, Server, Submitter
from ci_server.event_stream import JobStream
from ci_server.rendering import json_response
from ci_server.routes.streaming import open_stream
from ci_server.schemas import CapacityModel, SubmittedModel

router = APIRouter(tags=["submit"])

_LOCATION: dict[str, Any] = {"Location": {"schema": {"type": "string"}, "description": "The job's path."}}


@router.post(
    "/submit",
    summary="Submit and stream the output",
    description="The job is queued, and followed in the answer until it ends. It goes on when the connection breaks.",
    response_class=Response,
    responses={**event_stream("The job's events, from its beginning to `complete`."), **submit_problems()},
    openapi_extra=UPLOAD_FORM,
)
async def submit(
    request: Request, caller: Submitter, server: Server, idempotency_key: IdempotencyKey = None
) -> Response:
    return await _submit_and_stream(request, caller, server, idempotency_key, name_job=False)


@router.post(
    "/submit-stream",
    summary="Submit and stream the output, the job's id first",
    description="As `/submit`, but the first event tells the id, by which the job can be followed again.",
    response_class=Response,
    responses={**event_stream("A `job_id` event, then as `/submit`."), **submit_problems()},
    openapi_extra=UPLOAD_FORM,
)
async def submit_stream(
    request: Request, caller: Submitter, server: Server, idempotency_key: IdempotencyKey = None
) -> Response:
    return await _submit_and_stream(request, caller, server, idempotency_key, name_job=True)


@router.post(
    "/submit-async",
    summary="Submit and return at once",
    description="The job is queued when the answer comes: it outlives this server and the connection.",
    response_model=SubmittedModel,
    response_description="The job is queued.",
    responses={**example("submitted", headers=_LOCATION), **submit_problems()},
    openapi_extra=UPLOAD_FORM,
)
async def submit_async(
    request: Request, caller: Submitter, server: Server, idempotency_key: IdempotencyKey = None
) -> Response:
    return _accepted(await server.submissions.submit_job(request, caller, idempotency_key))


@router.post(
    "/submit-manifest",
    summary="Submit a tree by its manifest, and return at once",
    description="As `/submit-async`, for a tree whose contents you sent with `PUT /blobs` (now or for an earlier "
    "submission). It passes the rules of archives. 409 `missing_blobs` lists contents to send again.",
    response_model=SubmittedModel,
    response_description="The job is queued.",
    responses={**example("submitted", headers=_LOCATION), **submit_problems(MissingBlobs)},
    openapi_extra=MANIFEST_BODY,
)
async def submit_manifest(
    request: Request, caller: Submitter, server: Server, idempotency_key: IdempotencyKey = None
) -> Response:
    job = await server.submissions.submit_tree(request, caller, idempotency_key, server.trees.read_manifest)
    return _accepted(job)


@router.post(
    "/submit-tree",
    summary="Submit a tree by the hash of its root, and return at once or stream",
    description="For a tree whose directories are blobs too, so that a small change is a small request. The listing of "
    "a directory is a JSON array of `[name, kind, size, SHA-256]`: `f` a file, `x` an executable one, `d` a directory "
    "(the hash is its listing's), `p` (with an empty name) a part of the same listing. The body is the length of a "
    "JSON object (4 bytes, big-endian), that object (`root`, and the options as in `/submit-manifest`), then any "
    "records as in `PUT /blobs`, which are stored first. 409 `missing_blobs` lists contents to send; below a listing "
    "that is missing it knows nothing. With `Accept: text/event-stream` the answer is that of `/submit-stream`.",
    response_model=SubmittedModel,
    response_description="The job is queued.",
    responses={
        **example("submitted", headers=_LOCATION),
        **submit_problems(MissingBlobs, InvalidBlob),
    },
    openapi_extra=TREE_BODY,
)
async def submit_tree(
    request: Request, caller: Submitter, server: Server, idempotency_key: IdempotencyKey = None
) -> Response:
    def submitted() -> Awaitable[Job]:
        return server.submissions.submit_tree(request, caller, idempotency_key, server.trees.read_tree)

    if _wants_events(request):
        return await _streamed(caller, server, submitted, name_job=True)
    return _accepted(await submitted())


@router.get(
    "/capacity",
    summary="Is there room for one more job of mine?",
    description="Cheaper than to send a whole archive and be refused: the queue's limits are those of a submission. "
    "Somebody else may be quicker, so a submission may still find the queue full.",
    response_model=CapacityModel,
    response_description="There is room now.",
    responses={**example("capacity"), **problems(TooManyRequests, QueueFull)},
)
async def capacity(caller: MaySubmit, server: Server) -> Response:
    await server.submissions.check_room(caller)
    return json_response({"room": True})


def _accepted(job: Job) -> Response:
    return json_response({"job_id": job.id}, headers={"Location": f"/jobs/{job.id}"})


def _wants_events(request: Request) -> bool:
    accepted = request.headers.get("accept", "").lower().split(",")
    return any(one.partition(";")[0].strip() == "text/event-stream" for one in accepted)


async def _submit_and_stream(
    request: Request, caller: Caller, server: Resources, idempotency_key: str | None, *, name_job: bool
) -> JobStream:
    def submitted() -> Awaitable[Job]:
        return server.submissions.submit_job(request, caller, idempotency_key)

    return await _streamed(caller, server, submitted, name_job=name_job)


async def _streamed(
    caller: Caller, server: Resources, submitted: Callable[[], Awaitable[Job]], *, name_job: bool
) -> JobStream:
    with contextlib.ExitStack() as held:
        # Taken before the upload: who may not stream should hear it before sending everything.
        held.enter_context(server.slots.hold(caller.user.id))
        job = await submitted()
        first = (JobIdEvent(job.id),) if name_job else ()
        return open_stream(server, caller, job, Position(job.attempt, 0), held.pop_all(), first)
