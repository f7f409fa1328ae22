"""What the kernel says of the container's memory."""

# ruff: noqa: PTH123 - pathlib is a tenth of a second of imports for nothing we need

from __future__ import annotations

import contextlib

from ci_controller.harness.ending import amount


class Memory:
    """What the container's memory group says, version 2 or 1 of them; nothing where there is none."""

    _FILES = (
        ("memory.events", "memory.peak", "memory.max"),
        (
            "memory/memory.oom_control",
            "memory/memory.max_usage_in_bytes",
            "memory/memory.limit_in_bytes",
        ),
    )

    def __init__(self, groups: str = "/sys/fs/cgroup") -> None:
        self._groups = groups
        self._before = self._kills()

    def kills(self) -> int:
        """Return how many processes were killed for memory since we began."""
        return self._kills() - self._before

    def sentence(self, whose: str, doing: str) -> str:
        """Return who was killed, at how much of how much, and meanwhile what."""
        peak, limit = (self._bytes(index) for index in (1, 2))
        at = "" if limit is None else f" at {amount(limit if peak is None else peak)} of {amount(limit)}"
        return f"{whose} killed for memory{at}{' ' + doing if doing else ''}."

    def _kills(self) -> int:
        for line in self._read(0).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def _bytes(self, index: int) -> int | None:
        text = self._read(index).strip()
        return int(text) if text.isdigit() and int(text) < 1 << 60 else None

    def _read(self, index: int) -> str:
        for version in self._FILES:
            with contextlib.suppress(OSError), open(f"{self._groups}/{version[index]}") as file:
                return file.read()
        return ""
