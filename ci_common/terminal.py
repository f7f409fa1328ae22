"""What text from elsewhere may do to a terminal: show text, colours, tabs, line ends; every other control is dropped.

Output is written by whoever wrote the tests, so it may try to set titles, reach the clipboard, move the
cursor over other text or answer queries. The state machine works on decoded text and over any cut of its
input: feeding pieces gives the same as feeding the whole. Of carriage returns one in a row passes: progress
bars live by it, and it reaches no further than the line that the job itself has begun.
"""

import codecs
import re
from enum import Enum, auto

_PLAIN = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f]+")  # everything but C0 (save \t \n), DEL and C1
_COLOUR = re.compile(r"[0-9;:]*")
_MAX_COLOUR = 64  # characters of one SGR sequence; real ones have under 30
_MAX_STRING = 4096  # an unterminated OSC or DCS ends here, so that it cannot hide the rest of the log

# Letters and symbols to Unicode, but nothing to the eye: fillers, joiners, the blank of Braille.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")

_STRING_STARTERS = {"]": "\x9d", "P": "\x90", "X": "\x98", "^": "\x9e", "_": "\x9f"}  # ESC x and its C1 form
_ABORT = "\x18\x1a"  # CAN and SUB end any sequence


class _State(Enum):
    GROUND = auto()
    ESCAPE = auto()  # after ESC and any intermediates
    CSI = auto()
    STRING = auto()  # OSC, DCS, SOS, PM, APC
    STRING_ESCAPE = auto()  # after ESC inside a string: a backslash ends it


class TerminalSanitizer:
    """One stream of output on its way to a terminal."""

    def __init__(self, *, colours: bool = True) -> None:
        self._colours = colours
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._state = _State.GROUND
        self._held = ""  # parameters of the CSI sequence in progress
        self._swallowed = 0
        self._after_return = False

    def feed(self, data: bytes) -> bytes:
        """Return what of this piece (and of what was held back before) may be written."""
        return self._filter(self._decoder.decode(data))

    def finish(self) -> bytes:
        """Return what an incomplete character at the end stands for; an incomplete sequence is dropped."""
        return self._filter(self._decoder.decode(b"", final=True))

    def _filter(self, text: str) -> bytes:
        out: list[str] = []
        index = 0
        while index < len(text):
            if self._state is _State.GROUND and (plain := _PLAIN.match(text, index)):
                out.append(plain[0])
                self._after_return = False
                index = plain.end()
            else:
                index += self._step(text[index], out)
        return "".join(out).encode()

    def _step(self, char: str, out: list[str]) -> int:
        """Take one character; returns 0 when it ended a sequence and must be looked at again."""
        match self._state:
            case _State.GROUND:
                return self._ground(char, out)
            case _State.ESCAPE:
                return self._escape(char)
            case _State.CSI:
                return self._csi(char, out)
            case _State.STRING:
                return self._string(char)
            case _State.STRING_ESCAPE:
                self._state = _State.GROUND if char == "\\" else _State.ESCAPE
                return int(char == "\\")

    def _ground(self, char: str, out: list[str]) -> int:
        if char == "\x1b":
            self._state = _State.ESCAPE
        elif char == "\x9b":
            self._enter_csi()
        elif char in _STRING_STARTERS.values():
            self._enter_string()
        elif char == "\r" and not self._after_return:  # once: progress bars and CR LF need no more
            self._after_return = True
            out.append(char)
        return 1

    def _escape(self, char: str) -> int:
        if char == "[":
            self._enter_csi()
        elif char in _STRING_STARTERS:
            self._enter_string()
        elif not "\x20" <= char <= "\x2f":  # intermediates go on; anything else was the last character
            self._state = _State.GROUND
            return int("\x30" <= char <= "\x7e")
        return 1

    def _csi(self, char: str, out: list[str]) -> int:
        if "\x20" <= char <= "\x3f":
            self._held = (self._held + char)[: _MAX_COLOUR + 1]
            return 1
        self._state = _State.GROUND
        if char == "m" and self._colours and self._is_colour():
            out.append(f"\x1b[{self._held}m")
            self._after_return = False
        return int("\x40" <= char <= "\x7e" or char in _ABORT)

    def _is_colour(self) -> bool:
        return len(self._held) <= _MAX_COLOUR and _COLOUR.fullmatch(self._held) is not None

    def _string(self, char: str) -> int:
        self._swallowed += 1
        if char == "\x1b":
            self._state = _State.STRING_ESCAPE
        elif char in "\x07\x9c" + _ABORT:
            self._state = _State.GROUND
        elif char == "\n" or self._swallowed > _MAX_STRING:
            self._state = _State.GROUND
            return 0
        return 1

    def _enter_csi(self) -> None:
        self._state, self._held = _State.CSI, ""

    def _enter_string(self) -> None:
        self._state, self._swallowed = _State.STRING, 0


def one_line(text: str) -> str:
    """Return text from elsewhere fit for one line of ours: no control sequences, no colours, no other line.

    What reorders the rest or cannot be seen is shown as an escape such as `\\u202e`, so that no two names look alike.
    """
    sanitizer = TerminalSanitizer(colours=False)
    clean = sanitizer.feed(text.encode("utf-8", "replace")) + sanitizer.finish()
    return "".join(map(_visible, " ".join(clean.decode().split())))


def _visible(char: str) -> str:
    if char.isprintable() and char not in _BLANK:
        return char
    return char.encode("unicode_escape").decode()
