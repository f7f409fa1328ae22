"""What the reporter inside pytest says."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

_MOST_ERRORS = 10**6  # a number of any length would make the trailer too long for a frame
_LONGEST = 64 * 1024  # of a report; a line beyond it is not ours


class Reports:
    """Facts from within the job, so they may only ever make things worse.

    They carry a token, so that whoever just writes to every descriptor it inherited says nothing.
    """

    def __init__(self) -> None:
        self.token = os.urandom(16).hex()
        self.doing = ""  # "while test_a.py::test_x ran"
        self.finished: int | None = None
        self.collection_errors = 0
        self.summary = ""
        self._finishes = 0
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        """Take in what is complete; whatever is not ours is passed over."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self._buffer = self._buffer[-_LONGEST:]
        for line in lines:
            with contextlib.suppress(ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
                self._take(json.loads(line))

    def _take(self, fact: dict[str, Any]) -> None:
        if fact["token"] != self.token:
            return
        self.doing = str(fact["doing"])
        if "finished" not in fact:
            return
        self.collection_errors = min(max(0, int(fact["collection_errors"])), _MOST_ERRORS)
        self.summary = str(fact["summary"])
        self._finishes += 1
        self.finished = int(fact["finished"]) if self._finishes == 1 else None  # a session ends once
