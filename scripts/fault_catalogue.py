"""The catalogue of faults as data: `tests/faults.toml`, read and judged. `docs/faults.md` is generated from it.

A row names the tests that show it, each as `path::function`, or says why it does not concern what exists today.
"""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "tests" / "faults.toml"


@dataclass(frozen=True, slots=True)
class Fault:
    """One row: what goes wrong, what must happen then, and what shows it."""

    number: int
    what: str
    expected: str
    tests: tuple[str, ...] = ()
    soak: tuple[str, ...] = ()  # the same at full size, in `make soak`
    not_applicable: str | None = None  # because …
    note: str | None = None  # what the tests do not show


def read_catalogue(path: Path = CATALOGUE) -> list[Fault]:
    """Return every row in its order."""
    rows: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["fault"]
    return [_fault(row) for row in rows]


def _fault(row: dict[str, Any]) -> Fault:
    lists = {key: tuple(row.pop(key, ())) for key in ("tests", "soak")}
    return Fault(**lists, **row)


def problems(faults: list[Fault]) -> list[str]:
    """Return what is wrong with the catalogue: rows that nothing shows, tests that do not exist, gaps."""
    found = [problem for fault in faults for problem in _problems_of(fault)]
    numbers = [fault.number for fault in faults]
    if numbers != list(range(1, len(numbers) + 1)):
        found.append(f"rows are not numbered 1, 2, 3 …: {numbers}")
    return found


def _problems_of(fault: Fault) -> Iterator[str]:
    if bool(fault.tests) == bool(fault.not_applicable):
        yield f"row {fault.number} needs either tests or a reason why it is not applicable"
    for test in (*fault.tests, *fault.soak):
        path, _, name = test.partition("::")
        if name not in _functions(ROOT / path):
            yield f"row {fault.number} names a test that does not exist: {test}"


@cache
def _functions(path: Path) -> frozenset[str]:
    """Return the names of the tests and state machines a file defines; none for a file that is not there."""
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def faults_table() -> str:
    """Return the catalogue as a Markdown table: row, expectation, what shows it."""
    lines = ["| # | what goes wrong | what must happen | shown by |", "| --- | --- | --- | --- |"]
    lines += [_line(fault) for fault in read_catalogue()]
    return "\n".join(lines)


def _line(fault: Fault) -> str:
    cells = [str(fault.number), fault.what, fault.expected, _shown_by(fault)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown_by(fault: Fault) -> str:
    lines = [f"`{test}`" for test in fault.tests]
    lines += [f"`{test}` (`make soak`)" for test in fault.soak]
    if fault.not_applicable:
        lines.append(f"not applicable, because {fault.not_applicable}")
    if fault.note:
        lines.append(f"*{fault.note}*")
    return "<br>".join(lines)
