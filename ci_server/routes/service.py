"""`/health`, `/ready`, `/info`: the server about itself."""

from typing import Any

from fastapi import APIRouter, Response

from ci_common import __version__
from ci_server.api_description import example, problems
from ci_server.dependencies import AnyCaller, Server
from ci_server.readiness import Health, check_readiness, overall, readiness_document
from ci_server.rendering import json_response, timestamp
from ci_server.schemas import HealthModel, InfoModel, ReadyModel

router = APIRouter(tags=["service"])


@router.get(
    "/health",
    summary="Is the process alive?",
    description="Looks at nothing else: for what watches processes. No key is needed.",
    response_model=HealthModel,
    response_description="It is.",
    responses=example("healthy"),
)
async def health() -> Response:
    return json_response({"status": "healthy", "version": __version__})


@router.get(
    "/ready",
    summary="Can this replica do its work?",
    description="Judges the database, the controller's heartbeat, the engine (as the controller sees it), the "
    "queue (whether it is paused) and the disk. "
    "No key is needed.",
    response_model=ReadyModel,
    response_description="Works, perhaps with restrictions (`degraded`).",
    responses={
        **example("ready", "degraded"),
        **example("failing", status=503, model=ReadyModel, description="Cannot do its work (`failing`)."),
    },
)
async def ready(server: Server) -> Response:
    findings = await check_readiness(server.repository, server.storage, server.settings, server.clock)
    status = 503 if overall(findings) is Health.FAILING else 200
    return json_response(readiness_document(findings, __version__), status=status)


@router.get(
    "/info",
    summary="Who am I here, and what may I send?",
    description="The user and scopes of the key, and the limits that hold for them. Any valid key may ask.",
    response_model=InfoModel,
    response_description="The caller and the limits.",
    responses={**example("info"), **problems()},
)
async def info(caller: AnyCaller, server: Server) -> Response:
    settings = server.settings
    limits: dict[str, Any] = {
        "max_upload_bytes": settings.max_upload_bytes,
        "max_job_timeout": settings.max_job_timeout,
        "max_queued_per_user": settings.max_queued_per_user,
        "max_streams_per_user": settings.max_streams_per_user,
    }
    user, key = caller.user, caller.key
    return json_response(
        {
            "version": __version__,
            "user": {"user_id": user.id, "name": user.name, "email": user.email},
            "key": {
                "name": key.name,
                "prefix": key.prefix,
                "scopes": sorted(scope.value for scope in key.scopes),
                "expires_at": timestamp(key.expires_at) if key.expires_at else None,
            },
            "limits": limits,
        }
    )
