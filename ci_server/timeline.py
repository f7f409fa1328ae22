"""A job's timeline: what the database says happened to it, and what its containers said went on in them. Pure."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ci_common.models import JobEvent
from ci_server.rendering import timestamp

_ATTEMPTS = 10  # whose events are read
EVENTS_BYTES = 256 * 1024  # of one attempt that are read: harnesses say little, and an image may be anybody's

_NO_MOMENT = (ValueError, LookupError, TypeError, AttributeError, OverflowError, OSError, RecursionError)

Moment = dict[str, Any]


def timeline(events: Iterable[JobEvent], attempts: Mapping[int, bytes]) -> list[Moment]:
    """Return every moment of a job in its order; `attempts` has the bytes of each attempt's `.events`.

    Where two came at the same time, what the database says comes first: submitted, claimed, running.
    """
    moments = [_of_database(event) for event in events]
    for attempt, lines in attempts.items():
        moments += _of_container(attempt, lines)
    return sorted(moments, key=lambda moment: str(moment["at"]))


def attempts_of(events: Iterable[JobEvent]) -> list[int]:
    """Return the last attempts that a container ran for."""
    numbers = [event.data.get("attempt") for event in events if event.type == "running"]
    return [number for number in numbers if isinstance(number, int)][-_ATTEMPTS:]


def _of_database(event: JobEvent) -> Moment:
    return {
        "at": _text(event.timestamp),
        "type": event.type,
        "attempt": event.data.get("attempt"),
        "data": dict(event.data),
    }


def _of_container(attempt: int, lines: bytes) -> Iterable[Moment]:
    for line in lines.splitlines():
        try:
            event = json.loads(line)
            yield from _moments(attempt, event["type"], event["data"], event["at"])
        except _NO_MOMENT:
            continue  # cut off, nonsense, or of a harness that does not say when


def _moments(attempt: int, kind: str, data: Mapping[str, Any], at: int) -> list[Moment]:
    """Return what one line says: the last one has two moments."""
    first = data.get("first_output_at") if kind == "end" else None
    before = [] if first is None else [_moment(attempt, "first_output", {}, first)]
    said: Mapping[str, Any] = {} if kind == "end" else data
    return [*before, _moment(attempt, "session_end" if kind == "end" else kind, said, at)]


def _moment(attempt: int, kind: str, data: Mapping[str, Any], at: int) -> Moment:
    return {
        "at": _text(datetime.fromtimestamp(at / 1000, UTC)),
        "type": kind,
        "attempt": attempt,
        "data": data,
    }


def _text(moment: datetime) -> str:
    """Return the time with six digits always, so that texts sort as times do."""
    return timestamp(moment.replace(microsecond=0))[:-1] + f".{moment.microsecond:06}Z"
