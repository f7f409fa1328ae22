"""Signals that come from outside of the container, and the ends of children."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import NoReturn

CHUNK = 64 * 1024
IS_INIT = os.getpid() == 1
SI_USER = 0  # siginfo of kill(2): the one code that a process may not claim for a signal it queues to another


class Signals:
    """Signals as bytes in a pipe, so that one `select` waits for everything.

    They stay blocked and a thread takes them, because only that tells who sent them: as the first process of a
    container we obey nobody inside of it. From outside, the sender has no number here.
    """

    STOP = b"s"
    CHILD = b"c"
    _ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)

    def __init__(self) -> None:
        self.descriptor, self._sender = os.pipe()
        os.set_blocking(self.descriptor, False)
        signal.pthread_sigmask(signal.SIG_BLOCK, self._ALL)
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> NoReturn:
        while True:
            taken = signal.sigwaitinfo(self._ALL)
            if taken.si_signo == signal.SIGCHLD:
                os.write(self._sender, self.CHILD)
            elif not IS_INIT or (taken.si_pid == 0 and taken.si_code == SI_USER):
                os.write(self._sender, self.STOP)

    def read(self) -> bytes:
        """Return what came since the last call."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self.descriptor, CHUNK)
        return b""

    @staticmethod
    def unblock() -> None:
        """The calling process (a child about to become another program) gets its signals as usual."""
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
