"""The two streams of a command: data to stdout, everything else to stderr. No knowledge of jobs.

Remarks often quote a server or a file name, so all of them are made harmless here; data is its writer's business.
Data is written unbuffered through a file of its own, so that a line is seen when it was sent and a worker
thread that is left behind at exit holds no lock of the interpreter.
"""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from io import RawIOBase
from typing import Literal, TextIO, cast

from ci_common.terminal import one_line

Colour = Literal["red", "green", "yellow", "dim"]
_SGR: Mapping[Colour, str] = {"red": "31", "green": "32", "yellow": "33", "dim": "2"}
_CLEAR_LINE = "\r\x1b[K"
_RESET = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Terminal:
    """What the two streams are connected to."""

    stdout: bool
    stderr: bool
    out_colour: bool  # whether colours in data may pass to a terminal
    err_colour: bool

    @classmethod
    def detect(cls, environ: Mapping[str, str] = os.environ) -> "Terminal":
        """Return what the process finds: NO_COLOR beats FORCE_COLOR beats "is it a terminal"."""
        out, err = sys.stdout.isatty(), sys.stderr.isatty()
        if environ.get("NO_COLOR"):
            return cls(out, err, out_colour=False, err_colour=False)
        forced = bool(environ.get("FORCE_COLOR"))
        smart = environ.get("TERM") != "dumb"
        return cls(out, err, out_colour=smart or forced, err_colour=(err and smart) or forced)


class ReaderGone(Exception):
    """Nobody reads our stdout any more. Not an OSError: click would end the process by itself."""


class Console:
    """Where a command writes; one transient line at most, which the next line takes the place of."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        _enable_escape_sequences()
        self.terminal = terminal or Terminal.detect()
        self._stderr: TextIO = sys.stderr
        self._out = cast(RawIOBase, open(sys.stdout.fileno(), "wb", buffering=0, closefd=False))  # noqa: SIM115
        self._transient = False
        self._mid_line = False
        self._coloured = False  # data may have left colours on, or text hidden

    def data(self, data: bytes) -> None:
        """The bytes are with the reader of stdout; raises ReaderGone when there is none any more."""
        if not data:
            return
        self._clear()
        view = memoryview(data)
        while view:
            view = view[self._write(view) :]
        self._mid_line = not data.endswith(b"\n")
        self._coloured |= b"\x1b" in data

    def line(self, text: str) -> None:
        """One line of data."""
        self.data(f"{text}\n".encode("utf-8", "backslashreplace"))

    def note(self, text: str, colour: Colour | None = None) -> None:
        """One line for people, on stderr, whatever is in the text."""
        self._clear()
        if self._mid_line and self.terminal.stdout and self.terminal.stderr:
            self._err("\n")  # both are one screen: do not write behind half a line of output
            self._mid_line = False
        self._uncolour()
        self._err(self._painted(one_line(text), colour) + "\n")

    def warn(self, text: str) -> None:
        """One line about something that may surprise later."""
        self.note(f"warning: {text}", "yellow")

    def transient(self, text: str) -> None:
        """A line that the next one replaces; only where stderr is a terminal, and not over half a line of data."""
        if not self.terminal.stderr or (self._mid_line and self.terminal.stdout):
            return
        import shutil  # slow to import, and only needed on terminals

        self._uncolour()
        width = shutil.get_terminal_size().columns - 1
        self._err(_CLEAR_LINE + one_line(text)[:width])
        self._transient = True

    def _clear(self) -> None:
        if self._transient:
            self._err(_CLEAR_LINE)
            self._transient = False

    def _uncolour(self) -> None:
        """A remark is not written in the colours of the job, which may be black on black."""
        if self._coloured and self.terminal.stdout and self.terminal.stderr:
            self._err(_RESET)
            self._coloured = False

    def _painted(self, text: str, colour: Colour | None) -> str:
        return f"\x1b[{_SGR[colour]}m{text}{_RESET}" if colour and self.terminal.err_colour else text

    def _err(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads the remarks: the data and the exit code still count
            self._stderr.write(text)
            self._stderr.flush()

    def _write(self, view: memoryview) -> int:
        try:
            written = cast(int | None, self._out.write(view))
        except OSError as error:
            if error.errno == errno.EPIPE or (sys.platform == "win32" and error.errno == errno.EINVAL):
                raise ReaderGone from error
            raise
        if written is None:  # a full pipe that somebody made non-blocking
            time.sleep(0.01)
        return written or 0


def _enable_escape_sequences() -> None:
    """A Windows console interprets colours; elsewhere they always are."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        for handle in (kernel.GetStdHandle(-11), kernel.GetStdHandle(-12)):
            mode = ctypes.c_ulong()
            if kernel.GetConsoleMode(handle, ctypes.byref(mode)):
                kernel.SetConsoleMode(handle, mode.value | 0x0004)
