"""Turning samples into the tables people read."""

import argparse
import json
import os
import platform
import sqlite3
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from tests.support.docker_cli import docker, require_engine


@dataclass(frozen=True)
class Row:
    """One quantity: its samples, and the median of the floor it is compared with (same unit)."""

    name: str
    unit: str
    samples: tuple[float, ...]
    floor: str = ""
    floor_samples: tuple[float, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Median over the floor's median."""
        if not self.floor_samples:
            return None
        return statistics.median(self.samples) / statistics.median(self.floor_samples)


def machine() -> str:
    """Return one line about the machine, without anything that names it."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, CPython {platform.python_version()}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| what | median | min | max | n | floor | floor's median | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_line(row) for row in rows])


def _line(row: Row) -> str:
    low, mid, high = min(row.samples), statistics.median(row.samples), max(row.samples)
    floor = f"{statistics.median(row.floor_samples):.1f}" if row.floor_samples else "-"
    ratio = f"**{row.ratio:.2f}**" if row.ratio is not None else "-"
    return (
        f"| {row.name} ({row.unit}) | {mid:.1f} | {low:.1f} | {high:.1f} | {len(row.samples)} "
        f"| {row.floor or '-'} | {floor} | {ratio} |"
    )


def as_json(rows: Sequence[Row]) -> str:
    """Return machine, samples and ratios for programs."""
    return json.dumps(
        {"machine": machine(), "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}, indent=2
    )


def main(description: str | None, measure: Callable[[int], list[Row]]) -> None:
    """Measure, as the command line says, and print the table (or JSON)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=7, help="samples of what is quick (default 7)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    require_engine()
    rows = measure(options.rounds)
    if options.json:
        print(as_json(rows))
        return
    engine = json.loads(docker("version", "--format", "{{json .Server.Version}}"))
    today = datetime.now(UTC).date().isoformat()
    print(f"{today}, {machine()}, Docker Engine {engine}, SQLite {sqlite3.sqlite_version}\n\n{table(rows)}")
