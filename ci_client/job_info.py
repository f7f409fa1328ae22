"""A job as the API shows it to its owner."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self, cast

from ci_client._http import ProtocolError


@dataclass(frozen=True, slots=True)
class JobInfo:
    """One job; `raw` is the whole object as the server sent it, newer fields included."""

    job_id: str
    status: str  # a `JobStatus` value, or one younger than this client
    success: bool | None = None
    created_at: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    exit_code: int | None = None
    reason: str | None = None
    message: str | None = None
    attempt: int = 0
    priority: str = "normal"  # a `Priority` value, or one younger than this client
    raw: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Return the job a JSON object describes; raises ProtocolError when it describes none."""
        try:
            return cls._from_mapping(cast(Mapping[str, Any], data))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"The server sent a job this client cannot read: {error!r}") from error

    @classmethod
    def _from_mapping(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            job_id=str(data["job_id"]),
            status=str(data["status"]),
            success=data.get("success"),
            created_at=_time(data.get("created_at")),
            start_time=_time(data.get("start_time")),
            end_time=_time(data.get("end_time")),
            exit_code=data.get("exit_code"),
            reason=data.get("reason"),
            message=data.get("message"),
            attempt=int(data.get("attempt") or 0),
            priority=str(data.get("priority") or "normal"),
            raw=data,
        )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
