"""Row 68 for longer: archives that no run has seen, and the largest ones as a tar; `CI_SOAK=1` runs it."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.archive_fuzz import Tally, built, check, mutated, written
from tests.support.large_archives import write_zeros
from tests.support.soak import MINUTES, soak_only
from tests.unit.test_archive_memory import ACCEPTED, MB, probed

pytestmark = [
    pytest.mark.timeout(3600),
    soak_only,
]

EXAMPLES = 20_000


@pytest.mark.parametrize("archives", [written, mutated, built])
def test_thousands_of_archives(archives: Callable[[], st.SearchStrategy[bytes]]) -> None:
    """As many as the minutes allow, in runs that begin anew."""
    tally = Tally()

    @settings(
        max_examples=500,
        database=None,
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    )
    @given(archives())
    def tried(data: bytes) -> None:
        check(data, tally)

    deadline = time.monotonic() + MINUTES * 60
    while time.monotonic() < deadline and tally.accepted + tally.refused < EXAMPLES:
        tried()
    sys.stdout.write(f"{tally}\n")
    assert tally.accepted > 200
    assert tally.refused > 200


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_tar_is_made_in_flat_memory(name: str, tmp_path: Path) -> None:
    write, files = ACCEPTED[name]
    write(tmp_path / "a.zip")
    cost = probed(tmp_path / "a.zip", cpu_seconds=60, mode="stream")
    assert (cost["rule"], cost["files"]) == (None, files)
    assert cost["memory"] < 200 * MB


def test_all_that_an_archive_may_unpack_to_is_judged_in_bounded_time(tmp_path: Path) -> None:
    write_zeros(tmp_path / "a.zip", 2047, ratio=199)
    cost = probed(tmp_path / "a.zip", cpu_seconds=30)
    assert (cost["rule"], cost["files"]) == (None, 1)
    assert cost["memory"] < 200 * MB
