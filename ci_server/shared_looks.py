"""What all who follow one job look at, looked up once: its row, what it waits for, how long its log is, the log's end.

A thousand viewers wake at the same moment. Each still decides for itself what it has yet to send; whoever is slower
than the few pieces that are kept here reads the file, so a slow reader costs nobody memory.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from ci_common.clock import Clock
from ci_common.events import LogEvent
from ci_common.models import Job
from ci_common.repository import JobRepository
from ci_common.stores import LogStore
from ci_server.waiting import waiting_for

_PIECES = 4  # of at most 64 KiB, for each job that is followed

LookKey = tuple[str, str | None]  # the job and the owner it must have


class Tail:
    """The pieces of one job's log that were read last, by where they begin. What was written never changes."""

    def __init__(self) -> None:
        self._pieces = OrderedDict[tuple[int, int], LogEvent]()
        self.followers = 0

    def piece(self, attempt: int, offset: int, end: int) -> LogEvent | None:
        """Return the piece that begins there, if it is here and ends no later than `end`."""
        found = self._pieces.get((attempt, offset))
        return found if found and found.position.offset <= end else None

    def keep(self, attempt: int, offset: int, piece: LogEvent) -> None:
        """The piece is here, until there are newer ones."""
        self._pieces[attempt, offset] = piece
        if len(self._pieces) > _PIECES:
            self._pieces.popitem(last=False)


@dataclass(slots=True)
class Look:
    """One look at a job, for everybody who wanted one at that moment; the log is as long as after the row was read."""

    job: Job | None
    _repository: JobRepository
    _logs: LogStore
    _clock: Clock
    _sizes: dict[int, int] = field(default_factory=dict[int, int])
    _message: asyncio.Task[str | None] | None = None

    def log_size(self, attempt: int) -> int:
        """Return how many bytes that attempt's log has."""
        if attempt not in self._sizes:
            assert self.job is not None, "a job that is gone has no log to be asked for"
            self._sizes[attempt] = self._logs.size(self.job.id, attempt)
        return self._sizes[attempt]

    async def message(self) -> str | None:
        """Return what the job waits for."""
        assert self.job is not None, "a job that is gone waits for nothing"
        if self._message is None:
            self._message = asyncio.create_task(waiting_for(self._repository, self.job, self._clock.now()))
            self._message.add_done_callback(_noted)
        return await asyncio.shield(self._message)  # one reader who leaves does not end it for the others


class SharedLooks:
    """The looks and tails of one process."""

    def __init__(self, repository: JobRepository, logs: LogStore, clock: Clock) -> None:
        self._repository = repository
        self._logs = logs
        self._clock = clock
        self._coming: dict[LookKey, asyncio.Task[Look]] = {}
        self._tails: dict[str, Tail] = {}

    async def look(self, job_id: str, user_id: str | None) -> Look:
        """Return a look that began after this call did."""
        key = (job_id, user_id)
        if (coming := self._coming.get(key)) is None:
            coming = self._coming[key] = asyncio.create_task(self._look(key))
            coming.add_done_callback(_noted)  # all who wanted it may have left
        return await asyncio.shield(coming)

    async def _look(self, key: LookKey) -> Look:
        # A task begins a turn of the loop after it was made: whoever was woken in that turn shares it. Who comes
        # later must not get what may be older than the call, and begins another one.
        del self._coming[key]
        return Look(await self._repository.get_job(*key), self._repository, self._logs, self._clock)

    @contextlib.contextmanager
    def tail(self, job_id: str) -> Generator[Tail]:
        """The tail of that job's log is kept while anybody is in such a block."""
        tail = self._tails.setdefault(job_id, Tail())
        tail.followers += 1
        try:
            yield tail
        finally:
            tail.followers -= 1
            if not tail.followers:
                del self._tails[job_id]


def _noted(done: asyncio.Task[Any]) -> None:
    """An error has been looked at, so that asyncio does not warn about it."""
    if not done.cancelled():
        done.exception()
