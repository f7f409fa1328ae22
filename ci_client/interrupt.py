"""Ctrl-C while a job is followed: the first one leaves it running, a second one soon after cancels it."""

import signal
import sys
import threading
import time
from collections.abc import Callable
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

    def __init__(self, work: Callable[[], int]) -> None:
        self._work = work
        self._done = threading.Event()
        self._result = 0
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True, name="follow").start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
            self._error = error
        finally:
            self._done.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Tell whether the work ended within that time."""
        if seconds is None and sys.platform == "win32":  # there, a wait without end cannot be interrupted
            while not self._done.wait(0.2):
                pass
            return True
        return self._done.wait(seconds)

    def result(self) -> int:
        if self._error:
            raise self._error
        return self._result


def run_interruptible(work: Callable[[], int], job: FollowedJob, *, grace: float = GRACE_SECONDS) -> int:
    """Return the exit code of the work, or the one of how it was interrupted."""
    task = _Task(work)
    try:
        task.wait()
        return task.result()
    except KeyboardInterrupt:
        return _leave(task, job, grace)


def _let_it_bounce() -> None:
    """One press of Ctrl-C is over: its signal may come twice, from the terminal and from who passes it on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(_BOUNCE_SECONDS)
    signal.signal(signal.SIGINT, before)


def _leave(task: _Task, job: FollowedJob, grace: float) -> int:
    _let_it_bounce()
    try:
        if job.job_id is None:
            job.say("Interrupted before the server confirmed the job; `ci list` shows whether it has it.")
            return ClientExit.INTERRUPTED
        job.say(_leaving(job.job_id, grace))
        return task.result() if task.wait(grace) else ClientExit.INTERRUPTED
    except KeyboardInterrupt:
        return _cancel(task, job)


def _cancel(task: _Task, job: FollowedJob) -> int:
    """The job is over and its verdict shown; one that had ended by itself keeps its own exit code."""
    _let_it_bounce()
    try:
        _ask_for_the_end(job)
        task.wait()
        return task.result()
    except KeyboardInterrupt:
        job.say("Left; the job ends without us.")
        return ClientExit.INTERRUPTED


def _ask_for_the_end(job: FollowedJob) -> None:
    job.say("Cancelling; waiting for the job's end.")
    try:
        job.cancel()
    except JobFinished:
        job.say("The job had ended before it could be cancelled.")


def _leaving(job_id: str, grace: float) -> str:
    return (
        f"Leaving in {grace:g} s, the job goes on (ci wait {job_id}); "
        f"Ctrl-C again cancels it (later: ci cancel {job_id})."
    )
