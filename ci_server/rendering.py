"""Domain objects as JSON, built by hand: response models take several times as long.

`ci_server.schemas` describes the same documents for OpenAPI, and `ci_persistence.sql_documents` makes whole
listings of jobs; tests hold them together.
"""

import json
from datetime import UTC, datetime
from typing import Any

from fastapi import Response

from ci_common.models import Job, JobEvent


def timestamp(moment: datetime) -> str:
    """Return ISO 8601 in UTC with a Z."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def job_document(job: Job) -> dict[str, Any]:
    """Return a job as the API shows it; fields are only ever added."""
    return {
        "job_id": job.id,
        "status": job.status.value,
        "success": job.success,
        "start_time": _optional(job.start_time),
        "end_time": _optional(job.end_time),
        "created_at": timestamp(job.created_at),
        "exit_code": job.exit_code,
        "reason": job.reason.value if job.reason else None,
        "message": job.message,
        "attempt": job.attempt,
        "pytest_args": job.options.pytest_args,
        "timeout": job.options.timeout_seconds,
        "fresh": job.options.fresh,
        "priority": job.options.priority.value,
        "max_attempts": job.options.max_attempts,
        "queue_timeout": job.options.queue_timeout_seconds,
        "pool": job.options.pool,
        "not_before": _optional(job.not_before),
        "cancel_requested_at": _optional(job.cancel_requested_at),
        "cancel_requested_by": job.cancel_requested_by,
        "image_id": job.image_id,
        "image_cached": job.image_cached,
        "log_size": job.log_size,
        "log_sha256": job.log_sha256,
        "log_truncated": job.log_truncated,
    }


def event_document(event: JobEvent) -> dict[str, Any]:
    """Return one line of a job's timeline."""
    return {
        "index": event.index,
        "type": event.type,
        "timestamp": timestamp(event.timestamp),
        "data": dict(event.data),
    }


def json_response(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a document that no cache keeps."""
    return Response(
        json.dumps(content),
        status_code=status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        media_type="application/json",
    )


def _optional(moment: datetime | None) -> str | None:
    return timestamp(moment) if moment is not None else None
