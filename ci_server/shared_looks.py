"""What all who follow one job look at, looked up once: its row, what it waits for, the end of its log.

A thousand viewers wake at the same moment. Each still decides for itself what it has yet to send; whoever is slower
than the few pieces that are kept here reads the file, so a slow reader costs nobody memory.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass

from ci_common.clock import Clock
from ci_common.events import LogEvent
from ci_common.models import Job
from ci_common.repository import JobRepository
from ci_common.stores import LogStore
from ci_server.shared_calls import SharedCalls, noted
from ci_server.waiting import waiting_for

_PIECES = 4  # of at most 64 KiB, for each job that is followed

LookKey = tuple[str, str | None]  # the job and the owner it must have


class Tail:
    """The pieces of one job's log that were read last, by where they begin. What was written never changes."""

    def __init__(self, logs: LogStore, job_id: str) -> None:
        self._logs = logs
        self._job_id = job_id
        self._pieces = OrderedDict[tuple[int, int], LogEvent]()
        self._ends: dict[int, int] = {}
        self.followers = 0

    def end(self, attempt: int) -> int:
        """Return how many bytes that attempt's log has, looked up once for all who ask in one turn of the loop.

        Whoever was woken by what was written is resumed in a turn that begins after it was written.
        """
        if not self._ends:
            asyncio.get_running_loop().call_soon(self._ends.clear)
        if attempt not in self._ends:
            self._ends[attempt] = self._logs.size(self._job_id, attempt)
        return self._ends[attempt]

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
    """One look at a job, for everybody who wanted one at that moment."""

    job: Job | None
    _repository: JobRepository
    _clock: Clock
    _message: asyncio.Task[str | None] | None = None

    async def message(self) -> str | None:
        """Return what the job waits for."""
        assert self.job is not None, "a job that is gone waits for nothing"
        if self._message is None:
            self._message = asyncio.create_task(waiting_for(self._repository, self.job, self._clock.now()))
            self._message.add_done_callback(noted)
        return await asyncio.shield(self._message)  # one reader who leaves does not end it for the others


class SharedLooks:
    """The looks and tails of one process."""

    def __init__(self, repository: JobRepository, logs: LogStore, clock: Clock) -> None:
        self._repository = repository
        self._logs = logs
        self._clock = clock
        self._looks = SharedCalls(self._look)
        self._tails: dict[str, Tail] = {}

    async def look(self, job_id: str, user_id: str | None) -> Look:
        """Return a look that began after this call did."""
        return await self._looks.answer((job_id, user_id))

    async def _look(self, key: LookKey) -> Look:
        return Look(await self._repository.get_job(*key), self._repository, self._clock)

    @contextlib.contextmanager
    def tail(self, job_id: str) -> Generator[Tail]:
        """The tail of that job's log is kept while anybody is in such a block."""
        tail = self._tails.setdefault(job_id, Tail(self._logs, job_id))
        tail.followers += 1
        try:
            yield tail
        finally:
            tail.followers -= 1
            if not tail.followers:
                del self._tails[job_id]
