"""Ctrl-C while a job is followed: the first one leaves it running, a second one soon after cancels it."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Protocol

from ci_client.exit_codes import ClientExit
from ci_common.errors import JobFinished

GRACE_SECONDS = 3.0
_BOUNCE_SECONDS = 0.3


class FollowedJob(Protocol):
    """What the following of a job offers to whoever interrupts it."""

    @property
    def job_id(self) -> str | None: ...

    def say(self, text: str) -> None: ...

    def cancel(self) -> None: ...


class _Task:
    """Work in a thread of its own, so that this thread is free for Ctrl-C; left behind when the process ends."""

    def __init__(self, work: Callable[[], int], mailbox: "_Mailbox") -> None:
        self._work = work
        self._mailbox = mailbox
        self._result = 0
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True, name="follow").start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
            self._error = error
        finally:
            self._mailbox.put(self)

    def result(self) -> int:
        if self._error:
            raise self._error
        return self._result


class _Press:
    """Somebody pressed Ctrl-C."""


# A queue of this kind may be put to by the handler of a signal. An exception from there would not do: the second one
# of two that come at once breaks whatever the first one is just leaving.
_Mailbox = SimpleQueue[_Task | _Press]


def run_interruptible(work: Callable[[], int], job: FollowedJob, *, grace: float = GRACE_SECONDS) -> int:
    """Return the exit code of the work, or the one of how it was interrupted."""
    mailbox = _Mailbox()
    with _presses(mailbox):
        task = _Task(work, mailbox)
        if _next_of(mailbox) is task:
            return task.result()
        return _leave(task, job, mailbox, grace)


@contextmanager
def _presses(mailbox: _Mailbox) -> Generator[None]:
    """Every press of Ctrl-C is news; its signal may come twice, from the terminal and from who passes it on."""
    last = -_BOUNCE_SECONDS

    def handle(*_: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _BOUNCE_SECONDS:
            last = now
            mailbox.put(_Press())

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _next_of(mailbox: _Mailbox, seconds: float | None = None) -> _Task | _Press | None:
    """Return the next task that ended or the next press, None when that time is over."""
    if seconds is None and sys.platform == "win32":  # there, a wait without end cannot be interrupted
        while (news := _next_of(mailbox, 0.2)) is None:
            pass
        return news
    try:
        return mailbox.get(timeout=seconds)
    except Empty:
        return None


def _leave(task: _Task, job: FollowedJob, mailbox: _Mailbox, grace: float) -> int:
    time.sleep(_BOUNCE_SECONDS)  # so that the next press counts once it was said what it would do
    if job.job_id is None:
        job.say("Interrupted before the server confirmed the job; `ci list` shows whether it has it.")
        return ClientExit.INTERRUPTED
    job.say(_leaving(job.job_id, grace))
    news = _next_of(mailbox, grace)
    if isinstance(news, _Press):
        return _cancel(task, job, mailbox)
    return task.result() if news is task else ClientExit.INTERRUPTED


def _cancel(task: _Task, job: FollowedJob, mailbox: _Mailbox) -> int:
    """The job is over and its verdict shown; one that had ended by itself keeps its own exit code."""
    asking = _Task(lambda: _ask_for_the_end(job), mailbox)
    while not isinstance(news := _next_of(mailbox), _Press):
        if news is task:
            return task.result()
        asking.result()
    job.say("Left; the job ends without us.")
    return ClientExit.INTERRUPTED


def _ask_for_the_end(job: FollowedJob) -> int:
    job.say("Cancelling; waiting for the job's end.")
    try:
        job.cancel()
    except JobFinished:
        job.say("The job had ended before it could be cancelled.")
    return ClientExit.OK


def _leaving(job_id: str, grace: float) -> str:
    return (
        f"Leaving in {grace:g} s, the job goes on (ci wait {job_id}); "
        f"Ctrl-C again cancels it (later: ci cancel {job_id})."
    )
