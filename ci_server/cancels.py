"""Cancelling a job, whichever route asks for it."""

import structlog
from fastapi import Request, Response

from ci_common.errors import JobNotFound
from ci_common.models import AuditAction, User
from ci_server.dependencies import Resources, unknown_job
from ci_server.problems import request_id_of
from ci_server.rendering import job_document, json_response

_audit = structlog.stdlib.get_logger("ci_server.audit")  # the request id is in its context


async def cancel(request: Request, server: Resources, job_id: str, owner: str | None, by: User) -> Response:
    """The job has ended (200) or soon will (202), with an owner only if it is theirs.

    Raises JobNotFound, JobFinished.
    """
    now = server.clock.now()
    try:
        job = await server.repository.request_cancel(job_id, owner, by.email, now, request_id_of(request))
    except JobNotFound:
        raise unknown_job(job_id) from None
    if job.cancel_requested_at == now:  # not for who asks again
        _audit.info("audit", action=AuditAction.JOB_CANCEL.value, actor=by.email, subject=job_id)
    return json_response(job_document(job), status=200 if job.status.is_terminal else 202)
