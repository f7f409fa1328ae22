"""`POST /blobs/missing`, `PUT /blobs`: the contents of files, sent apart from the tree and only where they are new."""

from fastapi import APIRouter, Request, Response

from ci_common.errors import ArchiveTooLarge, InvalidBlob, InvalidRequest, StorageFull, TooManyRequests
from ci_server.api_description import BLOBS_BODY, HASHES_BODY, example, problems
from ci_server.dependencies import MaySubmit, Server
from ci_server.rendering import json_response
from ci_server.schemas import MissingModel, StoredModel

router = APIRouter(tags=["submit"])


@router.post(
    "/blobs/missing",
    summary="Which contents must I send?",
    description="Knows only what you stored yourself: what others have is missing too.",
    response_model=MissingModel,
    response_description="The hashes to send.",
    responses={**example("missing"), **problems(InvalidRequest, ArchiveTooLarge)},
    openapi_extra=HASHES_BODY,
)
async def missing(request: Request, caller: MaySubmit, server: Server) -> Response:
    return json_response({"missing": await server.blobs.missing(request, caller)})


@router.put(
    "/blobs",
    summary="Send contents of files",
    description="All of the request is stored, or (it is refused) nothing of it. Several requests may run side by "
    "side. What no job needs is kept for a while only: `missing_blobs` of a submission says what to send again.",
    response_model=StoredModel,
    response_description="They are stored.",
    responses={
        **example("stored"),
        **problems(InvalidBlob, InvalidRequest, ArchiveTooLarge, TooManyRequests, StorageFull),
    },
    openapi_extra=BLOBS_BODY,
)
async def put_blobs(request: Request, caller: MaySubmit, server: Server) -> Response:
    return json_response({"stored": await server.blobs.store(request, caller)})
