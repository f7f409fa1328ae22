"""What ends a stream before its job: its reader left, or this process is to stop."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StreamEnd:
    """Whether one stream is to end early; whoever waits on its behalf is woken when that comes true."""

    def __init__(self) -> None:
        self.has_come = False
        self._wake: Callable[[], None] | None = None

    def come(self) -> None:
        """The stream is to end now."""
        self.has_come = True
        if self._wake is not None:
            self._wake()

    @contextlib.contextmanager
    def wakes(self, wake: Callable[[], None]) -> Generator[None]:
        """While in the block, that is called when the end comes."""
        self._wake = wake
        try:
            yield
        finally:
            self._wake = None


class Shutdown:
    """The end of this process, which is the end of every stream that is open."""

    def __init__(self) -> None:
        self.has_begun = False
        self._ends: set[StreamEnd] = set()

    @contextlib.contextmanager
    def ends(self, stream: StreamEnd) -> Generator[None]:
        """While in the block, the stream is one of those that end."""
        self._ends.add(stream)
        if self.has_begun:
            stream.come()
        try:
            yield
        finally:
            self._ends.discard(stream)

    def begin(self) -> None:
        """Every open stream is to end, and every later one."""
        self.has_begun = True
        for stream in tuple(self._ends):
            stream.come()

    @contextlib.contextmanager
    def begun_by_signals(self) -> Generator[None]:
        """While in the block, a signal that stops the process begins this, too; in threads there are none.

        Why not the lifespan's end: uvicorn waits for open responses first, and streams would never be over.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in _SIGNALS}

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.begin)
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)
            elif handler is signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        for number in _SIGNALS:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) is handle:
                    signal.signal(number, handler)
