"""`POST /submit`, `/submit-stream`, `/submit-async`: one way in, three ways to hear about it.

The body is not a parameter of these functions: FastAPI would read it before it asks who is calling.
"""

import contextlib
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from ci_common.errors import QueueFull, TooManyRequests
from ci_common.events import JobIdEvent, Position
from ci_server.api_description import UPLOAD_FORM, event_stream, example, problems, submit_problems
from ci_server.auth import Caller
from ci_server.dependencies import MaySubmit, Resources, Server, Submitter
from ci_server.event_stream import JobStream
from ci_server.rendering import json_response
from ci_server.routes.streaming import open_stream
from ci_server.schemas import CapacityModel, SubmittedModel

router = APIRouter(tags=["submit"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Any text of your choice: submissions under the same one are one job, so retries are safe.",
        examples=["5f0c1c9b-2b0d-4a5e-8a3f-0d9c7b6a5e4d"],
    ),
]


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
    responses={
        **example(
            "submitted",
            headers={"Location": {"schema": {"type": "string"}, "description": "The job's path."}},
        ),
        **submit_problems(),
    },
    openapi_extra=UPLOAD_FORM,
)
async def submit_async(
    request: Request, caller: Submitter, server: Server, idempotency_key: IdempotencyKey = None
) -> Response:
    job = await server.submissions.submit_job(request, caller, idempotency_key)
    return json_response({"job_id": job.id}, headers={"Location": f"/jobs/{job.id}"})


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


async def _submit_and_stream(
    request: Request, caller: Caller, server: Resources, idempotency_key: str | None, *, name_job: bool
) -> JobStream:
    with contextlib.ExitStack() as held:
        # Taken before the upload: who may not stream should hear it before sending everything.
        held.enter_context(server.slots.hold(caller.user.id))
        job = await server.submissions.submit_job(request, caller, idempotency_key)
        first = (JobIdEvent(job.id),) if name_job else ()
        return open_stream(server, caller, job, Position(job.attempt, 0), held.pop_all(), first)
