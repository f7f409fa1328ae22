"""Following a job from any position to its verdict: pure over the repository, the log store and the change hub.

What a reader gets over any number of reconnects is, put together, the file; nothing twice, nothing left out.
How the events travel is `ci_server.event_stream`.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import dataclass

from ci_common.errors import InvalidOffset, InvalidRequest, JobNotFound, LogIncomplete, LogPruned
from ci_common.events import CompleteEvent, ErrorEvent, LogEvent, Position, StatusEvent, StreamEvent
from ci_common.job_terms import JobStatus
from ci_common.models import Job
from ci_common.repository import JobRepository
from ci_common.stores import ChangeHub, LogStore
from ci_server.shared_looks import Look, SharedLooks, Tail
from ci_server.stream_end import StreamEnd

BATCH_BYTES = 64 * 1024  # batching decides throughput
LOOK_AGAIN_SECONDS = 2.0  # a lost wake-up costs this much, and a controller's silence is noticed


def start_position(
    job: Job, logs: LogStore, *, last_event_id: str | None, offset: int | None, from_beginning: bool
) -> Position:
    """Return where a reader begins: `Last-Event-ID` beats `offset` beats `from_beginning`.

    Raises InvalidRequest for an id that was never ours, InvalidOffset for a place that is not in the log.
    """
    if last_event_id:
        return _checked(_parse_position(last_event_id), job, logs)
    if offset is not None:
        return _checked(Position(job.attempt, offset), job, logs)
    return Position(job.attempt, 0 if from_beginning else _end_now(job, logs))


async def _always() -> None:
    """Let a reader go on: the access check of those who need none."""


@dataclass(frozen=True, slots=True)
class Following:
    """What following needs of its surroundings."""

    repository: JobRepository
    logs: LogStore
    hub: ChangeHub
    looks: SharedLooks  # of the whole process
    end: StreamEnd  # come: the events end early, and the reader comes back elsewhere
    check_access: Callable[[], Awaitable[None]] = _always  # raises when the reader may not go on
    look_again_after: float = LOOK_AGAIN_SECONDS


def follow_job(
    surroundings: Following, job_id: str, user_id: str | None, start: Position
) -> AsyncGenerator[StreamEvent, None]:
    """Yield what happens to the job from `start` on, and last exactly one `complete`.

    It ends without one only when it is stopped; a CIError is raised when the job is gone, the database is
    away or access was withdrawn.
    """
    return _Follower(surroundings, job_id, user_id, start).events()


class _Follower:
    def __init__(self, surroundings: Following, job_id: str, user_id: str | None, position: Position) -> None:
        self._around = surroundings
        self._job_id = job_id
        self._user_id = user_id
        self._position = position
        self._said: StatusEvent | None = None
        self._changed_attempt = False
        self._looked_at = 0.0

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        # Subscribed before the first look, so that nothing can happen between the look and the wait.
        with (
            self._around.hub.log(self._job_id) as changes,
            self._around.looks.tail(self._job_id) as tail,
            self._around.end.wakes(changes.wake),
        ):
            look, job = await self._look()  # the row first, then the file up to what the row says
            quiet, row_is_new = False, True
            while not self._around.end.has_come:
                superseded = self._position.attempt < job.attempt
                if row_is_new and not superseded and (status := await self._news(look, job, quiet=quiet)):
                    yield status
                with contextlib.closing(self._output(job, tail)) as pieces:
                    for number, piece in enumerate(pieces):
                        if number and not await self._goes_on():
                            return
                        yield piece
                if superseded:
                    self._begin_attempt(job.attempt)
                elif job.status.is_terminal:
                    for last in await self._ending(job):
                        yield last
                    return
                else:
                    quiet = not await changes.wait(self._around.look_again_after)
                await self._around.check_access()
                # Bytes alone change nothing in the row; but output that never rests must not hide it for ever.
                row_is_new = (
                    not changes.only_log or self._looked_at + self._around.look_again_after < time.monotonic()
                )
                if row_is_new:
                    look, job = await self._look()

    async def _look(self) -> tuple[Look, Job]:
        self._looked_at = time.monotonic()
        look = await self._around.looks.look(self._job_id, self._user_id)
        if look.job is None:
            raise JobNotFound(f"Job {self._job_id} does not exist any more.")
        return look, look.job

    async def _news(self, look: Look, job: Job, *, quiet: bool) -> StatusEvent | None:
        """Return the status if it is not what was said last."""
        if job.status.is_terminal and not self._changed_attempt:
            return None  # `complete` says it
        message = await self._message(look, job, quiet=quiet)
        event = StatusEvent(job.status, job.attempt, message, self._position)
        if event == self._said:
            return None
        self._said, self._changed_attempt = event, False
        return event

    async def _message(self, look: Look, job: Job, *, quiet: bool) -> str | None:
        if job.status.is_terminal:
            return None
        if job.status is JobStatus.RUNNING and job.cancel_requested_at is None and not quiet:
            # Why: output that flows needs no explanation, and each piece of it would cost another query.
            return self._said.message if self._said and self._said.status is job.status else None
        return await look.message()

    def _output(self, job: Job, tail: Tail) -> Generator[LogEvent]:
        """Yield what stands after the position: all of it when no more can come, else up to a whole character.

        Reads of 64 KiB that the page cache answers are quicker than their way through a thread.
        """
        attempt = self._position.attempt
        if attempt == 0:
            return
        final = attempt < job.attempt or job.status.is_terminal
        if not final:
            end = tail.end(attempt)
            while piece := tail.piece(attempt, self._position.offset, end):  # somebody has read it already
                self._position = piece.position
                yield piece
            if self._position.offset >= end:
                return
        # Held open to its end: who has begun to read is not cut off by a prune.
        with self._around.logs.reader(self._job_id, attempt) as log:
            end = _limited(log.size(), job, attempt)
            while self._position.offset < end:
                offset = self._position.offset
                data = log.read(offset, min(BATCH_BYTES, end - offset))
                whole = data if final and offset + len(data) >= end else without_incomplete_tail(data)
                if not whole:
                    return
                piece = LogEvent(whole, Position(attempt, offset + len(whole)))
                if not final:
                    tail.keep(attempt, offset, piece)
                self._position = piece.position
                yield piece

    def _begin_attempt(self, attempt: int) -> None:
        self._changed_attempt = self._position.attempt > 0
        self._position = Position(attempt, 0)

    async def _ending(self, job: Job) -> list[StreamEvent]:
        missing = (job.log_size or 0) - self._position.offset
        if missing <= 0:
            return [CompleteEvent.of(job)]
        if pruned := await pruned_meanwhile(self._around.repository, job):
            return [ErrorEvent(LogPruned.code, pruned.detail), CompleteEvent.of(job)]
        message = f"The stored log lacks its last {missing} of {job.log_size} bytes."
        return [ErrorEvent(LogIncomplete.code, message), CompleteEvent.of(job)]

    async def _goes_on(self) -> bool:
        # Why: a reader who is quicker than we are would otherwise keep every other request waiting.
        await asyncio.sleep(0)
        await self._around.check_access()
        return not self._around.end.has_come


def log_pruned(job: Job) -> LogPruned | None:
    """Return the error for a job whose log is not kept any more, None while it is."""
    if job.log_pruned_at is None:
        return None
    when = f"{job.log_pruned_at:%Y-%m-%d %H:%M} UTC"
    return LogPruned(f"The log of job {job.id} was pruned on {when}; its verdict stays.")


async def pruned_meanwhile(repository: JobRepository, job: Job) -> LogPruned | None:
    """Return that error also for a job whose row was read before a prune that took its log."""
    latest = await repository.get_job(job.id)
    if latest is None:
        return LogPruned(f"The log of job {job.id} was pruned just now.")
    return log_pruned(latest)


def stored_size(logs: LogStore, job_id: str, attempt: int) -> int:
    """Return how many bytes of that attempt's log can be read; none before the first attempt."""
    return logs.size(job_id, attempt) if attempt > 0 else 0


