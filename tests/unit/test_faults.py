"""The catalogue of faults: every row that concerns what exists has a test, and the tests it names exist."""

from pathlib import Path

from scripts import fault_catalogue
from scripts.fault_catalogue import Fault

LAST_ROW = 71


def test_every_row_has_a_test_or_a_reason_why_not() -> None:
    faults = fault_catalogue.read_catalogue()

    assert fault_catalogue.problems(faults) == []
    assert len(faults) == LAST_ROW


def test_a_row_without_a_test_is_a_problem() -> None:
    assert fault_catalogue.problems([Fault(1, "fire", "water")]) == [
        "row 1 needs either tests or a reason why it is not applicable"
    ]


def test_a_test_that_does_not_exist_is_a_problem() -> None:
    here = str(Path(__file__).relative_to(fault_catalogue.ROOT))
    found = [f"{here}::{name}" for name in ("test_of_nothing", "test_a_row_without_a_test_is_a_problem")]

    assert fault_catalogue.problems([Fault(1, "fire", "water", tuple(found))]) == [
        f"row 1 names a test that does not exist: {found[0]}"
    ]


def test_a_gap_in_the_numbers_is_a_problem() -> None:
    faults = [Fault(number, "fire", "water", not_applicable="it rains") for number in (1, 3)]

    assert fault_catalogue.problems(faults) == ["rows are not numbered 1, 2, 3 …: [1, 3]"]
