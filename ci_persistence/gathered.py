"""Calls of one kind that come while one of them is being written are written together, each with its own answer.

So several share a commit, and statements that are about many rows. Nobody waits for company but those who come while
the disk is busy.
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


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Ask]):
    ask: Ask
    answer: asyncio.Future[Any]


class Gathered(Generic[Ask, Answer]):
    """Two ways of writing, of which the second takes several; each is a whole transaction.

    Its answer None, or an error, sends a call to be tried alone: a transaction that failed changed nothing. An unknown
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
        self._busy = False  # one is being written, alone or by the task that serves
        self._serving: asyncio.Task[None] | None = None

    async def answer(self, ask: Ask) -> Answer:
        """Return what became of it; cancelled before its turn, it never ran."""
        if self._busy:
            return await self._in_company(ask)
        self._busy = True
        try:
            await asyncio.sleep(0)  # who asks in the same turn of the loop comes along
            if not self._waiting:
                return await self._alone(ask)
        finally:
            self._go_on()
        return await self._in_company(ask, first=True)

    def _go_on(self) -> None:
        """Whoever waits by now is being served."""
        self._busy = bool(self._waiting)
        if self._busy:
            self._serving = asyncio.create_task(self._serve())
            self._serving.add_done_callback(self._served)

    async def _in_company(self, ask: Ask, *, first: bool = False) -> Answer:
        mine = _Waiting(ask, asyncio.get_running_loop().create_future())
        if first:
            self._waiting.appendleft(mine)
        else:
            self._waiting.append(mine)
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
                await self._tell(taken)
            finally:
                for one in taken:
                    one.answer.cancel()  # nothing where it was told something: else the loop ends
        self._serving, self._busy = None, False

    def _served(self, serving: asyncio.Task[None]) -> None:
        if self._serving is serving:  # it did not come to its end: the loop ends
            self._serving, self._busy = None, False
            while self._waiting:
                self._waiting.popleft().answer.cancel()

    async def _tell(self, taken: Sequence[_Waiting[Ask]]) -> None:
        answers = await self._shared(taken) if len(taken) > 1 else [None]
        apart = [one for one, answer in zip(taken, answers, strict=True) if not _told(one, answer)]
        await asyncio.gather(*(self._tell_apart(one) for one in apart))

    async def _shared(self, taken: Sequence[_Waiting[Ask]]) -> Sequence[Answer | OutcomeUnknown | None]:
        try:
            return await self._together([one.ask for one in taken])
        except OutcomeUnknown as error:
            return [error] * len(taken)
        except Exception:  # noqa: BLE001 - whom it befalls is told of it when it is tried alone
            return [None] * len(taken)

    async def _tell_apart(self, one: _Waiting[Ask]) -> None:
        try:
            answer = await self._alone(one.ask)
        except Exception as error:  # noqa: BLE001 - told to whom it befell
            one.answer.set_exception(error)
        else:
            one.answer.set_result(answer)


def _told(one: _Waiting[Any], answer: object) -> bool:
    """Tell whether it has its answer now."""
    if isinstance(answer, OutcomeUnknown):
        one.answer.set_exception(answer)
    elif answer is not None:
        one.answer.set_result(answer)
    return answer is not None