def without_incomplete_tail(data: bytes) -> bytes:
    """Return the bytes without a UTF-8 character at their end that has only begun (at most 3 bytes)."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # not a continuation: the last character begins here
            return data[:-back] if back < _sequence_length(byte) else data
    return data


def _sequence_length(lead: int) -> int:
    if 0xC2 <= lead <= 0xDF:
        return 2
    if 0xE0 <= lead <= 0xEF:
        return 3
    if 0xF0 <= lead <= 0xF4:
        return 4
    return 1  # ASCII, or never the beginning of a character


def _parse_position(text: str) -> Position:
    try:
        return Position.parse(text)
    except ValueError:
        message = "Last-Event-ID must be an id that this stream sent: '<attempt>:<offset>'."
        raise InvalidRequest(message) from None


def _checked(position: Position, job: Job, logs: LogStore) -> Position:
    if position.attempt > job.attempt:
        raise InvalidOffset(
            f"Position {position} is of an attempt this job has not had; {job.attempt} is the latest."
        )
    if job.log_pruned_at is not None:
        return position  # the reader is told what is gone, and gets the verdict
    size = _readable(job, position.attempt, logs)
    if position.offset > size:
        raise InvalidOffset(
            f"Position {position} is behind the end of that log, which has {size} bytes now.", size=size
        )
    return position


def _readable(job: Job, attempt: int, logs: LogStore) -> int:
    """Return how much of an attempt's log may be read: never more than the row of a finished job says."""
    return _limited(stored_size(logs, job.id, attempt), job, attempt)


def _limited(size: int, job: Job, attempt: int) -> int:
    if attempt == job.attempt and job.status.is_terminal and job.log_size is not None:
        return min(size, job.log_size)
    return size


def _end_now(job: Job, logs: LogStore) -> int:
    """Return where new output will begin, before a character that is half written."""
    if job.status.is_terminal and job.log_size is not None:
        return job.log_size
    size = stored_size(logs, job.id, job.attempt)
    if size == 0:
        return 0
    tail = logs.read(job.id, job.attempt, max(0, size - 3), 3)
    return size - (len(tail) - len(without_incomplete_tail(tail)))
