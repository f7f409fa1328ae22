"""What a harness prints, made in a test: numbered frames, and the trailer that matches them."""

import base64
import hashlib
import json
from collections.abc import Iterable
from typing import Any


class FramedOutput:
    """Collects the lines of one container's output."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self._number = 0
        self._output = b""

    def output(self, data: bytes) -> "FramedOutput":
        self._output += data
        return self._add(t="o", d=base64.b64encode(data).decode())

    def event(self, kind: str, **data: Any) -> "FramedOutput":
        return self._add(t="e", k=kind, d=data)

    def dated_event(self, kind: str, at: int, **data: Any) -> "FramedOutput":
        return self._add(t="e", k=kind, at=at, d=data)

    def trailer(self, outcome: str = "tests_ran", **fields: Any) -> "FramedOutput":
        digest = hashlib.sha256(self._output).hexdigest()
        whole = {
            "log_bytes": len(self._output),
            "log_sha256": digest,
            "session_finished": True,
            "exit_code": 0,
        }
        return self._add(t="end", outcome=outcome, **(whole | fields))

    def stray(self, line: bytes) -> "FramedOutput":
        self.lines.append(line)
        return self

    def bytes(self) -> bytes:
        return b"".join(self.lines)

    def _add(self, **document: Any) -> "FramedOutput":
        self._number += 1
        self.lines.append(json.dumps({"n": self._number, **document}).encode() + b"\n")
        return self


def framed(parts: Iterable[bytes]) -> FramedOutput:
    """Return a whole run that wrote these parts."""
    run = FramedOutput().event("begun")
    for part in parts:
        run.output(part)
    return run.trailer()
