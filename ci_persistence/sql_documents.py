"""Listings as the API's JSON, straight from rows: of 1000 jobs, models on the way would take ten times as long.

The same documents as `ci_server.rendering.job_document` makes of a job; a test compares them, byte by byte.
"""

from collections.abc import Iterable
from contextlib import closing
from functools import lru_cache
from typing import Any, Final

import orjson

from ci_common.job_terms import JobOptions
from ci_common.models import DocumentPage, JobFilter
from ci_persistence.rows import options_from
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_listing import cursor_after, listing_query

# In the order in which `_document` takes them.
_COLUMNS = (
    "id, status, success, start_time, end_time, created_at, exit_code, reason, message, attempt, options, priority, "
    "pool, not_before, cancel_requested_at, cancel_requested_by, image_id, image_cached, log_size, log_sha256, "
    "log_truncated"
)
_PAGE_BYTES: Final = 4 * 1024 * 1024  # of content: whoever has many bytes to show shows fewer jobs at once


def list_documents(db: Connection, job_filter: JobFilter) -> DocumentPage:
    """Return one page, newest first; `list_jobs` returns the same jobs, and more where theirs are large."""
    documents, size, last = list[bytes](), 0, ("", "")
    with closing(db.cursor()) as cursor:
        cursor.row_factory = None  # pyright: ignore[reportAttributeAccessIssue] - plain tuples are the quickest
        rows: Iterable[tuple[Any, ...]] = cursor.execute(*listing_query(job_filter, _COLUMNS))
        for row in rows:
            if len(documents) == job_filter.limit or size >= _PAGE_BYTES:
                return DocumentPage(_array(documents), cursor_after(*last))
            documents.append(orjson.dumps(_document(*row)))
            size, last = size + len(documents[-1]), (row[5], row[0])
    return DocumentPage(_array(documents))


def _array(documents: list[bytes]) -> bytes:
    return b"[" + b",".join(documents) + b"]"


def _document(
    job_id: str,
    status: str,
    success: int | None,
    start_time: str | None,
    end_time: str | None,
    created_at: str,
    exit_code: int | None,
    reason: str | None,
    message: str | None,
    attempt: int,
    options: str,
    priority: int,
    pool: str,
    not_before: str | None,
    cancel_requested_at: str | None,
    cancel_requested_by: str | None,
    image_id: str | None,
    image_cached: int | None,
    log_size: int | None,
    log_sha256: str | None,
    log_truncated: int | None,
) -> dict[str, Any]:
    asked = _options(options, priority, pool)
    return {
        "job_id": job_id,
        "status": status,
        "success": None if success is None else success != 0,
        "start_time": start_time and _shown(start_time),
        "end_time": end_time and _shown(end_time),
        "created_at": _shown(created_at),
        "exit_code": exit_code,
        "reason": reason,
        "message": message,
        "attempt": attempt,
        "pytest_args": asked.pytest_args,
        "timeout": asked.timeout_seconds,
        "fresh": asked.fresh,
        "priority": asked.priority.value,
        "max_attempts": asked.max_attempts,
        "queue_timeout": asked.queue_timeout_seconds,
        "pool": asked.pool,
        "not_before": not_before and _shown(not_before),
        "cancel_requested_at": cancel_requested_at and _shown(cancel_requested_at),
        "cancel_requested_by": cancel_requested_by,
        "image_id": image_id,
        "image_cached": None if image_cached is None else image_cached != 0,
        "log_size": log_size,
        "log_sha256": log_sha256,
        "log_truncated": None if log_truncated is None else log_truncated != 0,
    }


def _shown(stored: str) -> str:
    """Return a stored time as the API shows it: without microseconds where there are none."""
    return stored[:-8] + "Z" if stored.endswith(".000000Z") else stored


@lru_cache(maxsize=64)  # most jobs ask for the same; of releases before there was a bound some are 800 KB
def _options(stored: str, rank: int, pool: str) -> JobOptions:
    return options_from(stored, rank, pool)
