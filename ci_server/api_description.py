"""What OpenAPI says beyond the routes' own signatures: errors, streams, the upload form, the common problem shape."""

from collections import defaultdict
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from ci_common.errors import (
    ArchiveTooLarge,
    CIError,
    Forbidden,
    IdempotencyConflict,
    InternalError,
    InvalidArchive,
    InvalidOffset,
    InvalidRequest,
    JobFinished,
    JobNotFound,
    PriorityNotAllowed,
    SchemaMissing,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ci_common.job_terms import DEFAULT_POOL, MOST_ATTEMPTS, POOL_NAME, Priority
from ci_server import api_examples
from ci_server.problems import MEDIA_TYPE
from ci_server.schemas import JobModel, ProblemModel

Responses = dict[int | str, dict[str, Any]]

SUMMARY = "Submit Python projects, follow their tests live, read the verdict."
DESCRIPTION = """\
A self-hosted CI for Python projects: upload a tree as a zip archive, its tests run in a clean container.

* **Authentication**: `Authorization: Bearer ci_…`. You see only your own jobs; those of others look unknown.
* **Streams** are server-sent events; each `data:` is one JSON object with a `type` of `job_id`, `log`, `status`,
  `complete` or `error`. An event's `id:` is `<attempt>:<offset>`, where the reader stands in the log: send it back
  as `Last-Event-ID` and the stream goes on behind it. A stream that ends without `complete` was interrupted: resume.
* **Errors** are `application/problem+json` with a stable `code`.
* Fields, events and codes are only ever added: skip what you do not know.
"""
TAGS = [
    {"name": "submit", "description": "Upload a project and have it tested."},
    {"name": "jobs", "description": "Follow, read, list and cancel your jobs."},
    {"name": "queue", "description": "What waits, and in which order."},
    {
        "name": "agents",
        "description": "Runners on other hosts: their side of the queue, and their operators.",
    },
    {"name": "service", "description": "The server itself."},
]

_PRIORITY: dict[str, Any] = {"type": "string", "enum": [word.value for word in Priority]}
_POOL: dict[str, Any] = {"type": "string", "pattern": f"^{POOL_NAME}$", "default": DEFAULT_POOL}

_LIMITS: dict[str, Any] = {
    "max_attempts": {
        "type": "integer",
        "minimum": 1,
        "maximum": MOST_ATTEMPTS,
        "description": "How often infrastructure may lose it once its tests began; else as the controller is set.",
    },
    "queue_timeout": {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "Seconds the job may wait in the queue; never longer than the controller's setting.",
    },
}

UPLOAD_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "The project as a zip archive.",
                        },
                        "pytest_args": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "Arguments for pytest, one form field each, in order.",
                        },
                        "timeout": {
                            "type": "number",
                            "exclusiveMinimum": 0,
                            "description": "Seconds the job may take; the controller's default otherwise.",
                        },
                        "fresh": {
                            "type": "boolean",
                            "default": False,
                            "description": "Install everything anew, whatever is kept of earlier jobs.",
                        },
                        "priority": {
                            **_PRIORITY,
                            "default": Priority.NORMAL.value,
                            "description": "All queued jobs of a class come before any of the next.",
                        },
                        **_LIMITS,
                        "pool": {**_POOL, "description": "Of the agents that may run it."},
                    },
                },
                "encoding": {"pytest_args": {"style": "form", "explode": True}},
            }
        },
    }
}

