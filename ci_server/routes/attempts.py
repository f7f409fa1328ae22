"""`/api/queue`, the agents' side: a claim, and then everything about the attempt that it gave, fenced by its token."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse

from ci_common.errors import (
    ArchiveTooLarge,
    Conflict,
    InvalidArchive,
    InvalidOffset,
    InvalidRequest,
    StaleClaim,
    StorageFull,
    TooManyRequests,
)
from ci_common.job_terms import JobStatus, Reason
from ci_common.missing_uploads import missing_as_unreadable
from ci_common.models import Agent, AgentState, Attempt, LogSeal
from ci_common.stores import Archive
from ci_common.verdict import ending, verdict
from ci_server.agent_access import (
    BETWEEN_LOOKS,
    MAY_WAIT,
    CallingAgent,
    HeldAttempt,
    HeldForLog,
    Operator,
    Runner,
    require_held,
    stale_claim,
)
from ci_server.agent_requests import MOST_BYTES, place_of, said
from ci_server.agent_schemas import (
    ClaimedModel,
    ClaimRequest,
    CompleteRequest,
    LogSizeModel,
    ReleasedModel,
    ReleaseRequest,
    RequeuedModel,
    SealRequest,
    StartRequest,
    StopModel,
    StopRequest,
)
from ci_server.agents import attempt_document, reason_named, seal_of, stop_document
from ci_server.api_description import BYTES_BODY, ZIP_ANSWER, example, json_request, problems
from ci_server.archive_stream import sent_of
from ci_server.auth import Caller
from ci_server.dependencies import Server
from ci_server.disk import require_room
from ci_server.rendering import json_response

router = APIRouter(prefix="/api/queue", tags=["agents"])
_log = structlog.stdlib.get_logger("ci_server.agents")

_LOOK_AGAIN: Final = 1.0  # seconds: where commits are not heard of, and backing off ends without one
_PIECE: Final = 1024 * 1024
_UNTIL_READABLE: Final = timedelta(seconds=30)
FENCED: Final = (StaleClaim, InvalidRequest, ArchiveTooLarge, TooManyRequests)

ContentRange = Annotated[
    str | None, Header(description="`bytes FIRST-LAST/*`: where in the log the bytes belong.")
]


@router.post(
    "/claim",
    summary="Claim jobs of the agent's pool",
    description="The ones that are next, within the agent's slots. 204: there was none within `wait` seconds.",
    response_model=ClaimedModel,
    response_description="They are the agent's, until it reports their ends or its lease passes.",
    responses={
        **example("claimed"),
        204: {"description": "There is none."},
        **problems(StorageFull, *FENCED),
    },
    openapi_extra=json_request(ClaimRequest),
    dependencies=[MAY_WAIT],
)
async def claim(request: Request, agent: CallingAgent, caller: Runner, server: Server) -> Response:
    await require_room(request, server.settings)  # for their logs; a control plane alone has no other guard
    asked = await said(request, caller, server, ClaimRequest)
    claimed = await _claimed(agent, caller, asked, server)
    if not claimed:
        return Response(status_code=204)
    expires_at = server.clock.now() + timedelta(seconds=server.settings.agent_lease)
    documents = [attempt_document(one, expires_at) for one in claimed]
    return json_response({"job": documents[0], "jobs": documents})


async def _claimed(agent: Agent, caller: Caller, asked: ClaimRequest, server: Server) -> list[Attempt]:
    deadline = time.monotonic() + asked.wait
    with server.hub.database() as changes:
        while True:
            await server.authenticator.recheck(caller)  # the body and the wait may have taken long
            claimed = await _claim(agent, asked.slots, server)
            left = deadline - time.monotonic()
            if claimed or left <= 0 or server.shutdown.has_begun or not await _claims_still(agent, server):
                return claimed
            await changes.wait(min(left, _LOOK_AGAIN))
            await asyncio.sleep(BETWEEN_LOOKS)


async def _claim(agent: Agent, slots: int, server: Server) -> list[Attempt]:
    """Claim, if a look that holds nobody up shows anything: a claim is a commit, which wakes everybody who waits."""
    now = server.clock.now()
    if not await server.repository.count_queued(now, agent.profile.pool):
        return []
    return await server.repository.claim_for_agent(agent.lease, slots, now)


async def _claims_still(agent: Agent, server: Server) -> bool:
    """Tell whether there can be anything for the agent to claim; raises StaleClaim for who it is not any more."""
    found = await server.repository.find_agent(agent.id)
    if found is None or found.lease != agent.lease:
        raise StaleClaim("The agent was registered anew meanwhile.")
    return found.state is AgentState.ACTIVE


@router.patch(
    "/jobs/{job_id}/start",
    summary="Report that a claimed job runs",
    description="In that container; again with the same one: nothing changes.",
    status_code=204,
    response_class=Response,
    responses=problems(*FENCED),
    openapi_extra=json_request(StartRequest),
)
async def start(request: Request, held: HeldAttempt, caller: Runner, server: Server) -> Response:
    asked = await said(request, caller, server, StartRequest)
    done = await server.repository.mark_started(
        held.fence, asked.container_id, asked.image_id, server.clock.now(), asked.image_cached
    )
    return _no_content(held, done=done)


@router.patch(
    "/jobs/{job_id}/begin",
    summary="Report that the user's own code begins",
    description="From here on the attempt counts.",
    status_code=204,
    response_class=Response,
    responses=problems(StaleClaim, InvalidRequest),
)
async def begin(held: HeldAttempt, server: Server) -> Response:
    return _no_content(held, done=await server.repository.mark_begun(held.fence, server.clock.now()))


@router.patch(
    "/jobs/{job_id}/stop",
    summary="Record why the attempt is to end",
    description="Before the first signal. The first reason stands, and is the answer.",
    response_model=StopModel,
    response_description="What stands.",
    responses={**example("stop"), **problems(*FENCED)},
    openapi_extra=json_request(StopRequest),
)
async def stop(request: Request, held: HeldAttempt, caller: Runner, server: Server) -> Response:
    asked = await said(request, caller, server, StopRequest)
    now = server.clock.now()
    stands = await server.repository.record_stop(held.fence, _reason(asked.reason), asked.message, now)
    if stands is None:
        raise stale_claim(held.job.id)
    return json_response(stop_document(stands))


@router.patch(
    "/jobs/{job_id}/complete",
    summary="Report how the job ended",
    description="The status follows from the reason. With the log's size and hash, which must be those of what was "
    "sent: 416 says how much there is.",
    status_code=204,
    response_class=Response,
    responses=problems(Conflict, InvalidOffset, StorageFull, *FENCED),
    openapi_extra=json_request(CompleteRequest),
)
async def complete(request: Request, held: HeldAttempt, caller: Runner, server: Server) -> Response:
    asked = await said(request, caller, server, CompleteRequest)
    final = verdict(_reason(asked.reason) if asked.reason else None, asked.message, asked.exit_code)
    async with server.log_turns.of(held.job.id):
        log = await _sealed(held, asked, server)
        done = await server.repository.finish_attempt(held.fence, final, log, server.clock.now())
    return _no_content(held, done=done)


@router.patch(
    "/jobs/{job_id}/release",
    summary="Report that the attempt ended without a verdict",
    description="The job is queued again, cancelled if that was asked for, or given up.",
    response_model=ReleasedModel,
    response_description="What became of it.",
    responses={**example("released"), **problems(Conflict, InvalidOffset, StorageFull, *FENCED)},
    openapi_extra=json_request(ReleaseRequest),
)
async def release(request: Request, held: HeldAttempt, caller: Runner, server: Server) -> Response:
    asked = await said(request, caller, server, ReleaseRequest)
    reason, now = _reason(asked.reason), server.clock.now()
    if ending(reason).status is not JobStatus.DEAD_LETTERED:  # what the last attempt's end would be
        raise InvalidRequest(f"{reason.value} is a verdict, for `complete`.")
    async with server.log_turns.of(held.job.id):
        status = await server.repository.release_attempt(
            held.fence,
            reason=reason,
            message=asked.message,
            max_attempts=server.settings.max_attempts,
            not_before=now + timedelta(seconds=asked.wait) if asked.wait else None,
            now=now,
            log=await _sealed(held, asked, server),
        )
    if status is None:
        raise stale_claim(held.job.id)
    return json_response({"status": status.value})


@router.get(
    "/jobs/{job_id}/archive",
    summary="Read the job's tree",
    description="As a plain zip, whatever it was submitted as.",
    response_class=Response,
    responses={**ZIP_ANSWER, **problems(StaleClaim, InvalidArchive)},
)
async def archive(held: HeldAttempt, server: Server) -> Response:
    try:
        with missing_as_unreadable(), ExitStack() as stack:
            opened = server.archives.open(held.job.archive_ref)
            tree = await asyncio.to_thread(stack.enter_context, opened)
            kept = stack.pop_all()
    except OSError as error:
        await _unreadable(held, error, server)
        raise StaleClaim("The server cannot read the job's tree, and took the job back.") from error
    pieces = _sent(tree, kept, held, server)
    return StreamingResponse(pieces, media_type="application/zip", headers={"Cache-Control": "no-store"})


async def _sent(tree: Archive, kept: ExitStack, held: Attempt, server: Server) -> AsyncGenerator[bytes, None]:
    """Yield the zip. Where the tree cannot be read to its end the attempt's is recorded here: to the agent it looks
    like a lost connection, and it would ask again for ever."""
    try:
        with missing_as_unreadable():
            async for piece in iterate_in_threadpool(sent_of(tree, kept)):
                yield piece
    except InvalidArchive as error:
        final = verdict(Reason.BAD_ARCHIVE, error.detail)
        await server.repository.finish_attempt(held.fence, final, None, server.clock.now())
        raise
    except OSError as error:
        await _unreadable(held, error, server)
        raise


async def _unreadable(held: Attempt, error: OSError, server: Server) -> None:
    """The job waits for a disk that can be read, or for being given up."""
    why, now = error.strerror or type(error).__name__, server.clock.now()
    _log.warning("tree_unreadable", job_id=held.job.id, error=str(error))
    await server.repository.release_attempt(
        held.fence,
        reason=Reason.INFRA,
        message=f"Its upload could not be read: {why}.",
        max_attempts=server.settings.max_attempts,
        not_before=now + _UNTIL_READABLE,
        now=now,
    )


@router.put(
    "/jobs/{job_id}/log",
    summary="Send a piece of the attempt's log",
    description="Bytes that are sent again are written again. 416: there is less than that before them, as `size` "
    "says; go on from there.",
    response_model=LogSizeModel,
    response_description="It stands.",
    responses={**example("log_size"), **problems(InvalidOffset, StorageFull, *FENCED)},
    openapi_extra=BYTES_BODY,
)
async def put_log(
    request: Request,
    held: HeldForLog,
    caller: Runner,
    server: Server,
    content_range: ContentRange = None,
) -> Response:
    await require_room(request, server.settings)
    async with server.bodies.whole(request, caller.key.id, MOST_BYTES) as data:
        place, most = place_of(content_range, len(data)), server.settings.agent_log_bytes
        if place + len(data) > most:
            raise ArchiveTooLarge(f"The log would be larger than the {most} bytes that are kept.", limit=most)
        async with server.log_turns.of(held.job.id):  # none is written behind its seal
            await require_held(held, caller, server)  # the body may have taken long
            return json_response({"size": await asyncio.to_thread(_write, server, held, place, bytes(data))})


@router.put(
    "/jobs/{job_id}/events",
    summary="Send the attempt's events",
    description="JSON lines, all of them; what was sent before is replaced.",
    status_code=204,
    response_class=Response,
    responses=problems(StorageFull, *FENCED),
    openapi_extra=BYTES_BODY,
)
async def put_events(request: Request, held: HeldForLog, caller: Runner, server: Server) -> Response:
    await require_room(request, server.settings)
    async with server.bodies.whole(request, caller.key.id, MOST_BYTES) as data:
        await require_held(held, caller, server)  # the body may have taken long
        await asyncio.to_thread(_write_events, server, held, bytes(data))
    return Response(status_code=204)


@router.post(
    "/maintenance/requeue-expired",
    summary="Queue again what lost agents hold",
    description="The controller does so by itself, by a clock that does not step; this is for where none runs.",
    response_model=RequeuedModel,
    response_description="The jobs.",
    responses={**example("requeued"), **problems()},
)
async def requeue_expired(_: Operator, server: Server) -> Response:
    repository, now = server.repository, server.clock.now()
    lease, requeued = timedelta(seconds=server.settings.agent_lease), list[str]()
    for agent in await repository.list_agents():
        if agent.jobs_running and now - agent.last_heartbeat > lease:
            requeued += await repository.expire_agent(None, agent, server.settings.max_attempts, now)
    return json_response({"requeued": requeued})


def _no_content(held: Attempt, *, done: bool) -> Response:
    if not done:
        raise stale_claim(held.job.id)
    return Response(status_code=204)


def _reason(word: str) -> Reason:
    reason = reason_named(word)
    if reason is None:
        raise InvalidRequest(f"There is no reason {word!r}.")
    return reason


def _write(server: Server, held: Attempt, place: int, data: bytes) -> int:
    with closing(server.logs.writer(held.fence.job_id, held.fence.attempt)) as writer:
        if place > writer.size():
            detail = f"The log has {writer.size()} bytes; send what comes behind them first."
            raise InvalidOffset(detail, size=writer.size())
        writer.write(place, data)
        return writer.size()


def _write_events(server: Server, held: Attempt, data: bytes) -> None:
    with closing(server.logs.writer(held.fence.job_id, held.fence.attempt)) as writer:
        writer.write_events([data])


async def _sealed(held: Attempt, asked: SealRequest, server: Server) -> LogSeal | None:
    """Return the log's seal once it is on disk for good and is what the agent has.

    Of an agent that lost the end of it the server keeps more, and nothing that was recorded is taken back: that is
    sealed as truncated.
    """
    told = seal_of(asked)
    if told is None:
        return None
    async with server.sealing:
        found, same = await asyncio.to_thread(_seal, server, held, told)
    if found.size < told.size:
        raise InvalidOffset(f"Only {found.size} bytes of the log were sent.", size=found.size)
    if not same:
        raise Conflict("The log that was sent is another one than that of this size and hash: send it again.")
    return found if found.size == told.size else replace(found, truncated=True)


def _seal(server: Server, held: Attempt, told: LogSeal) -> tuple[LogSeal, bool]:
    """Return the seal of what was sent, and whether that begins with the log that the agent tells of."""
    with closing(server.logs.writer(held.fence.job_id, held.fence.attempt)) as writer:
        found = writer.seal(truncated=told.truncated)
        if found.size <= told.size:
            return found, found == told
        digest = hashlib.sha256()
        for offset in range(0, told.size, _PIECE):
            digest.update(writer.read(offset, min(_PIECE, told.size - offset)))
        return found, digest.hexdigest() == told.sha256
