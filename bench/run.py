"""`make bench`: everything side by side in one go; a table with bars for people, JSON for programs.

Needs nobody: what hangs is ended at its time-out, what fails is reported and the next comes, and what was made goes.
"""

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from bench import api, big_tree, drain, idle, latency, peers, waterfalls, whole_command
from bench.check import RESULTS
from bench.peers import NotHere
from bench.place import Place, place
from bench.report import Missing, Row, bars, heading, machine, row_document, table
from tests.support.docker_cli import require_engine

MEASUREMENTS: Mapping[str, Callable[[Place], list[Row]]] = {
    "idle": idle.idle,
    "warm": whole_command.warm,
    "latency": latency.pieces,
    "printed": latency.printed,
    "waterfall": waterfalls.waterfall,
    "cold": whole_command.cold,
    "medium": whole_command.medium,
    "drain": drain.drain,
    "big-tree": big_tree.big_tree,
    "api": api.rates,
    "viewers": api.viewers,
    "tox": whole_command.tox,
    "buildbot": peers.buildbot,
    "gitlab-ci-local": peers.gitlab_ci_local,
    "laminar": peers.laminar,
}
# Left out of a quick run: each takes a minute or more.
SLOW = frozenset({"medium", "tox", "viewers", "buildbot", "gitlab-ci-local", "laminar"})


class TookTooLong(Exception):
    """A measurement did not end in its time."""


@dataclass(frozen=True)
class Result:
    """What a run found."""

    rows: list[Row]
    missing: list[Missing]


@contextmanager
def at_most(seconds: float) -> Generator[None]:
    """Raises TookTooLong in what takes longer."""

    def end(*_: object) -> NoReturn:
        raise TookTooLong(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(names: Sequence[str], here: Place, seconds: float) -> Result:
    """Return what each of the measurements found; a failure ends that one only."""
    result = Result([], [])
    for name in names:
        began = time.monotonic()
        try:
            with at_most(seconds):
                result.rows.extend(MEASUREMENTS[name](here))
        except NotHere as error:
            result.missing.append(Missing(name, str(error), failed=False))
        except Exception as error:  # noqa: BLE001 - whatever it was, the others are to be measured
            traceback.print_exc()
            result.missing.append(Missing(name, f"{type(error).__name__}: {error}"[:500], failed=True))
        print(f"[bench] {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return result


def document(result: Result, *, whole: bool, loads: Sequence[float]) -> dict[str, Any]:
    """Return everything for programs."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "load_before": loads[0],
        "whole": whole,
        "rows": [row_document(row) for row in result.rows],
        "missing": [asdict(missing) for missing in result.missing],
    }


def chosen(only: Sequence[str], *, quick: bool) -> list[str]:
    """Return the measurements to make, in their order."""
    return [name for name in MEASUREMENTS if name in only or (not only and not (quick and name in SLOW))]


def leave(*_: object) -> NoReturn:
    """The process ends, and everything is cleaned up on the way."""
    sys.exit(143)


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--quick", action="store_true", help="less of everything, in under three minutes")
    parser.add_argument("--rounds", type=int, help="samples of what is quick (default 9, quick 3)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for each measurement")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table instead of bars")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON is written, - for nowhere")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(MEASUREMENTS):
        parser.error(
            f"no such measurement: {', '.join(sorted(unknown))}; there are {', '.join(MEASUREMENTS)}"
        )
    return options


def main(arguments: list[str]) -> int:
    options = options_of(arguments)
    require_engine()
    signal.signal(signal.SIGTERM, leave)
    loads = os.getloadavg()
    rounds = options.rounds or (3 if options.quick else 9)
    with place(rounds, quick=options.quick) as here:
        result = measure(chosen(options.names, quick=options.quick), here, options.timeout)
    found = json.dumps(document(result, whole=not options.quick and not options.names, loads=loads), indent=2)
    if str(options.out) != "-":
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(found + "\n")
    print(found if options.json else text_of(result, loads, markdown=options.markdown))
    return 1 if any(missing.failed for missing in result.missing) else 0


def text_of(result: Result, loads: Sequence[float], *, markdown: bool) -> str:
    """Return everything for people."""
    rows = table(result.rows) if markdown else bars(result.rows)
    missing = [f"{one.name}: {'FAILED' if one.failed else 'skipped'}, {one.why}" for one in result.missing]
    return "\n".join([f"{heading()}, load before {loads[0]:.1f}", "", rows, "", *missing])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
