"""Running programs one after the other, under the run's limits."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from ci_controller.harness.ending import Ended, amount, duration
from ci_controller.harness.memory import Memory
from ci_controller.harness.output import Log
from ci_controller.harness.program import Program, read
from ci_controller.harness.reports import Reports
from ci_controller.harness.signals import IS_INIT, Signals
from ci_controller.harness.stacks import DUMP_SIGNAL, who_dumps

SWEEP_SECONDS = 5  # for killed processes to be gone
DUMP_SECONDS = 2  # for all processes to dump their stacks
QUIET_SECONDS = 0.1  # without output: a dump is over


class Runner:
    """Runs one program after the other; ends them at the deadline, the limits, or when told to from outside."""

    def __init__(self, header: dict[str, Any], log: Log, signals: Signals, started: float) -> None:
        self.memory = Memory()
        self.reports = Reports()
        self._header = header
        self._log = log
        self._signals = signals
        self._deadline = started + header["timeout"]
        self._child = 0
        self._status: int | None = None  # of the child, once it was reaped
        self._ending: Ended | None = None  # decided, being carried out
        self._ways_out: Iterator[float] = iter(())
        self._next_step = 0.0
        self._stop_asked = False

    def run(
        self, command: list[str], environment: dict[str, str], doing: str, *, reports: bool = False
    ) -> int:
        """The program and everything it left running has ended, all of its output is out; returns its exit code,
        negative for a signal. Raises Ended when it was we who ended it, or when we were told to stop before.

        `doing` goes into the evidence ("while installing x"), until the program reports something itself.
        """
        self.obey_stop()
        program = Program()
        task = program.task(self.reports.token) if reports else {}
        passed = [program.reporter] if reports else []
        program.start(command, {**environment, **task}, self._header["workspace"], passed)
        return self.follow(program, doing)

    def follow(self, program: Program, doing: str) -> int:
        """The same for a program that was started before."""
        self.reports.doing = doing
        self._status = None
        self._child = program.pid
        self._log.last_output = time.monotonic()
        self._reap()  # it may have ended before anybody looked
        readers: dict[int, Callable[[bytes], None]] = {
            program.output: self._take_output,
            program.reports: self.reports.feed,
        }
        self._watch(readers)
        self._sweep()
        self._drain(readers)
        program.close()
        self._log.flush()
        if self._ending is not None:
            raise self._ending
        assert self._status is not None, "the program has ended"
        return self._status

    def discard(self, program: Program) -> None:
        """The program and everything it left running has been killed, its output is nobody's."""
        self._child = program.pid
        self._sweep()
        program.close()

    @contextlib.contextmanager
    def paused(self) -> Generator[None, None, None]:
        """The time that passes meanwhile is not the job's."""
        began = time.monotonic()
        yield
        self._deadline += time.monotonic() - began

    def wait_until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """It holds, or that much time passed; returns whether it does. The time is not the job's."""
        give_up = time.monotonic() + seconds
        with self.paused():
            while not (held := holds()) and time.monotonic() < give_up:
                select.select([self._signals.descriptor], [], [], 0.05)
                self.obey_stop()
        return held

    def obey_stop(self) -> None:
        """Nobody told us to stop; raises Ended.

        A stop that came when the last program had ended left it its result; here it takes effect.
        """
        self._read_signals()
        if self._stop_asked:
            self._log.say("Stopping on request")
            raise Ended("stopped", "Stopped on request.")

    def _watch(self, readers: dict[int, Callable[[bytes], None]]) -> None:
        """The child has ended, by itself or by us."""
        open_ones = list(readers)
        while self._status is None:
            ready, _, _ = select.select([*open_ones, self._signals.descriptor], [], [], self._patience())
            for descriptor in ready:
                if descriptor == self._signals.descriptor:
                    self._take_signals()
                elif data := read(descriptor):
                    readers[descriptor](data)
                elif data is not None:
                    open_ones.remove(descriptor)
            if time.monotonic() >= self._log.due:
                self._log.flush()
            self._check_clock()
        self._log.flush()

    def _patience(self) -> float:
        return max(0.0, min(self._next_moment(), self._log.due) - time.monotonic())

    def _next_moment(self) -> float:
        if self._ending is not None:
            return self._next_step
        return min(self._deadline, self._log.last_output + self._header["idle_timeout"])

    def _take_signals(self) -> None:
        self._read_signals()
        self._reap()  # first: a child that had ended by then keeps its own result
        if self._stop_asked and self._status is None:
            self._end("stopped", "Stopped on request", "Stopping on request")

    def _read_signals(self) -> None:
        if Signals.STOP in self._signals.read():
            self._stop_asked = True

    def _take_output(self, data: bytes) -> None:
        if not self._log.output(data):
            limit = amount(self._header["log_limit"])
            line = f"The log limit of {limit} is reached, killing everything"
            self._end("log_limit", f"The output exceeded {limit}", line)

    def _check_clock(self) -> None:
        now = time.monotonic()
        if self._status is not None or now < self._next_moment():
            return
        if self._ending is not None:
            self._next_step = now + next(self._ways_out)
        elif now >= self._deadline:
            sentence = f"The time-out of {duration(self._header['timeout'])} passed"
            self._end("timeout", sentence, sentence + ", interrupting")
        else:
            sentence = f"There was no output for {duration(self._header['idle_timeout'])}"
            self._end("idle_timeout", sentence, sentence + ", interrupting")

    def _end(self, outcome: str, message: str, line: str) -> None:
        """The child is being ended, politely first, so that pytest prints its summary; the first reason stays."""
        if self._ending is not None:
            return
        self._log.limit = 0 if outcome == "log_limit" else self._log.limit
        self._log.say(line)
        self._ending = Ended(outcome, f"{message} {self.reports.doing}.")
        self._ways_out = self._end_by(outcome)
        self._next_step = time.monotonic() + next(self._ways_out)

    def _end_by(self, outcome: str) -> Iterator[float]:
        """Do one thing after the other that may end the child; yields how long to wait for each."""
        if outcome in ("timeout", "idle_timeout"):
            yield from self._dump_stacks()
        if outcome != "log_limit":
            yield self._signal(signal.SIGINT, self._header["interrupt_grace"])
            yield self._signal(signal.SIGTERM, self._header["terminate_grace"])
        while True:
            yield self._signal(signal.SIGKILL, 1.0)

    def _signal(self, number: int, grace: float) -> float:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child, number)
        return grace

    def _dump_stacks(self) -> Iterator[float]:
        """What every thread of pytest and of its workers does stands in the log, one process after the other."""
        give_up = time.monotonic() + DUMP_SECONDS
        for pid in who_dumps(self._child):
            whose = "pytest" if pid == self._child else f"its process {pid}"
            self._log.say(f"The stacks of all threads of {whose}:")
            asked = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, DUMP_SIGNAL)
            while time.monotonic() < give_up and not self._log.is_quiet_since(asked, QUIET_SECONDS):
                yield QUIET_SECONDS / 4

    def _reap(self) -> bool:
        """Every child that has ended is collected; returns False when there are no more at all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == self._child:
                self._status = _exit_code(status)
            if pid == 0:
                return True

    def _sweep(self) -> None:
        """Nothing that the child left behind runs any more."""
        give_up = time.monotonic() + SWEEP_SECONDS
        self._kill_all()
        while IS_INIT and self._reap() and time.monotonic() < give_up:
            self._kill_all()
            select.select([self._signals.descriptor], [], [], 0.05)
            self._read_signals()

    def _kill_all(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if IS_INIT:
                os.kill(-1, signal.SIGKILL)  # everybody in this container but us
            else:
                os.killpg(self._child, signal.SIGKILL)

    def _drain(self, readers: dict[int, Callable[[bytes], None]]) -> None:
        for descriptor, take in readers.items():
            while data := read(descriptor):
                take(data)


def _exit_code(status: int) -> int:
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
