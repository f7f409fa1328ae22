"""The requests that come most often, answered past the layers that match, resolve and validate all others.

FastAPI describes these routes, and serves them where a request says more than its path and headers. What answers is the
same function either way; here its arguments are put together by hand, which takes a third of the time.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ci_common.errors import CIError
from ci_server.dependencies import LONGEST_JOB_ID, Resources, owned_job, reader_of, resources_of, submitter_of
from ci_server.problems import error_response
from ci_server.routes import jobs, submit

Answer = Callable[[Request, Resources], Awaitable[Response]]

_JOBS: Final = "/jobs"
_JOB: Final = "/jobs/"


class DirectAnswers:
    """ASGI middleware, the innermost: whatever is not in its table goes on to the router."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _answer_to(scope) if scope["type"] == "http" else None
        if answer is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await answer(request, resources_of(request))
        except CIError as error:
            response = error_response(error, request)
        await response(scope, receive, send)


def _answer_to(scope: Scope) -> Answer | None:
    """Return what answers a request whose path and headers say everything; None for all others."""
    if scope["query_string"] or scope.get("root_path"):
        return None
    path: str = scope["path"]
    if scope["method"] == "POST":
        return _SUBMISSIONS.get(path)
    if scope["method"] != "GET":
        return None
    if path == _JOBS:
        return _list_jobs
    job_id = path.removeprefix(_JOB)
    is_job = job_id != path and "/" not in job_id and 0 < len(job_id) <= LONGEST_JOB_ID
    return partial(_get_job, job_id) if is_job else None


async def _list_jobs(request: Request, server: Resources) -> Response:
    caller = await reader_of(request, server)
    return await jobs.list_jobs(request, caller.user, server)


async def _get_job(job_id: str, request: Request, server: Resources) -> Response:
    caller = await reader_of(request, server)
    return await jobs.get_job(await owned_job(request, job_id, caller.user, server))


def _submission(route: Callable[..., Awaitable[Response]]) -> Answer:
    async def answer(request: Request, server: Resources) -> Response:
        caller = await submitter_of(request, server)
        return await route(request, caller, server, request.headers.get("idempotency-key"))

    return answer


_SUBMISSIONS: Final[Mapping[str, Answer]] = {
    "/submit": _submission(submit.submit),
    "/submit-stream": _submission(submit.submit_stream),
    "/submit-async": _submission(submit.submit_async),
    "/submit-tree": _submission(submit.submit_tree),
}
