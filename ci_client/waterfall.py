"""Where a job's time went: from the moments of its timeline to spans, and from spans to bars. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from ci_client._http import ProtocolError
from ci_common.terminal import one_line

WIDTH = 100  # where nobody says how wide the screen is
_LEAST_BAR = 10
_MOST_BAR = 60
_LABEL = 28

# What is under way from a moment on; where a phase says what it does, that.
_UNDER_WAY: Mapping[str, str] = {
    "submitted": "waiting in the queue",
    "claimed": "getting a container",
    "running": "sending the tree",
    "prepared": "keeping the environment",
    "begun": "preparing",
    "installed": "closing the network",
    "phase": "installing",
    "first_output": "pytest",
    "session_end": "recording the verdict",
    "released": "waiting for another attempt",
    "cancel_requested": "stopping",
}


@dataclass(frozen=True, slots=True)
class Span:
    """What was under way between two moments; milliseconds since the job was submitted."""

    label: str
    start_ms: float
    end_ms: float
    attempt: int | None
    begins: str  # type of the moment at its start
    ends: str  # and at its end

    @property
    def took_ms(self) -> float:
        return round(self.end_ms - self.start_ms, 3)

    def to_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        return {**asdict(self), "took_ms": self.took_ms}


def spans_of(moments: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Return what lies between the moments, in their order; raises ProtocolError where they are none."""
    try:
        times = [datetime.fromisoformat(str(moment["at"])) for moment in moments]
        starts = [round((time - times[0]).total_seconds() * 1000, 3) for time in times]
        return [
            Span(_label(one), start, end, one.get("attempt"), str(one["type"]), str(other["type"]))
            for (one, other), (start, end) in zip(pairwise(moments), pairwise(starts), strict=True)
        ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"The server sent a timeline this client cannot read: {error!r}") from error


def _label(moment: Mapping[str, Any]) -> str:
    kind, data = str(moment["type"]), moment["data"]
    if kind == "phase" and data.get("name") == "test":
        return "starting pytest"
    title = data.get("title") if kind == "phase" else None
    return f"installing: {title}" if title else _UNDER_WAY.get(kind, kind)


def waterfall(spans: Sequence[Span], columns: int, *, colour: bool = False) -> Iterator[str]:
    """Yield a line for each span: what, when it began, how long it took, and a bar at its place."""
    if not spans:
        yield "Nothing has happened to this job yet."
        return
    whole = max(span.end_ms for span in spans)
    room = max(_LEAST_BAR, min(_MOST_BAR, columns - _LABEL - 22))
    for span in spans:
        name = one_line(span.label)
        label = name if len(name) <= _LABEL else name[: _LABEL - 1] + "…"
        bar = _bar(span, whole, room, colour=colour)
        yield f"{label:<{_LABEL}} {_milliseconds(span.start_ms):>9} {_milliseconds(span.took_ms):>9} {bar}".rstrip()
    yield f"{'in all':<{_LABEL}} {'':>9} {_milliseconds(whole):>9}" + _unfinished(spans)


def _bar(span: Span, whole: float, room: int, *, colour: bool) -> str:
    scale = room / whole if whole else 0.0
    start = min(int(span.start_ms * scale), room - 1)
    length = max(1, round(span.took_ms * scale))
    bar = ("█" if span.took_ms * scale >= 0.5 else "▏") * min(length, room - start)
    return " " * start + (f"\x1b[36m{bar}\x1b[0m" if colour else bar)


def _unfinished(spans: Iterable[Span]) -> str:
    last = list(spans)[-1].ends
    return "" if last not in _UNDER_WAY else f"  (so far: {_UNDER_WAY[last]})"


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 1000 else f"{value / 1000:.2f} s"
