"""Calls of one kind that come while one of them is being written are written together, each with its own answer.

So several share a commit, and statements that are about many rows. Nobody waits for company but those who come while
the disk is busy, and nobody for what only one of them must wait for.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from ci_common.errors import OutcomeUnknown
from ci_persistence.settled import answered

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")

_MOST: Final = 64  # in one transaction: the first of them waits for the last
# Written alone at a time: a few of a database's connections, as each may wait for somebody's lock.
_APART: Final = 4


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Ask]):
    ask: Ask
    answer: asyncio.Future[Any]


class Gathered(Generic[Ask, Answer]):
    """Two ways of writing, each a whole transaction: of one call, and of one or several.

    The second never waits for what is about one of them: its answer None sends that one to be written alone, beside
    those who come next. So does an error that may be another's: a transaction that failed changed nothing. An unknown
    outcome is unknown for all of them.
    """

    def __init__(
        self,
        alone: Callable[[Ask], Awaitable[Answer]],
        together: Callable[[Sequence[Ask]], Awaitable[Sequence[Answer | None]]],
    ) -> None:
        self._alone = alone
        self._together = together
        self._waiting: deque[_Waiting[Ask]] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._apart: dict[asyncio.Task[None], _Waiting[Ask]] = {}
        self._room = asyncio.Semaphore(_APART)

    async def answer(self, ask: Ask) -> Answer:
        """Return what became of it; cancelled before its turn, it never ran."""
        mine = _Waiting(ask, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        if self._serving is None:
            # The task begins behind who asks in the same turn of the loop, and takes them along.
            self._serving = asyncio.create_task(self._serve())
            self._serving.add_done_callback(self._served)
        answer: Answer = await answered(mine.answer, lambda: self._withdrawn(mine))
        return answer

    def _withdrawn(self, mine: _Waiting[Ask]) -> bool:
        waits = mine in self._waiting
        if waits:
            self._waiting.remove(mine)
        return waits

    async def _serve(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(_MOST, len(self._waiting)))]
            try:
                answers = await self._shared([one.ask for one in taken])
            except BaseException:  # the loop ends
                for one in taken:
                    one.answer.cancel()
                raise
            for one, answer in zip(taken, answers, strict=True):
                self._tell(one, answer)
        self._serving = None

    def _served(self, serving: asyncio.Task[None]) -> None:
        if self._serving is serving:  # it did not come to its end: the loop ends
            self._serving = None
            while self._waiting:
                self._waiting.popleft().answer.cancel()

    async def _shared(self, asks: Sequence[Ask]) -> Sequence[Answer | Exception | None]:
        try:
            return await self._together(asks)
        except Exception as error:  # noqa: BLE001 - told to whom it befell: tried alone, each learns whether it did
            is_everybodys = isinstance(error, OutcomeUnknown) or len(asks) == 1
            return [error if is_everybodys else None] * len(asks)

    def _tell(self, one: _Waiting[Ask], answer: Answer | Exception | None) -> None:
        if isinstance(answer, Exception):
            one.answer.set_exception(answer)
        elif answer is not None:
            one.answer.set_result(answer)
        else:
            task = asyncio.create_task(self._tell_apart(one))
            self._apart[task] = one
            task.add_done_callback(self._told_apart)

    async def _tell_apart(self, one: _Waiting[Ask]) -> None:
        try:
            async with self._room:
                answer = await self._alone(one.ask)
        except Exception as error:  # noqa: BLE001 - told to whom it befell
            one.answer.set_exception(error)
        else:
            one.answer.set_result(answer)

    def _told_apart(self, task: asyncio.Task[None]) -> None:
        self._apart.pop(task).answer.cancel()  # nothing where it was told something: else the loop ends
