"""The documents that OpenAPI shows as examples: one job, and the server about itself."""

from pydantic import JsonValue

Document = dict[str, JsonValue]

_JOB_ID = "550e8400-e29b-41d4-a716-446655440000"
_NO_CONTROLLER = "no controller has run on this database yet: start ci-controller"
_ENGINE_UNKNOWN = "unknown: only a running controller can tell"
_NO_SCHEMA = (
    "The server's database has no schema of this release: "
    "start ci-controller (or run `ci-admin user create`) on this database first."
)

SUBMITTED: Document = {"job_id": _JOB_ID}
MISSING: Document = {"missing": ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]}
STORED: Document = {"stored": 1}

FINISHED_JOB: Document = {
    "job_id": _JOB_ID,
    "status": "completed",
    "success": True,
    "start_time": "2025-10-13T10:30:00Z",
    "end_time": "2025-10-13T10:30:15Z",
    "created_at": "2025-10-13T10:29:59Z",
    "exit_code": 0,
    "reason": None,
    "message": "12 passed in 3.21 s",
    "attempt": 1,
    "pytest_args": ["-x"],
    "timeout": None,
    "fresh": False,
    "priority": "normal",
    "max_attempts": None,
    "queue_timeout": None,
    "pool": "default",
    "not_before": None,
    "cancel_requested_at": None,
    "cancel_requested_by": None,
    "image_id": "sha256:1f2e3d",
    "image_cached": True,
    "log_size": 18231,
    "log_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "log_truncated": False,
}

_UNFINISHED: Document = {
    "success": None,
    "end_time": None,
    "exit_code": None,
    "message": None,
    "log_size": None,
    "log_sha256": None,
    "log_truncated": None,
}
_CANCEL_REQUESTED: Document = {
    "cancel_requested_at": "2025-10-13T10:30:05Z",
    "cancel_requested_by": "ada@example.org",
}
CANCELLING_JOB: Document = {**FINISHED_JOB, **_UNFINISHED, **_CANCEL_REQUESTED, "status": "running"}
QUEUED_JOB: Document = {
    **FINISHED_JOB,
    **_UNFINISHED,
    "status": "queued",
    "start_time": None,
    "attempt": 0,
    "priority": "high",
    "image_id": None,
    "image_cached": None,
}
JOB_IN_QUEUE: Document = {
    **QUEUED_JOB,
    "position": 3,
    "waiting_for": "3 jobs are before it",
    "estimated_wait_seconds": 45.2,
}
QUEUED_JOBS: list[JsonValue] = [
    {
        "job_id": _JOB_ID,
        "status": "queued",
        "priority": "normal",
        "pool": "default",
        "created_at": "2025-10-13T10:29:59Z",
        "position": 3,
        "waiting_for": "3 jobs are before it",
        "estimated_wait_seconds": 45.2,
    }
]
_NO_DEPTH: Document = {"queued": 0, "claimed": 0, "running": 0}
_DEPTH: Document = {"queued": 12, "claimed": 1, "running": 5}
QUEUE_STATS: Document = {
    "window_seconds": 3600,
    **_DEPTH,
    "oldest_queued_seconds": 14.2,
    "completed": 1240,
    "failed": 8,
    "cancelled": 3,
    "dead_lettered": 0,
    "avg_wait_seconds": 2.3,
    "p95_wait_seconds": 8.1,
    "avg_execution_seconds": 45.2,
    "p95_execution_seconds": 121.7,
    "failure_rate": 0.0064,
    "infra_failure_rate": 0.0,
    "tests_failed_rate": 0.0801,
    "by_pool": {"default": _DEPTH},
    "by_priority": {"critical": _NO_DEPTH, "high": _NO_DEPTH, "normal": _DEPTH, "low": _NO_DEPTH},
}
CANCELLED_JOB: Document = {
    **FINISHED_JOB,
    **_UNFINISHED,
    **_CANCEL_REQUESTED,
    "status": "cancelled",
    "success": False,
    "start_time": None,
    "end_time": "2025-10-13T10:30:05Z",
    "reason": "cancelled",
    "message": "Cancelled by ada@example.org while it was queued.",
    "attempt": 0,
    "image_id": None,
    "image_cached": None,
}

TIMELINE: list[JsonValue] = [
    {"index": 0, "type": "submitted", "timestamp": "2025-10-13T10:29:59Z", "data": {}},
    {
        "index": 1,
        "type": "claimed",
        "timestamp": "2025-10-13T10:29:59.500000Z",
        "data": {"attempt": 1, "holder": "ci-1"},
    },
]

MOMENTS: list[JsonValue] = [
    {"at": "2025-10-13T10:29:59.000000Z", "type": "submitted", "attempt": None, "data": {}},
    {
        "at": "2025-10-13T10:29:59.012000Z",
        "type": "phase",
        "attempt": 1,
        "data": {"name": "test", "title": "pytest"},
    },
]

HEALTHY: Document = {"status": "healthy", "version": "0.1.0"}

_DISK: Document = {"status": "ok", "message": None, "free_bytes": 21474836480, "free_inodes_percent": 91.3}

