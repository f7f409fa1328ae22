"""LogPump: a thread per running attempt that keeps the attempt's log up with its container's output.

It decides nothing about the job: it says what it saw, and `drained` tells whether that was everything.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import structlog

from ci_common.crash_points import crash_point
from ci_common.errors import CIError
from ci_common.stores import LogWriter
from ci_controller.container_runtime import ContainerError, ContainerGone, ContainerRuntime, ExitState
from ci_controller.log_recorder import LogRecorder, PumpResult

__all__ = ["LogPump", "PumpEvent", "PumpEventKind", "PumpResult", "drained", "read_result"]

# What may end a reading: the engine, the container, the disk. Anything else is an error of ours.
_EXPECTED: Final = (CIError, ContainerGone, ContainerError, OSError)

log = structlog.get_logger(__name__)


class PumpEventKind(StrEnum):
    """What a pump has to tell while it runs."""

    BEGUN = "begun"  # the user's own code is about to run
    PREPARED = "prepared"  # an environment stands in the container, which waits until it was kept
    INSTALLED = "installed"  # everything is installed, and the harness waits until it has no network
    LAST_WORD = "last_word"  # the harness said it, and the log has all that was said before
    OVER_LIMIT = "over_limit"  # the log limit was passed although the harness should have seen to it
    ENDED = "ended"  # the output ended, or could not be read or written any more; has the result


@dataclass(frozen=True, slots=True)
class PumpEvent:
    """One thing a pump saw."""

    kind: PumpEventKind
    result: PumpResult


class LogPump:
    """Writes a container's output to its log from a thread of its own, from `start` until it ends or `close`.

    `result` is set once the output ended; then `error` says what kept it from being read or written, if
    anything did. `on_event` is called in the thread. The writer stays open: it belongs to the caller.
    """

    def __init__(
        self,
        runtime: ContainerRuntime,
        writer: LogWriter,
        container_id: str,
        *,
        log_limit: int,
        on_event: Callable[[PumpEvent], None],
        fields: Mapping[str, str | int] | None = None,
    ) -> None:
        self.result: PumpResult | None = None
        self.error: Exception | None = None
        self.chunks = 0  # that were read and written: rises as long as there is progress
        self._runtime = runtime
        self._container_id = container_id
        self._on_event = on_event
        self._fields = {"container": container_id, **(fields or {})}  # of our log lines: whose output it is
        self._told: set[PumpEventKind] = set()
        self._recorder = LogRecorder(writer, log_limit)
        self._closed = threading.Event()
        self._stack = ExitStack()  # holds the open stream
        self._leaving = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"pump-{container_id[:12]}", daemon=True)

    def start(self) -> None:
        """The thread runs."""
        self._thread.start()

    def close(self) -> None:
        """The thread has ended; the log is left as it is, and no event comes any more."""
        self._closed.set()
        self._leave()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:
            self.error = error
            if isinstance(error, _EXPECTED):
                log.warning("log pump stopped", **self._fields, error=str(error))
            else:
                log.exception("log pump failed", **self._fields)
        finally:
            self._leave()
            if not self._closed.is_set():
                self.result = self._recorder.result
                self._tell(PumpEventKind.ENDED)

    def _read(self) -> None:
        output = self._stack.enter_context(self._runtime.follow_output(self._container_id))
        if self._closed.is_set():  # while the stream was opened, so `close` could not leave it
            return
        for chunk in output:
            self._recorder.feed(chunk)
            self.chunks += 1
            crash_point("during_pump")
            self._tell_news()
        if self._recorder.trailer is not None:
            self._recorder.finish()
        # Without a trailer the stream may just have been cut: a rest without its end is not text yet.

    def _tell_news(self) -> None:
        if self._recorder.begun:
            self._tell(PumpEventKind.BEGUN)
        if self._recorder.prepared:
            self._tell(PumpEventKind.PREPARED)
        if self._recorder.installed:
            self._tell(PumpEventKind.INSTALLED)
        if self._recorder.over_limit:
            self._tell(PumpEventKind.OVER_LIMIT)
        if self._recorder.is_whole:
            self._tell(PumpEventKind.LAST_WORD)

    def _tell(self, kind: PumpEventKind) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._on_event(PumpEvent(kind, self._recorder.result))

    def _leave(self) -> None:
        """The stream is left, which ends the thread's reading; safe from any thread, any number of times."""
        with self._leaving:
            self._stack.close()


def read_result(
    runtime: ContainerRuntime, writer: LogWriter, container_id: str, log_limit: int
) -> PumpResult:
    """The log holds what the engine has of a container that has exited; returns what one full reading found."""
    recorder = LogRecorder(writer, log_limit)
    with runtime.read_output(container_id) as output:
        for chunk in output:
            recorder.feed(chunk)
            crash_point("during_pump")
    recorder.finish()
    return recorder.result


def drained(result: PumpResult | None, exit_state: ExitState | None, previous: PumpResult | None) -> bool:
    """Tell whether the log holds all there will ever be: the container has exited, and its trailer was read or
    two readings found the same. The end of a stream alone proves nothing, and nor do equal readings of a log that
    lags: what is settled so is sealed as truncated (`may_lack_output`)."""
    if result is None or exit_state is None:
        return False
    return result.trailer is not None or result == previous
