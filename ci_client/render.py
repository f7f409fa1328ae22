"""What a person or a script sees of a job: its events as text or as JSON lines, listings, details."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol

from ci_client.console import Console
from ci_client.exit_codes import exit_code_of_verdict
from ci_common.events import (
    CompleteEvent,
    ErrorEvent,
    JobIdEvent,
    LogEvent,
    StatusEvent,
    StreamEvent,
)
from ci_common.job_terms import JobStatus, Priority
from ci_common.terminal import TerminalSanitizer, one_line

if TYPE_CHECKING:
    from ci_client.job_info import JobInfo  # brings HTTP with it, which not every command needs
    from ci_client.selection import Selection

_PROGRESS_SECONDS = 0.1
_RESET = b"\x1b[0m"


class Renderer(Protocol):
    """Shows a job's events one by one; `finish` comes after the last, whatever ended the stream."""

    def show(self, event: StreamEvent) -> None: ...

    def finish(self) -> None: ...


class LogWriter:
    """Output of a job on its way to stdout: untouched into files and pipes, made harmless for terminals."""

    def __init__(self, console: Console, *, raw: bool) -> None:
        self._console = console
        terminal = console.terminal
        clean = terminal.stdout and not raw
        self._sanitizer = TerminalSanitizer(colours=terminal.out_colour) if clean else None
        self._coloured = False

    def write(self, data: bytes) -> None:
        """The piece is on stdout, as far as it is complete."""
        if self._sanitizer:
            data = self._sanitizer.feed(data)
            self._coloured |= b"\x1b" in data
        self._console.data(data)

    def finish(self) -> None:
        """What was held back is written, and colours left on by the job are off again."""
        if self._sanitizer:
            self._console.data(self._sanitizer.finish())
        if self._coloured:
            self._console.data(_RESET)
            self._coloured = False


class TextRenderer:
    """Output on stdout; job id, changes of state and the verdict on stderr."""

    def __init__(self, console: Console, *, raw: bool = False) -> None:
        self._console = console
        self._log = LogWriter(console, raw=raw)
        self._submitted: float | None = None
        self._attempt = 0

    def show(self, event: StreamEvent) -> None:
        match event:
            case JobIdEvent():
                self._submitted = time.monotonic()
                self._console.note(how_to_follow(event.job_id))
            case LogEvent():
                self._log.write(event.data)
            case StatusEvent():
                self._state(event)
            case ErrorEvent():
                self._console.warn(event.message)
            case CompleteEvent():
                self._log.finish()
                took = time.monotonic() - self._submitted if self._submitted is not None else None
                text = describe_verdict(event, took)
                self._console.note(text, "green" if event.success else "red")

    def finish(self) -> None:
        self._log.finish()

    def _state(self, event: StatusEvent) -> None:
        if event.status.is_terminal:
            return  # the verdict says it better
        text = f"{event.status.value}: {event.message}" if event.message else event.status.value
        if event.attempt > self._attempt > 0:
            self._console.note(f"Attempt {event.attempt} (the one before was lost): {text}")
        elif self._console.terminal.stderr:
            self._console.transient(text)
        else:
            self._console.note(text)
        self._attempt = max(self._attempt, event.attempt)