READY: Document = {
    "status": "ok",
    "version": "0.1.0",
    "reasons": [],
    "checks": {
        "database": {"status": "ok", "message": None},
        "controller": {
            "status": "ok",
            "message": None,
            "heartbeat_age_seconds": 1.2,
            "note": None,
            "holder": "box:4711",
            "waiting": 0,
        },
        "engine": {"status": "ok", "message": None},
        "queue": {"status": "ok", "message": None},
        "storage": {"status": "ok", "message": None},
        "disk": _DISK,
    },
}
DEGRADED: Document = {
    "status": "degraded",
    "version": "0.1.0",
    "reasons": [f"controller: {_NO_CONTROLLER}", f"engine: {_ENGINE_UNKNOWN}"],
    "checks": {
        "database": {"status": "ok", "message": None},
        "controller": {
            "status": "degraded",
            "message": _NO_CONTROLLER,
            "heartbeat_age_seconds": None,
            "note": None,
            "holder": None,
            "waiting": 0,
        },
        "engine": {"status": "degraded", "message": _ENGINE_UNKNOWN},
        "queue": {"status": "ok", "message": None},
        "storage": {"status": "ok", "message": None},
        "disk": _DISK,
    },
}
FAILING: Document = {
    "status": "failing",
    "version": "0.1.0",
    "reasons": [
        f"database: {_NO_SCHEMA}",
        "controller: unknown without the database",
        "engine: unknown without the database",
        "queue: unknown without the database",
    ],
    "checks": {
        "database": {"status": "failing", "message": _NO_SCHEMA, "code": "schema_missing"},
        "controller": {"status": "failing", "message": "unknown without the database"},
        "engine": {"status": "failing", "message": "unknown without the database"},
        "queue": {"status": "failing", "message": "unknown without the database"},
        "storage": {"status": "ok", "message": None},
        "disk": _DISK,
    },
}

INFO: Document = {
    "version": "0.1.0",
    "user": {"user_id": "a1b2c3d4", "name": "Ada", "email": "ada@example.org"},
    "key": {
        "name": "laptop",
        "prefix": "ci_Ab12Cd34",
        "scopes": ["read", "submit"],
        "expires_at": None,
    },
    "limits": {
        "max_upload_bytes": 536870912,
        "max_job_timeout": 86400.0,
        "max_queued_per_user": 1000,
        "max_streams_per_user": 100,
    },
}

LOG = "Running 12 tests ...\r\n............\r\n12 passed in 3.21s\r\n"

AGENT: Document = {
    "agent_id": "7d9f2c4e-3b1a-4c55-9a7e-2f6d8b0c1e3a",
    "name": "rack-1",
    "pool": "gpu",
    "labels": ["cuda"],
    "slots": 4,
    "version": "0.1.0",
    "status": "HEALTHY",
    "note": None,
    "registered_at": "2025-10-13T09:00:00Z",
    "last_heartbeat": "2025-10-13T10:30:14Z",
    "disk_free": 21474836480,
    "jobs_running": 1,
    "jobs_completed": 245,
}
POOL: Document = {
    "pool": "gpu",
    "agents": 1,
    "healthy": 1,
    "slots": 4,
    "jobs_running": 1,
    "labels": ["cuda"],
    "max_running": 3,
}
STOP: Document = {"reason": "timeout", "at": "2025-10-13T11:00:00Z", "message": "It ran for 30 minutes."}
ATTEMPT: Document = {
    "id": _JOB_ID,
    "attempt": 1,
    "claim_token": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
    "claimed_lease_expires_at": "2025-10-13T10:30:44Z",
    "status": "claimed",
    "owner": "a1b2c3d4",
    "created_at": "2025-10-13T10:29:59Z",
    "pytest_args": ["-x"],
    "timeout": None,
    "fresh": False,
    "priority": "normal",
    "pool": "gpu",
    "cancel_requested_at": None,
    "cancel_requested_by": None,
    "claimed_at": "2025-10-13T10:30:00Z",
    "container_id": None,
    "image_id": None,
    "started_at": None,
    "begun_at": None,
    "stop": None,
}
_ENDED: Document = {"job_id": _JOB_ID, "attempt": 1}
_IMAGE_USE: Document = {"last_at": "2025-10-13T10:30:00Z", "is_open": True}

# By the names under which OpenAPI holds them.
EXAMPLES: dict[str, JsonValue] = {
    "submitted": SUBMITTED,
    "enqueued": {"job_id": _JOB_ID, "job_ids": [_JOB_ID]},
    "missing": MISSING,
    "stored": STORED,
    "finished_job": FINISHED_JOB,
    "jobs": [FINISHED_JOB],
    "cancelling_job": CANCELLING_JOB,
    "cancelled_job": CANCELLED_JOB,
    "queued_job": QUEUED_JOB,
    "queued_jobs": QUEUED_JOBS,
    "job_in_queue": JOB_IN_QUEUE,
    "queue_stats": QUEUE_STATS,
    "registered": {"agent_id": AGENT["agent_id"], "epoch": 1, "lease_seconds": 30.0},
    "agent": AGENT,
    "agents": [AGENT],
    "pool": POOL,
    "pools": [POOL],
    "instructions": {"state": "active", "cancel": [_JOB_ID]},
    "held": {"now": "2025-10-13T10:30:14Z", "attempts": [ATTEMPT], "claimable": 2},
    "news": {"news": "9f86d081884c7d65"},
    "ended": {"ended": {"4c01db0b339c": _ENDED}},
    "images": {"images": {"sha256:1f2e3d": _IMAGE_USE}},
    "claimed": {"job": ATTEMPT, "jobs": [ATTEMPT]},
    "stop": STOP,
    "released": {"status": "queued"},
    "log_size": {"size": 18231},
    "requeued": {"requeued": [_JOB_ID]},
    "timeline": TIMELINE,
    "moments": MOMENTS,
    "healthy": HEALTHY,
    "capacity": {"room": True},
    "ready": READY,
    "degraded": DEGRADED,
    "failing": FAILING,
    "info": INFO,
}