_SHA256: dict[str, Any] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_OPTIONS: dict[str, Any] = {
    "pytest_args": {"type": "array", "items": {"type": "string"}, "maxItems": 1000},
    "timeout": {"type": ["number", "null"], "exclusiveMinimum": 0, "description": "Seconds."},
    "fresh": {"type": "boolean", "default": False, "description": "As in the form of `/submit`."},
    "priority": {
        **_PRIORITY,
        "default": Priority.NORMAL.value,
        "description": "As in the form of `/submit`.",
    },
    **{name: {**limit, "type": [limit["type"], "null"]} for name, limit in _LIMITS.items()},
    "pool": {**_POOL, "description": "As in the form of `/submit`."},
}
_FILE: dict[str, Any] = {
    "type": "object",
    "required": ["path", "mode", "size", "sha256"],
    "properties": {
        "path": {"type": "string", "description": "Relative, with slashes, NFC."},
        "mode": {"type": "integer", "enum": [0o644, 0o755], "description": "0644 or 0755, as a number."},
        "size": {"type": "integer", "minimum": 0, "description": "Bytes."},
        "sha256": _SHA256,
    },
}


def _body(media_type: str, schema: dict[str, Any], description: str = "") -> dict[str, Any]:
    content = {media_type: {"schema": schema}}
    return {"requestBody": {"required": True, "content": content, "description": description}}


HASHES_BODY = _body(
    "application/json",
    {
        "type": "object",
        "required": ["sha256"],
        "properties": {"sha256": {"type": "array", "items": _SHA256, "maxItems": 100_000}},
    },
)
MANIFEST_BODY = _body(
    "application/json",
    {
        "type": "object",
        "required": ["files"],
        "properties": {"files": {"type": "array", "items": _FILE, "minItems": 1}, **_OPTIONS},
    },
)
BLOBS_BODY = _body(
    "application/vnd.ci.blobs",
    {"type": "string", "format": "binary"},
    "Records, one after the other: the SHA-256 of the contents (32 bytes), the number of stored bytes that follow and "
    "the number of bytes of the contents (8 bytes each, big-endian), the encoding (1 byte: 0 as they are, 1 zlib), "
    "then the stored bytes. The limits are those of archives.",
)
TREE_BODY = _body("application/vnd.ci.submission", {"type": "string", "format": "binary"})

_REPEAT: dict[str, Any] = {
    "type": "object",
    "required": ["from_job"],
    "properties": {
        "from_job": {"type": "string", "description": "The id of an earlier job of yours."},
        **{
            name: {**option, "description": "As in the earlier job if absent."}
            for name, option in _OPTIONS.items()
        },
    },
}
REPEAT_BODY = _body(
    "application/json",
    {
        "oneOf": [
            _REPEAT,
            {
                "type": "object",
                "required": ["jobs"],
                "properties": {"jobs": {"type": "array", "items": _REPEAT, "minItems": 1, "maxItems": 100}},
            },
        ]
    },
)

PRIORITY_BODY = _body(
    "application/json",
    {"type": "object", "required": ["priority"], "properties": {"priority": _PRIORITY}},
)

BYTES_BODY = _body("application/octet-stream", {"type": "string", "format": "binary"})
ZIP_ANSWER: Responses = {
    200: {
        "description": "The zip.",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}, "example": "PK"}},
    }
}


