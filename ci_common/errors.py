"""The one vocabulary of errors: server, client and commands raise the same classes.

Each class has a stable `code` (what scripts match), the HTTP status it travels under and the exit code
a command ends with (sysexits where pytest's own 0-6 do not apply). The message is one sentence a person
understands, with the way out.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Final

_MOST_NAMED: Final = 10_000  # hashes in one answer: 700 KB


class CIError(Exception):
    """Anything that went wrong in a way we have a word for."""

    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 70

    def __init__(
        self, detail: str, *, retry_after: int | None = None, public_detail: str | None = None, **extra: Any
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.public_detail = detail if public_detail is None else public_detail  # names no file of the server
        self.retry_after = retry_after  # seconds; sent as Retry-After
        self.extra: Mapping[str, Any] = extra  # further members of the problem document


class InternalError(CIError):
    """The server failed in a way it had no word for; its log has the traceback under the request id."""


class InvalidRequest(CIError):
    """The request does not have the documented form."""

    code = "invalid_request"
    title = "Invalid request"
    http_status = 422
    exit_code = 64


class NotAProject(CIError):
    """The directory holds nothing that could be tested; raised by the client before anything is sent."""

    code = "not_a_project"
    title = "Not a Python project"
    http_status = 422
    exit_code = 64


class InvalidArchive(CIError):
    """The upload breaks a rule of archives; `rule` in the problem document names it."""

    code = "invalid_archive"
    title = "Invalid archive"
    http_status = 422
    exit_code = 65


class InvalidBlob(CIError):
    """An uploaded blob is not what it says; `sha256` in the problem document names it."""

    code = "invalid_blob"
    title = "Invalid blob"
    http_status = 422
    exit_code = 65


class ArchiveTooLarge(CIError):
    """The upload is larger than this server takes."""

    code = "archive_too_large"
    title = "Archive too large"
    http_status = 413
    exit_code = 65


class Unauthorized(CIError):
    """There is no valid API key; deliberately the same for missing, malformed, unknown, revoked and expired."""

    code = "unauthorized"
    title = "No valid API key"
    http_status = 401
    exit_code = 77


class Forbidden(CIError):
    """The key is valid, but not for this."""

    code = "forbidden"
    title = "Not allowed"
    http_status = 403
    exit_code = 77


class PriorityNotAllowed(Forbidden):
    """The priority is more urgent than the user may ask for; `max_priority` in the problem document may be."""

    code = "priority_not_allowed"
    title = "Priority not allowed"


class NotFound(CIError):
    """There is no such thing, or it is somebody else's: the two look alike on purpose."""

    code = "not_found"
    title = "Not found"
    http_status = 404
    exit_code = 66


class MethodNotAllowed(CIError):
    """The path exists, but not for this HTTP method."""

    code = "method_not_allowed"
    title = "Method not allowed"
    http_status = 405
    exit_code = 64


class JobNotFound(NotFound):
    """There is no such job among the caller's."""

    code = "job_not_found"
    title = "Job not found"


class Conflict(CIError):
    """The state of things does not allow it."""

    code = "conflict"
    title = "Conflict"
    http_status = 409
    exit_code = 65


class JobFinished(Conflict):
    """The job was terminal already, so it cannot be cancelled."""

    code = "job_finished"
    title = "Job already finished"


class StaleClaim(Conflict):
    """The job is not the agent's, or not any more: whatever of it still runs there is to be removed."""

    code = "stale_claim"
    title = "Not your claim"


class IdempotencyConflict(Conflict):
    """The Idempotency-Key was used before for something else."""

    code = "idempotency_conflict"
    title = "Idempotency key reused"


class AlreadyExists(Conflict):
    """The thing to create is there already."""

    code = "already_exists"
    title = "Already exists"


class MissingBlobs(Conflict):
    """The server lacks contents that the tree names; upload those in `missing`, then submit again."""

    code = "missing_blobs"
    title = "Contents missing"

    @classmethod
    def of(cls, hashes: Collection[bytes]) -> "MissingBlobs":
        """Return the error that names them, as many as one answer holds."""
        named = [sha256.hex() for sha256 in sorted(hashes)[:_MOST_NAMED]]
        detail = (
            f"{len(hashes)} contents of the tree are not here; send them with PUT /blobs, then submit again."
        )
        return cls(detail, missing=named, missing_count=len(hashes))


