"""Cancellation that waits: work that was begun is finished before its caller learns that it was cancelled."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def settled(work: Coroutine[Any, Any, T]) -> T:
    """The work is over, well or badly, when this returns or raises, also when the caller is cancelled meanwhile.

    Why wait instead of letting it run on in the background: whoever cleans up after a cancellation must not
    race with what it cleans up.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not warn about it
        raise asyncio.CancelledError
    return task.result()


async def answered(answer: asyncio.Future[T], withdrawn: Callable[[], bool]) -> T:
    """Return the answer of somebody who works for several; who is cancelled waits for it, too.

    Unless `withdrawn`, asked then, says that it was not begun, and now never will be.
    """
    cancelled = False
    while not answer.done():
        try:
            await asyncio.wait([answer])
        except asyncio.CancelledError:
            cancelled = True
            if withdrawn():
                raise
    if cancelled:
        if not answer.cancelled():
            answer.exception()  # looked at, so that asyncio does not warn about it
        raise asyncio.CancelledError
    return answer.result()
