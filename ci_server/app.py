"""The application: `create_app(settings)` for tests and embedding, `app` for `uvicorn ci_server.app:app`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from ci_common import __version__
from ci_common.service_log import configure_logging
from ci_common.settings import read_settings
from ci_server.api_description import DESCRIPTION, SUMMARY, TAGS, install_openapi
from ci_server.connections import STATE_KEY, ConnectionLimits
from ci_server.dependencies import open_resources
from ci_server.direct import DirectAnswers
from ci_server.problems import install_handlers
from ci_server.request_context import AddressLimit, RequestContext
from ci_server.routes import agents, attempts, blobs, jobs, logs, queue, service, submit
from ci_server.settings import ServerSettings
from ci_server.uvicorn_log import adopt_uvicorn


def create_app(settings: ServerSettings | None = None) -> FastAPI:
    """Return an app that opens everything it needs when it starts; without settings, the environment's."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, Any], None]:
        in_force = settings or read_settings(ServerSettings)
        configure_logging(in_force.log_level, in_force.log_format)
        adopt_uvicorn()
        async with open_resources(in_force) as resources:
            app.state.resources = resources
            with resources.shutdown.begun_by_signals():
                yield {STATE_KEY: ConnectionLimits(in_force)}  # for `ci_server.http_protocol`

    app = FastAPI(
        title="CI server",
        version=__version__,
        summary=SUMMARY,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
    )
    app.add_middleware(DirectAnswers)
    app.add_middleware(AddressLimit)
    app.add_middleware(RequestContext)
    install_handlers(app)
    for routes in (submit, blobs, jobs, logs, queue, agents, attempts, service):
        app.include_router(routes.router)
    install_openapi(app)
    return app


app = create_app()
