"""Operations in flight: one task per key, so that nothing waits for one slow container and one failing job
backs off alone."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog

from ci_common.clock import Clock
from ci_common.errors import CIError
from ci_controller.container_runtime import ContainerError, ContainerGone
from ci_controller.lease import Superseded
from ci_controller.operations import AttemptOperation, RemoveContainer, WorkKey, fields_of, work_key

log = structlog.get_logger(__name__)

_FIRST_DELAY: Final = 0.25
_LONGEST_DELAY: Final = 30.0
_FORGET_AFTER: Final = 120.0

KeyedOperation = AttemptOperation | RemoveContainer


@dataclass(frozen=True, slots=True)
class _Last:
    """What was last done under a key, and when it may be tried again."""

    text: str
    repeats: int
    number: int  # of all that ended, in their order
    ended: float
    retry_at: float
    succeeded: bool


class Workshop:
    """Runs operations and remembers which keys to leave alone."""

    def __init__(self, clock: Clock, changed: Callable[[], None], doubt: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed  # called when an operation ended: the state of things changed
        self._doubt = doubt  # called when somebody else seems to act in our place
        self._tasks: dict[WorkKey, asyncio.Task[None]] = {}
        self._last: dict[WorkKey, _Last] = {}
        self._ended = 0

    def begin(self, operation: KeyedOperation, work: Coroutine[Any, Any, None]) -> None:
        """The operation runs in a task of its own."""
        key = work_key(operation)
        assert key not in self._tasks, f"{key} is busy"
        self._tasks[key] = asyncio.create_task(self._run(key, operation, work), name=str(operation))

    @property
    def ended(self) -> int:
        """How many operations have ended so far."""
        return self._ended

    def busy(self, since: int) -> frozenset[WorkKey]:
        """Return the keys whose operation runs, ended when that many others had, or failed so recently that it has to
        wait."""
        now = self._clock.monotonic()
        self._last = {key: last for key, last in self._last.items() if now - last.ended < _FORGET_AFTER}
        left_alone = {key for key, last in self._last.items() if now < last.retry_at or last.number > since}
        return frozenset(left_alone | self._tasks.keys())

    def refused(self) -> frozenset[str]:
        """Return the containers that no open attempt needs and that could not be removed when last tried."""
        return frozenset(
            key for key, last in self._last.items() if isinstance(key, str) and not last.succeeded
        )

    @property
    def next_retry(self) -> float | None:
        """Seconds until the first back-off is over, None when there is none."""
        now = self._clock.monotonic()
        waits = [last.retry_at - now for last in self._last.values() if last.retry_at > now]
        return min(waits, default=None)

    async def idle(self, seconds: float | None = None) -> bool:
        """Return True once nothing is in flight, False if that takes longer."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()), timeout=seconds)
        return not self._tasks

    async def close(self, grace: float) -> None:
        """What was in flight has ended within the grace, or was broken off."""
        await self.idle(grace)
        left = tuple(self._tasks.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _run(self, key: WorkKey, operation: KeyedOperation, work: Coroutine[Any, Any, None]) -> None:
        succeeded = False
        try:
            succeeded = await _attempt(operation, work, self._doubt)
        finally:
            del self._tasks[key]
            self._note(key, str(operation), succeeded)
            self._changed()

    def _note(self, key: WorkKey, text: str, succeeded: bool) -> None:
        """An operation that is planned again right after it ended well changed nothing: it too must wait."""
        self._ended += 1
        now = self._clock.monotonic()
        before = self._last.get(key)
        repeats = before.repeats + 1 if before and before.text == text else 0
        wait = 0 if succeeded and not repeats else min(_FIRST_DELAY * 2 ** min(repeats, 16), _LONGEST_DELAY)
        self._last[key] = _Last(text, repeats, self._ended, now, now + wait, succeeded)


async def _attempt(
    operation: KeyedOperation, work: Coroutine[Any, Any, None], doubt: Callable[[], None]
) -> bool:
    """Do the work and tell whether it succeeded; whatever it raises ends here, in the log."""
    fields = fields_of(operation)
    try:
        await work
    except Superseded as error:
        log.warning("operation refused", operation=str(operation), **fields, error=str(error))
        doubt()
        return False
    except (CIError, ContainerError, ContainerGone, OSError) as error:
        log.warning(
            "operation failed", operation=str(operation), **fields, error=f"{type(error).__name__}: {error}"
        )
        return False
    except Exception:
        log.exception("operation failed: a programming error", operation=str(operation), **fields)
        return False
    log.debug("operation done", operation=str(operation), **fields)
    return True