def json_request(shape: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a request whose JSON has that shape."""
    return _body("application/json", shape.model_json_schema())


_READING = (Unauthorized, Forbidden, InternalError, Unavailable, SchemaMissing)
_SUBMITTING = (
    *_READING,
    PriorityNotAllowed,
    IdempotencyConflict,
    ArchiveTooLarge,
    InvalidRequest,
    InvalidArchive,
    TooManyRequests,
)
_LOG_EXAMPLE = """\
data: {"type": "job_id", "job_id": "550e8400-e29b-41d4-a716-446655440000"}

id: 1:0
data: {"type": "status", "status": "running", "attempt": 1, "message": null}

id: 1:22
data: {"type": "log", "data": "Running 12 tests ...\\r\\n"}

data: {"type": "complete", "success": true, "status": "completed", "exit_code": 0, "reason": null, "message": null}

"""
_LOG_HEADERS: dict[str, Any] = {
    "Content-Length": {
        "schema": {"type": "integer"},
        "description": "Bytes there are now.",
        "example": 18231,
    },
    "ETag": {
        "schema": {"type": "string"},
        "description": "Only of the log of a finished job: it changes no more.",
        "example": f'"{api_examples.FINISHED_JOB["log_sha256"]}"',
    },
}


def problems(*errors: type[CIError]) -> Responses:
    """Return the error responses of a route that may raise these, with what every keyed route may raise."""
    by_status: defaultdict[int, list[type[CIError]]] = defaultdict(list)
    for error in dict.fromkeys((*errors, *_READING)):
        by_status[error.http_status].append(error)
    return {status: _problem(status, found) for status, found in sorted(by_status.items())}


def submit_problems(*more: type[CIError]) -> Responses:
    """Return the error responses of the submit routes; `more` are those of one of them."""
    return problems(*_SUBMITTING, *more, StorageFull)


def example(*names: str, status: int = 200, **more: Any) -> Responses:
    """Return what the JSON answer of that status looks like; `more` are further members of the response.

    By reference: FastAPI drops every null from what stands in a route, and ours say something.
    """
    examples = {name: {"$ref": f"#/components/examples/{name}"} for name in names}
    return {status: {**more, "content": {"application/json": {"examples": examples}}}}


def cancel_responses() -> Responses:
    """Return the responses of a route that cancels a job."""
    under_way = "The job is under way; it will end soon as cancelled."
    return {
        **example("cancelled_job"),
        **example("cancelling_job", status=202, model=JobModel, description=under_way),
        **problems(JobNotFound, JobFinished, InvalidRequest),
    }


def event_stream(description: str) -> Responses:
    """Return the success response of a route that streams."""
    content = {"text/event-stream": {"schema": {"type": "string"}, "example": _LOG_EXAMPLE}}
    return {200: {"description": description, "content": content}}


def plain_text_log() -> Responses:
    """Return the responses of the log route: whole, part, and a range outside it."""
    schema = {"type": "string", "format": "binary"}
    part = {
        "description": "The bytes asked for by `Range`.",
        "headers": {"Content-Range": {"schema": {"type": "string"}, "example": "bytes 0-21/18231"}},
        "content": {"text/plain": {"schema": schema, "example": api_examples.LOG[:22]}},
    }
    return {
        200: {
            "description": "The log, byte for byte.",
            "headers": _LOG_HEADERS,
            "content": {"text/plain": {"schema": schema, "example": api_examples.LOG}},
        },
        206: part,
        **problems(JobNotFound, InvalidOffset, InvalidRequest),
    }


def log_headers() -> Responses:
    """Return the responses of the log route to HEAD, which have no body."""
    described = {"description": "The log is there; the headers are those of `GET`.", "headers": _LOG_HEADERS}
    return {200: described, **problems(JobNotFound, InvalidRequest)}


def _problem(status: int, errors: list[type[CIError]]) -> dict[str, Any]:
    examples = {
        error.code: {
            "value": {
                "type": f"urn:ci:error:{error.code}",
                "title": error.title,
                "status": status,
                "detail": _first_sentence(error),
                "code": error.code,
                "request_id": "5f0c1c9b2b0d4a5e8a3f0d9c7b6a5e4d",
            }
        }
        for error in errors
    }
    described: dict[str, Any] = {
        "description": " / ".join(f"{error.title} (`{error.code}`)" for error in errors),
        "content": {
            MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples},
        },
    }
    if status in (429, 503):
        described["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    if status == 401:
        described["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return described


def _first_sentence(error: type[CIError]) -> str:
    return (error.__doc__ or error.title).strip().splitlines()[0]


def install_openapi(app: FastAPI) -> None:
    """`/openapi.json` also holds the problem shape and the examples that responses refer to."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                tags=app.openapi_tags,
                routes=app.routes,
            )
            schema = ProblemModel.model_json_schema()
            components = document.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = schema
            components["examples"] = {name: {"value": value} for name, value in api_examples.EXAMPLES.items()}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi
