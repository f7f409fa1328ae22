"""Errors as `application/problem+json` (RFC 9457): one shape for every route, made in one place."""

import json
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ci_common.errors import (
    CIError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER = 2  # seconds, where the error itself does not know better
_ROUTER_ERRORS: Mapping[int, type[CIError]] = {404: NotFound, 405: MethodNotAllowed}

_log = structlog.stdlib.get_logger("ci_server.problems")


def request_id_of(request: Request) -> str:
    """Return the id under which this request stands in the log."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def problem_response(error: CIError, request_id: str) -> Response:
    """Return the answer that carries an error of ours."""
    document = {**error.extra, **problem_document(error, request_id)}
    return Response(
        json.dumps(document),
        status_code=error.http_status,
        headers={"Cache-Control": "no-store", **_headers_for(error)},
        media_type=MEDIA_TYPE,
    )


def install_handlers(app: FastAPI) -> None:
    """Every error that leaves a route becomes a problem document.

    What has no handler here is caught by `RequestContext`, which logs it and answers `internal_error`.
    """
    app.add_exception_handler(CIError, _on_ci_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def internal_problem(request_id: str) -> Response:
    """Return the answer to a failure we have no word for; what it was stands only in the log."""
    detail = f"The server failed unexpectedly; its log has the details under request id {request_id}."
    return problem_response(InternalError(detail), request_id)


async def _on_ci_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CIError)
    return error_response(error, request)


def error_response(error: CIError, request: Request) -> Response:
    """Return the answer to a request that failed by an error of ours; what is our fault is logged."""
    if error.http_status >= 500:
        _log.warning("request_failed", code=error.code, detail=error.detail)
    return problem_response(error, request_id_of(request))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # `input` is left out: it repeats what the caller sent, which may be long or secret.
    errors = [
        {"where": " ".join(str(at) for at in found["loc"]), "what": str(found["msg"])}
        for found in error.errors()
    ]
    detail = "; ".join(f"{found['where']}: {found['what']}" for found in errors)
    return problem_response(InvalidRequest(detail, errors=errors), request_id_of(request))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The router's own answers: no such path, wrong method."""
    assert isinstance(error, HTTPException)
    kind = _ROUTER_ERRORS.get(error.status_code, InvalidRequest)
    detail = f"{request.method} {request.url.path}: {error.detail}"
    response = problem_response(kind(detail), request_id_of(request))
    response.headers.update(error.headers or {})  # `Allow`
    return response


def problem_document(error: CIError, request_id: str) -> dict[str, Any]:
    """Return the members that every problem document has."""
    return {
        "type": f"urn:ci:error:{error.code}",
        "title": error.title,
        "status": error.http_status,
        "detail": error.public_detail,
        "code": error.code,
        "request_id": request_id,
    }


def _headers_for(error: CIError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="ci"'
    retry_after = error.retry_after
    if retry_after is None and isinstance(error, Unavailable | TooManyRequests):
        retry_after = _RETRY_AFTER
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if isinstance(error, RateLimited):
        headers |= {"RateLimit-Limit": str(error.limit), "RateLimit-Remaining": "0"}
        headers["RateLimit-Reset"] = headers["Retry-After"]
    return headers
