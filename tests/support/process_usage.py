"""What a process holds of its machine, over time: memory, file descriptors, threads; and whether that is flat."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median
from typing import Final

MIB: Final = 1024**2


@dataclass(frozen=True, slots=True)
class Usage:
    """One look at a process; `rss` is in bytes."""

    at: float  # of the monotonic clock, in seconds
    rss: int
    fds: int
    threads: int


def usage_of(pid: int) -> Usage | None:
    """Return what the process holds now, None if it is gone."""
    process = Path(f"/proc/{pid}")
    try:
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        fds = sum(1 for _ in (process / "fd").iterdir())
        return Usage(time.monotonic(), int(status["VmRSS"].split()[0]) * 1024, fds, int(status["Threads"]))
    except (OSError, KeyError):  # a zombie has no VmRSS
        return None


@dataclass
class UsageHistory:
    """What processes held, by name and by instance: one that was started again begins a history of its own."""

    samples: dict[tuple[str, int], list[Usage]] = field(default_factory=dict[tuple[str, int], list[Usage]])

    def look(self, name: str, pid: int) -> None:
        """One more sample is noted, if the process is there."""
        if found := usage_of(pid):
            self.samples.setdefault((name, pid), []).append(found)

    def between(self, name: str, pid: int, begin: float, end: float) -> list[Usage]:
        return [one for one in self.samples.get((name, pid), []) if begin <= one.at <= end]


@dataclass(frozen=True, slots=True)
class Change:
    """How one quantity of one thing went from a rest to a later one."""

    what: str
    unit: str
    start: float
    end: float
    per_hour: float | None  # the slope of all samples under load; None where there were none
    tolerance: float

    @property
    def is_flat(self) -> bool:
        """Tell whether it did not grow beyond its tolerance; less is no leak."""
        return self.end - self.start <= self.tolerance

    @property
    def row(self) -> str:
        slope = "-" if self.per_hour is None else f"{self.per_hour:+.1f}"
        said = "flat" if self.is_flat else "GREW"
        return (
            f"| {self.what} | {self.start:.1f} {self.unit} | {self.end:.1f} {self.unit} | {slope} | "
            f"{self.tolerance:.1f} | {said} |"
        )


def changes_of(
    name: str, start: Sequence[Usage], end: Sequence[Usage], under_load: Sequence[Usage]
) -> list[Change]:
    """Return how memory, descriptors and threads went between two windows.

    Tolerated are 10 % or 8 MiB of memory, whichever is more, and two descriptors and threads: what a pool may
    have more or less of at the moment one looks.
    """
    rss = [one.rss / MIB for one in start]
    tolerated = max(8.0, median(rss) * 0.1)
    memory = Change(
        f"{name}: RSS",
        "MiB",
        median(rss),
        median(one.rss / MIB for one in end),
        _per_hour((one.at, one.rss / MIB) for one in under_load),
        tolerated,
    )
    fds = Change(
        f"{name}: descriptors",
        "",
        median(one.fds for one in start),
        median(one.fds for one in end),
        _per_hour((one.at, one.fds) for one in under_load),
        2,
    )
    threads = Change(
        f"{name}: threads",
        "",
        median(one.threads for one in start),
        median(one.threads for one in end),
        _per_hour((one.at, one.threads) for one in under_load),
        2,
    )
    return [memory, fds, threads]


def table(changes: Iterable[Change]) -> str:
    """Return the changes as a Markdown table."""
    head = [
        "| what | start | end | slope per hour under load | tolerance | |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(one.row for one in changes)])


def _per_hour(points: Iterable[tuple[float, float]]) -> float | None:
    found = list(points)
    if len(found) < 2:
        return None
    return linear_regression([at for at, _ in found], [value for _, value in found]).slope * 3600
