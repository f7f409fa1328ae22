"""Every registered crash point by its first and second hit by a restart, on a real SQLite file."""

import ast
import re
from pathlib import Path

import pytest

from ci_common.crash_points import CRASH_POINTS, CrashPoint
from tests.support.crash_scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]
# Where the story is a whole test of its own, beside the others about that subject.
_PRUNE = "test_retention.py::test_the_next_prune_finishes_what_one_that_died_began"
_PACKS = "test_blobs.py::test_a_pack_whose_row_went_goes_with_the_next_prune"
_PUT_AWAY = "test_put_away.py::test_a_process_that_dies_in_between_leaves_both_and_the_next_one_ends_it"
_MIGRATE = "test_upgrade.py::test_a_migration_killed_at_any_statement_left_the_old_schema_or_the_new_one"
_BACK_UP = "test_backup.py::test_a_backup_that_was_cut_off_is_none"
_RESTORE = "test_backup.py::test_a_restore_that_was_cut_off_can_be_done_again"
ELSEWHERE: dict[CrashPoint, str] = {
    "after_prune_marked": _PRUNE,
    "after_prune_files": _PRUNE,
    "after_packs_removed": _PACKS,
    "after_log_compressed": _PUT_AWAY,
    "during_migration": _MIGRATE,
    "after_migration": _MIGRATE,
    "after_backup_filled": _BACK_UP,
    "after_restore_files": _RESTORE,
    "after_restore_set_aside": _RESTORE,
}
HITS = [(point, nth) for point, scenario in SCENARIOS.items() for nth in range(1, scenario.hits + 1)]


def test_every_crash_point_has_a_scenario() -> None:
    assert set(SCENARIOS) | set(ELSEWHERE) == set(CRASH_POINTS)
    assert not set(SCENARIOS) & set(ELSEWHERE)


@pytest.mark.parametrize("point", ELSEWHERE)
def test_a_point_without_a_scenario_is_armed_by_a_test_of_its_own(point: CrashPoint) -> None:
    file, _, test = ELSEWHERE[point].partition("::")
    assert point in armed_by(Path(__file__).with_name(file).read_text(), test)


def test_what_is_only_mentioned_is_not_armed() -> None:
    source = """
SCRIPT = 'os.environ["CI_CRASH_AT"] = "in a script"'
OTHER = '"in no script of ours"'
@parametrize("point", ["by its parameter"])
def test_it(point):
    "in the docstring"
    run(SCRIPT)
    assert point != "in an assertion"
    if point == "in a comparison":
        pass
def test_other(): told_of_crash_points(dies_at("in another test"))
def test_mentions(): print("armed by nothing")
"""
    assert {"by its parameter", "in a script"} <= armed_by(source, "test_it")
    assert not {text for text in armed_by(source, "test_it") if text.startswith("in ")} - {"in a script"}
    assert armed_by(source, "test_mentions") == set()


class _Arguments(ast.NodeVisitor):
    """Collects the strings that code passes on, not those it only compares with or explains itself by."""

    def __init__(self) -> None:
        self.strings: set[str] = set()
        self.names: set[str] = set()

    def visit_Compare(self, node: ast.Compare) -> None: ...

    def visit_Assert(self, node: ast.Assert) -> None: ...

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.strings.add(node.value)

    def visit_Name(self, node: ast.Name) -> None:
        self.names.add(node.id)


def armed_by(source: str, test: str) -> set[str]:
    """Return the strings that a test passes on, itself or in a script it runs, if it arms crash points at all."""
    module = ast.parse(source)
    found = _Arguments()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == test:
            found.visit(node)
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=ast.Constant(str() as script)) if (
                name in found.names and "CI_CRASH_AT" in script
            ):
                found.visit(ast.parse(script))
            case _:
                pass
    arms = "told_of_crash_points" in found.names or "CI_CRASH_AT" in found.strings
    return found.strings if arms else set()


def test_every_crash_point_is_in_the_code_and_no_other() -> None:
    code = "".join(path.read_text() for package in ROOT.glob("ci_*") for path in package.rglob("*.py"))
    assert set(re.findall(r'\bcrash_point\(\s*"(\w+)"', code)) == set(CRASH_POINTS)


@pytest.mark.parametrize(("point", "nth"), HITS)
async def test_a_process_dies_there_and_is_started_again(point: CrashPoint, nth: int, tmp_path: Path) -> None:
    assert await SCENARIOS[point].run(tmp_path, point, nth), "the point was never reached"
