"""Turning samples into what people and programs read. Pure, but for `main` and what it asks of the machine."""

import argparse
import json
import os
import platform
import sqlite3
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from bench.goals import GOALS, Goal
from tests.support.docker_cli import docker, require_engine

_BAR = 40


@dataclass(frozen=True)
class Row:
    """One quantity: its samples, and those of the floor it is compared with (same unit)."""

    name: str
    unit: str
    samples: tuple[float, ...]
    floor: str = ""
    floor_samples: tuple[float, ...] = ()
    key: str = ""  # under which its goals and its committed ratio are found
    more_is_better: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def ratio(self) -> float | None:
        """Median over the floor's median."""
        if not self.floor_samples:
            return None
        return self.median / statistics.median(self.floor_samples)

    @property
    def ratio_spread(self) -> tuple[float, float] | None:
        """What the ratio may as well have been: lower quartile over the floor's upper one, and the reverse."""
        if not self.floor_samples:
            return None
        (low, high), (floor_low, floor_high) = quartiles(self.samples), quartiles(self.floor_samples)
        return low / floor_high, high / floor_low

    def verdicts(self) -> list[tuple[Goal, float, bool]]:
        """Return each goal with what was measured for it, and whether it is met."""
        found = [(goal, self._measured(goal)) for goal in GOALS.get(self.key, ())]
        return [(goal, value, goal.is_met_by(value)) for goal, value in found if value is not None]

    def _measured(self, goal: Goal) -> float | None:
        return self.ratio if goal.of_ratio else percentile(self.samples, goal.percentile)


@dataclass(frozen=True)
class Missing:
    """A measurement that has no rows, and why; `failed` where it should have had some."""

    name: str
    why: str
    failed: bool


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the value that so many percent of the samples do not exceed; the median is as statistics has it."""
    if percent == 50:
        return statistics.median(samples)
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile; of fewer than three samples, the least and the greatest."""
    if len(samples) < 3:
        return min(samples), max(samples)
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, high


def machine() -> str:
    """Return one line about the machine, without anything that names it."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, CPython {platform.python_version()}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| what | median | quartiles | min | max | n | floor | floor's median | ratio | goal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_line(row) for row in rows])


def _line(row: Row) -> str:
    low, high = quartiles(row.samples)
    floor = f"{statistics.median(row.floor_samples):.1f}" if row.floor_samples else "-"
    ratio = f"**{row.ratio:.2f}**" if row.ratio is not None else "-"
    return (
        f"| {row.name} ({row.unit}) | {row.median:.1f} | {low:.1f}-{high:.1f} "
        f"| {min(row.samples):.1f} | {max(row.samples):.1f} | {len(row.samples)} "
        f"| {row.floor or '-'} | {floor} | {ratio} | {_goals(row) or '-'} |"
    )


def _goals(row: Row) -> str:
    return ", ".join(
        f"{goal}: {value:.2f} {'met' if met else '**missed**'}" for goal, value, met in row.verdicts()
    )


def bars(rows: Sequence[Row]) -> str:
    """Return the rows for a terminal: each beside its floor, as bars of one scale."""
    return "\n\n".join("\n".join(_bars(row)) for row in rows)


def _bars(row: Row) -> list[str]:
    sides = [("ours" if row.floor else "", row.samples)]
    sides += [(row.floor, row.floor_samples)] if row.floor_samples else []
    longest = max(statistics.median(samples) for _, samples in sides) or 1.0
    ratio = f"  ratio {row.ratio:.2f}" if row.ratio is not None else ""
    goals = [
        f"    goal {goal}: {value:.2f}, {'met' if met else 'MISSED'}" for goal, value, met in row.verdicts()
    ]
    return [
        f"{row.name}{ratio}",
        *(_bar(side, samples, row.unit, longest) for side, samples in sides),
        *goals,
    ]


def _bar(side: str, samples: Sequence[float], unit: str, longest: float) -> str:
    mid, (low, high) = statistics.median(samples), quartiles(samples)
    bar = "█" * max(1, round(_BAR * mid / longest))
    return f"  {side:<34.34} {mid:>9.1f} {unit:<4} [{low:.1f}-{high:.1f}, n={len(samples)}] {bar}"


def row_document(row: Row) -> dict[str, Any]:
    """Return a row for programs, with what follows from its samples."""
    goals = [{"goal": str(goal), "measured": value, "met": is_met} for goal, value, is_met in row.verdicts()]
    return {**asdict(row), "ratio": row.ratio, "ratio_spread": row.ratio_spread, "goals": goals}


def as_json(rows: Sequence[Row]) -> str:
    """Return machine, samples and ratios for programs."""
    return json.dumps({"machine": machine(), "rows": [row_document(row) for row in rows]}, indent=2)


def heading() -> str:
    """Return the date and what it was measured on."""
    engine = json.loads(docker("version", "--format", "{{json .Server.Version}}"))
    today = datetime.now(UTC).date().isoformat()
    return f"{today}, {machine()}, Docker Engine {engine}, SQLite {sqlite3.sqlite_version}"


def main(description: str | None, measure: Callable[[int], list[Row]]) -> None:
    """Measure, as the command line says, and print the table (or JSON)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=7, help="samples of what is quick (default 7)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    require_engine()
    rows = measure(options.rounds)
    print(as_json(rows) if options.json else f"{heading()}\n\n{table(rows)}")
