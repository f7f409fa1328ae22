"""The outermost layer: gives each request its id, logs what became of it, and answers what nobody caught."""

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ci_common.errors import RateLimited
from ci_server.problems import internal_problem, problem_response

_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET_PATHS = frozenset({"/health", "/ready"})  # asked every few seconds by whoever watches us
_CLIENT_LEFT = 499  # never sent; nginx's word in its log for a client that went away

_access = structlog.stdlib.get_logger("ci_server.access")
_errors = structlog.stdlib.get_logger("ci_server.errors")


class RequestContext:
    """ASGI middleware. Pure, because what a dependency binds to a context is invisible to others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await _Exchange(self._app, scope, send, request_id).run(receive)


class _Exchange:
    """One request and its response."""

    def __init__(self, app: ASGIApp, scope: Scope, send: Send, request_id: str) -> None:
        self._app = app
        self._scope = scope
        self._send = send
        self._request_id = request_id
        self._status: int | None = None  # None: no response has begun

    async def run(self, receive: Receive) -> None:
        """The request was answered and logged; only a response that broke half-way raises."""
        began = time.monotonic()
        try:
            await self._app(self._scope, receive, self._send_noting_status)
        except ClientDisconnect:
            self._status = self._status or _CLIENT_LEFT
        except Exception:
            _errors.exception("unexpected_error", method=self._scope["method"], path=self._scope["path"])
            if self._status is not None:
                raise  # the server must break the connection: an answer half sent is not an answer
            await internal_problem(self._request_id)(self._scope, receive, self._send_noting_status)
        finally:
            self._log(time.monotonic() - began)

    async def _send_noting_status(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self._request_id
        await self._send(message)

    def _log(self, seconds: float) -> None:
        path: str = self._scope["path"]
        write = _access.debug if path in _QUIET_PATHS else _access.info
        write(
            "request",
            method=self._scope["method"],
            path=path,  # without the query: people put secrets there
            status=self._status or _CLIENT_LEFT,
            ms=round(seconds * 1000, 1),
            user_id=self._scope["state"].get("user_id"),
            job_id=self._scope["state"].get("job_id"),
            client=client_address(self._scope) or None,
        )


class AddressLimit:
    """ASGI middleware: who asks too often is refused before anything is done for them, except to watch us."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http" and scope["path"] not in _QUIET_PATHS:
                scope["app"].state.resources.rates.request_from(client_address(scope))
        except RateLimited as error:
            await problem_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        await self._app(scope, receive, send)


def client_address(scope: Scope) -> str:
    """Return where a request comes from; the empty string for a Unix socket."""
    client = scope.get("client")
    return client[0] if client else ""


def _request_id(given: str | None) -> str:
    if given is not None and _ACCEPTABLE_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex
