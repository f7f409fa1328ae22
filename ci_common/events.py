"""What a job's stream says: typed events and their JSON form, the same for server and client.

The wire form of each is one JSON object with a `type`; fields are additive for ever, so readers skip what
they do not know. The position of a log or status event travels as the SSE id `<attempt>:<offset>` (`Position`).
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from ci_common.job_terms import JobStatus, Reason

if TYPE_CHECKING:
    from ci_common.models import Job


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a job's output: so many bytes of that attempt's log have been read."""

    attempt: int
    offset: int

    def __str__(self) -> str:
        return f"{self.attempt}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the position that `str()` made; raises ValueError on anything else."""
        attempt, separator, offset = text.partition(":")
        if not separator or not (
            attempt.isascii() and attempt.isdigit() and offset.isascii() and offset.isdigit()
        ):
            raise ValueError(f"not a position: {text[:40]!r}")
        return cls(int(attempt), int(offset))


@dataclass(frozen=True, slots=True)
class JobIdEvent:
    """The first event of `/submit-stream`: how to find the job again."""

    job_id: str

    def to_json(self) -> dict[str, Any]:
        return {"type": "job_id", "job_id": self.job_id}


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A piece of output that ends at `position`."""

    data: bytes
    position: Position

    def to_json(self) -> dict[str, Any]:
        """Return the text, and the exact bytes beside it where they are not UTF-8."""
        try:
            return {"type": "log", "data": self.data.decode()}
        except UnicodeDecodeError:
            exact = base64.b64encode(self.data).decode()
            return {"type": "log", "data": self.data.decode(errors="replace"), "data_base64": exact}


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """A change of state, or what a job that is not running waits for."""

    status: JobStatus
    attempt: int
    message: str | None = None
    # Where the reader stands, sent as the SSE id: who is cut off before the first output resumes from here.
    position: Position | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "status",
            "status": self.status.value,
            "attempt": self.attempt,
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class CompleteEvent:
    """The last event: the verdict."""

    success: bool
    status: JobStatus
    exit_code: int | None = None
    reason: Reason | None = None
    message: str | None = None

    @classmethod
    def of(cls, job: "Job") -> Self:
        """Return the verdict of a terminal job."""
        assert job.status.is_terminal, f"job {job.id} is {job.status}"
        return cls(job.success is True, job.status, job.exit_code, job.reason, job.message)

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "complete",
            "success": self.success,
            "status": self.status.value,
            "exit_code": self.exit_code,
            "reason": self.reason.value if self.reason else None,
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """Something went wrong with the stream itself (never: with the tests)."""

    code: str
    message: str

    def to_json(self) -> dict[str, Any]:
        return {"type": "error", "code": self.code, "message": self.message}


StreamEvent = JobIdEvent | LogEvent | StatusEvent | CompleteEvent | ErrorEvent


def parse_event(data: Mapping[str, Any], position: Position | None = None) -> StreamEvent | None:
    """Return the event a JSON object stands for, None for a type this release does not know.

    Raises ValueError when a known type lacks a field or holds nonsense: the other side is not our server.
    """
    try:
        return _parse(data, position)
    except (KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"malformed event: {error}") from error


def _parse(data: Mapping[str, Any], position: Position | None) -> StreamEvent | None:
    match data.get("type"):
        case "job_id":
            return JobIdEvent(str(data["job_id"]))
        case "log":
            return LogEvent(_log_bytes(data), position or Position(0, 0))
        case "status":
            return StatusEvent(JobStatus(data["status"]), int(data.get("attempt", 0)), data.get("message"))
        case "complete":
            reason = data.get("reason")
            return CompleteEvent(
                success=data["success"] is True,
                status=JobStatus(data.get("status", JobStatus.COMPLETED)),
                exit_code=data.get("exit_code"),
                reason=Reason(reason) if reason else None,
                message=data.get("message"),
            )
        case "error":
            return ErrorEvent(str(data.get("code", "internal_error")), str(data["message"]))
        case _:
            return None


def _log_bytes(data: Mapping[str, Any]) -> bytes:
    exact = data.get("data_base64")
    return base64.b64decode(exact, validate=True) if exact is not None else str(data["data"]).encode()