class JsonRenderer:
    """One JSON object a line on stdout, as on the wire, with the position of output beside it."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, event: StreamEvent) -> None:
        data = event.to_json()
        if isinstance(event, LogEvent):
            data["position"] = str(event.position)
        self._console.line(json.dumps(data))

    def finish(self) -> None:
        """Every line was complete already."""


def how_to_follow(job_id: str) -> str:
    """Return the line that tells how to find a job again."""
    return f"Job {job_id} (follow: ci wait {job_id}, cancel: ci cancel {job_id})"


def describe_verdict(event: CompleteEvent, seconds: float | None = None) -> str:
    """Return the verdict in one line."""
    took = f" in {_duration(seconds)}" if seconds is not None else ""
    evidence = f" - {event.message}" if event.message else ""
    if event.success:
        return f"✓ passed{took}{evidence}"
    if event.status is JobStatus.CANCELLED:
        return f"✗ cancelled{evidence}"
    reason = event.reason.value if event.reason else "unknown"
    if event.status is JobStatus.COMPLETED:
        what = reason.replace("_", " ") if event.reason else "tests failed"
        return f"✗ {what} (exit {exit_code_of_verdict(event)}){took}{evidence}"
    return f"✗ no verdict: {reason}{evidence}"


def job_table(jobs: "Iterable[JobInfo]") -> Iterable[str]:
    """Yield the lines of `ci list`; scripts parse them, so they stay as they are.

    The first line comes once the first job has: a list that could not be had must not look like an empty one.
    """
    left = iter(jobs)
    first = list(islice(left, 1))
    yield f"{'JOB ID':<38} {'STATUS':<12} {'START TIME':<22} {'END TIME':<22} SUCCESS"
    yield "-" * 110
    for job in chain(first, left):
        times = f"{_time(job.start_time):<22} {_time(job.end_time):<22}"
        mark = "-" if job.success is None else "✓" if job.success else "✗"
        urgency = "" if job.priority == Priority.NORMAL else f" {one_line(job.priority)}"
        yield f"{one_line(job.job_id):<38} {one_line(job.status):<12} {times} {mark}{urgency}"


def queue_table(queued: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yield the lines of `ci queue`."""
    if not queued:
        yield "None of your jobs is waiting."
        return
    yield f"{'JOB ID':<38} {'PRIORITY':<9} {'PLACE':>5} {'WAIT':<20} WHY"
    for job in queued:
        place, seconds = _field(job.get("position")), job.get("estimated_wait_seconds")
        wait = f"about {_duration(seconds)}" if isinstance(seconds, int | float) else "-"
        named = f"{_field(job.get('job_id')):<38} {_field(job.get('priority')):<9}"
        yield f"{named} {place:>5} {wait:<20} {_field(job.get('waiting_for'))}"


def job_details(job: "JobInfo") -> Iterable[str]:
    """Yield a job's fields, one a line."""
    for name, value in job.raw.items():
        yield f"{one_line(name) + ':':<22} {_field(value)}"


def selection_lines(selection: "Selection") -> Iterable[str]:
    """Yield what `--dry-run` says: each file with its size, the sum, and what stays behind with the reason."""
    for entry in selection.entries:
        mark = "*" if entry.executable else " "
        yield f"{size(entry.size):>10} {mark} {one_line(entry.path)}"
    yield f"{size(selection.size):>10}   in {len(selection.entries)} files would be sent"
    if selection.skipped:
        yield ""
        yield "Not sent:"
    for path, reason in sorted(selection.skipped.items()):
        yield f"  {one_line(path)}: {one_line(reason)}"


def selection_json(selection: "Selection") -> str:
    """Return what `--dry-run --json` says."""
    files = [
        {"path": entry.path, "size": entry.size, "executable": entry.executable}
        for entry in selection.entries
    ]
    skipped = [
        {"path": one_line(path), "reason": reason} for path, reason in sorted(selection.skipped.items())
    ]
    return json.dumps({"files": files, "total_size": selection.size, "skipped": skipped})


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def upload_progress(console: Console) -> Callable[[int, int], None]:
    """Return what shows an upload, on a terminal only."""
    started = shown = time.monotonic()

    def show(sent: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < _PROGRESS_SECONDS and sent < total:
            return
        shown = now
        speed = sent / max(now - started, 0.001)
        console.transient(f"Uploading {size(sent)} of {size(total)} ({size(int(speed))}/s)")

    return show


def _time(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if moment else "N/A"


def _field(value: Any) -> str:
    if value is None:
        return "-"
    return one_line(value) if isinstance(value, str) else json.dumps(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
