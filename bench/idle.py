"""What server and controller take while nothing is to be done."""

import os
import time
from pathlib import Path

from bench.place import Place
from bench.report import Row
from tests.support.eventually import eventually
from tests.support.installation import Daemon
from tests.support.process_usage import MIB, usage_of

_TICKS = os.sysconf("SC_CLK_TCK")


def idle(place: Place) -> list[Row]:
    """Resident memory of both together, and percent of a core, after whatever ran before."""
    place.submit(place.project("tiny", "ours"))
    daemons, seconds = [place.server, place.controller], 5 if place.quick else 15
    eventually(lambda: _is_quiet(daemons), seconds=60, what="some rest")
    memory: list[float] = []
    percent: list[float] = []
    for _ in range(3):
        spent, began = _spent(daemons), time.monotonic()
        time.sleep(seconds)
        percent.append(100 * (_spent(daemons) - spent) / (time.monotonic() - began))
        usages = [usage_of(daemon.process.pid) for daemon in daemons]
        memory.append(sum(usage.rss for usage in usages if usage) / MIB)
    return [
        Row("server and controller, idle: memory", "MB", tuple(memory), key="idle/memory"),
        Row("server and controller, idle: of a core", "%", tuple(percent), key="idle/cpu"),
    ]


def _is_quiet(daemons: list[Daemon]) -> bool:
    """Tell whether little was done in the last second: what follows a job is over."""
    spent = _spent(daemons)
    time.sleep(1)
    return _spent(daemons) - spent < 0.05


def _spent(daemons: list[Daemon]) -> float:
    return sum(_cpu_seconds(daemon.process.pid) for daemon in daemons)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
