"""Who dumps the stacks of its threads when asked: pytest, and those of its processes that loaded our reporter."""

# ruff: noqa: PTH123, PTH208 - pathlib is a tenth of a second of imports for nothing we need

from __future__ import annotations

import contextlib
import os
import re

# A real-time signal, which no program uses by habit. Never sent to who has no handler for it: it would die of it.
DUMP_SIGNAL = 62
MOST = 32  # processes that are asked


def who_dumps(root: int) -> list[int]:
    """Return those of a process and its descendants that have a handler for DUMP_SIGNAL, parents first."""
    statuses = {pid: status for pid in _processes() for status in [_status(pid)] if status is not None}
    family = [root]
    for parent in family:  # grows meanwhile
        family += [pid for pid, (its_parent, _) in statuses.items() if its_parent == parent]
    catches = 1 << (DUMP_SIGNAL - 1)
    return [pid for pid in family if pid in statuses and statuses[pid][1] & catches][:MOST]


def _processes() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _status(pid: int) -> tuple[int, int] | None:
    """Return its parent and the set of signals it catches, None where it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", errors="replace") as file:
        found = re.search(r"^PPid:\s*(\d+)$.*^SigCgt:\s*([0-9a-f]+)$", file.read(), re.MULTILINE | re.DOTALL)
        return (int(found[1]), int(found[2], 16)) if found else None
    return None
