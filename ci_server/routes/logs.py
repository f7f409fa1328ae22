"""`GET` and `HEAD /jobs/{id}/log`: the output as plain text, whole or by byte range."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse

from ci_common.errors import InvalidOffset, NotFound
from ci_common.models import Job
from ci_common.stores import LogStore
from ci_server.api_description import log_headers, plain_text_log
from ci_server.byte_ranges import ByteRange, Unsatisfiable, parse_range
from ci_server.dependencies import OwnedJob, Server
from ci_server.log_stream import log_pruned, pruned_meanwhile, stored_size
from ci_server.problems import problem_response, request_id_of

router = APIRouter(tags=["jobs"])

_CHUNK = 256 * 1024

AttemptNumber = Annotated[
    int | None, Query(ge=1, description="An earlier attempt; the current one otherwise.")
]
RangeHeader = Annotated[
    str | None, Header(alias="range", description="One range: `bytes=0-99`, `bytes=100-` or `bytes=-100`.")
]
IfRange = Annotated[str | None, Header(description="Send the range only if this is still the log's ETag.")]


@router.get(
    "/jobs/{job_id}/log",
    summary="Read the log as plain text",
    description="Of a job that is under way: what there is now. Ask again with `Range` for what came since.",
    response_class=Response,
    responses=plain_text_log(),
)
async def get_log(
    request: Request,
    job: OwnedJob,
    server: Server,
    attempt: AttemptNumber = None,
    range_header: RangeHeader = None,
    if_range: IfRange = None,
) -> Response:
    log = await _kept_log(job, server, attempt)
    try:
        part = parse_range(range_header, log.size) if if_range in (None, log.etag) else None
    except Unsatisfiable:
        return _outside(request, log)
    headers = log.headers(part)
    wanted = part or ByteRange(0, log.size)
    return StreamingResponse(
        _read(server.logs, log, wanted), status_code=206 if part else 200, headers=headers
    )


@router.head(
    "/jobs/{job_id}/log",
    summary="Ask for the size of the log",
    description="As `GET` without the body; of a job that is under way: how much there is now.",
    response_class=Response,
    responses=log_headers(),
)
async def head_log(job: OwnedJob, server: Server, attempt: AttemptNumber = None) -> Response:
    return Response(headers=(await _kept_log(job, server, attempt)).headers(None))


@dataclass(frozen=True, slots=True)
class _Log:
    job_id: str
    attempt: int
    size: int
    etag: str | None  # None while it grows

    def headers(self, part: ByteRange | None) -> dict[str, str]:
        headers = {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(part.length if part else self.size),
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",
            "X-Content-Type-Options": "nosniff",
        }
        if part is not None:
            headers["Content-Range"] = part.content_range(self.size)
        if self.etag is not None:
            headers["ETag"] = self.etag
        return headers


async def _kept_log(job: Job, server: Server, attempt: int | None) -> _Log:
    """Return the log; raises LogPruned, also where it went since the job's row was read."""
    log = _find_log(job, server.logs, attempt)
    cut_short = job.status.is_terminal and log.etag is None
    pruned = await pruned_meanwhile(server.repository, job) if cut_short else log_pruned(job)
    if pruned is not None:
        raise pruned
    return log


def _find_log(job: Job, logs: LogStore, attempt: int | None) -> _Log:
    number = job.attempt if attempt is None else attempt
    if number > job.attempt:
        raise NotFound(f"Job {job.id} has had {job.attempt} attempts, so there is no attempt {number}.")
    size = stored_size(logs, job.id, number)
    if number != job.attempt or job.log_size is None:
        return _Log(job.id, number, size, None)
    whole = size >= job.log_size
    return _Log(job.id, number, min(size, job.log_size), f'"{job.log_sha256}"' if whole else None)


def _outside(request: Request, log: _Log) -> Response:
    error = InvalidOffset(f"The log has {log.size} bytes now; none of those asked for exist.", size=log.size)
    response = problem_response(error, request_id_of(request))
    response.headers["Content-Range"] = f"bytes */{log.size}"
    return response


async def _read(logs: LogStore, log: _Log, wanted: ByteRange) -> AsyncIterator[bytes]:
    if wanted.start >= wanted.end:
        return
    at = wanted.start
    with logs.reader(log.job_id, log.attempt) as reader:  # held open: a prune meanwhile takes nothing from it
        while at < wanted.end:
            data = reader.read(at, min(_CHUNK, wanted.end - at))
            if not data:
                return  # cut short meanwhile: the length that was announced tells the reader
            at += len(data)
            yield data
            await asyncio.sleep(0)  # a quick reader must not keep the other requests waiting
