"""Names that are taken: what collides, and how much work it is to know."""

import sys
import unicodedata
from types import FrameType
from typing import Any

import pytest

from ci_common.errors import InvalidArchive
from ci_persistence.archive_paths import Names


@pytest.mark.parametrize(
    ("first", "second", "rule"),
    [
        ("a", "a", "duplicate"),
        ("a", "A", "collision"),
        ("d/a", "D/b", "collision"),
        ("x/d/y/a", "x/D/z/b", "collision"),
        ("ß/a", "SS/b", "collision"),
        ("d", "d/a", "collision"),
        ("d/a", "d", "collision"),
        ("x/d/a", "X/D", "collision"),
        ("d/a", "d/b", None),
        ("d/e/a", "d/f/a", None),
    ],
)
def test_what_any_file_system_could_take_for_one_is_refused(
    first: str, second: str, rule: str | None
) -> None:
    names = Names(100)
    names.add_file(first)
    if rule is None:
        names.add_file(second)
        return
    with pytest.raises(InvalidArchive) as refused:
        names.add_file(second)
    assert refused.value.extra["rule"] == rule


def test_a_directory_and_a_file_of_one_name_are_refused_in_either_order() -> None:
    for file_first in (True, False):
        names = Names(100)
        steps = [lambda names=names: names.add_file("x/A"), lambda names=names: names.add_directory("x/a")]
        first, second = steps if file_first else steps[::-1]
        first()
        with pytest.raises(InvalidArchive):
            second()


def test_each_name_is_folded_once_however_deep_it_lies() -> None:
    """Folding is what is slow: some characters become several."""
    folder = "/".join("\N{LATIN SMALL LIGATURE FFI}" * 10 for _ in range(31))
    names, folds = Names(100), 0

    def note(_frame: FrameType, event: str, called: Any) -> None:
        nonlocal folds
        folds += event == "c_call" and called is unicodedata.normalize

    sys.setprofile(note)
    try:
        for number in range(50):
            names.add_file(f"{folder}/{number}")
    finally:
        sys.setprofile(None)
    assert folds == 50