class InvalidOffset(CIError):
    """The offset to resume from lies outside the log."""

    code = "invalid_offset"
    title = "Invalid offset"
    http_status = 416
    exit_code = 65


class LogPruned(CIError):
    """The log was kept for as long as the operator decided, and is gone; the verdict stays."""

    code = "log_pruned"
    title = "Log no longer kept"
    http_status = 410
    exit_code = 66


class ArchivePruned(CIError):
    """What was uploaded was kept for as long as the operator decided, and is gone; submit the tree again."""

    code = "archive_pruned"
    title = "Archive no longer kept"
    http_status = 410
    exit_code = 66


class LogIncomplete(CIError):
    """The stored log lacks its end; only ever an `error` event of a stream, before its `complete`."""

    code = "log_incomplete"
    title = "Log incomplete"


class TooManyRequests(CIError):
    """A limit of this user is reached; try again after `retry_after` seconds."""

    code = "too_many_requests"
    title = "Too many requests"
    http_status = 429
    exit_code = 75


class RateLimited(TooManyRequests):
    """Requests come faster than this server takes them; go on after `retry_after` seconds."""

    code = "rate_limited"
    title = "Too many requests per minute"

    @property
    def limit(self) -> int:
        """How many are taken per minute; 0 where the answer did not say."""
        return int(self.extra.get("limit", 0))


class UploadTooSlow(CIError):
    """The upload took longer than it may, or came too slowly to ever end in time."""

    code = "upload_too_slow"
    title = "Upload too slow"
    http_status = 408
    exit_code = 75


class Unavailable(CIError):
    """The service cannot do it now, but will again."""

    code = "unavailable"
    title = "Temporarily unavailable"
    http_status = 503
    exit_code = 75


class QueueFull(Unavailable):
    """The queue holds as many jobs as it takes; there will be room when some have run."""

    code = "queue_full"
    title = "Queue full"


class SchemaMissing(Unavailable):
    """The database has no schema, or an older one: the controller or ci-admin makes it."""

    code = "schema_missing"
    title = "Database not initialised"


class SchemaTooNew(Unavailable):
    """The database was written by a newer release than this one."""

    code = "schema_too_new"
    title = "Database is newer than this program"


class DatabaseBusy(Unavailable):
    """The database was locked for longer than we wait."""

    code = "database_busy"
    title = "Database busy"


class OutcomeUnknown(Unavailable):
    """The database was lost while it committed: whether the change was made can only be looked up."""

    code = "outcome_unknown"
    title = "Outcome unknown"


class DatabaseCorrupt(Unavailable):
    """The database fails its own integrity check and must be restored from a backup."""

    code = "database_corrupt"
    title = "Database corrupt"


class BackupInvalid(CIError):
    """The directory is no backup, or not a whole one; nothing was restored."""

    code = "backup_invalid"
    title = "Not a usable backup"
    http_status = 422
    exit_code = 65


class StorageFull(Unavailable):
    """There is no room left on a disk this needs."""

    code = "storage_full"
    title = "No space left"
    http_status = 507


class StorageUnavailable(Unavailable):
    """The object store does not answer, or does not let us in."""

    code = "storage_unavailable"
    title = "Storage unavailable"


class ControllerRunning(CIError):
    """Another controller is alive on this database; exactly one may run."""

    code = "controller_running"
    title = "Another controller is running"
    http_status = 409
    exit_code = 75


class RunnerElsewhere(ControllerRunning):
    """Another controller's containers are on another engine, so that this one could not go on with them."""

    code = "runner_elsewhere"
    title = "Jobs run on another engine"


class EngineUnavailable(CIError):
    """The Docker engine does not answer; nothing is charged to any job for that."""

    code = "engine_unavailable"
    title = "Docker engine unavailable"
    http_status = 503
    exit_code = 69


class ServerUnreachable(CIError):
    """The client could not reach the server; raised by the client."""

    code = "server_unreachable"
    title = "Server unreachable"
    http_status = 503
    exit_code = 69


def _subclasses(cls: type[CIError]) -> list[type[CIError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _subclasses(sub))]


def errors_by_code() -> dict[str, type[CIError]]:
    """Return every error class under its code, so that a wire code becomes the same class again."""
    return {cls.code: cls for cls in reversed(_subclasses(CIError))}
