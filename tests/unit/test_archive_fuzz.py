"""Row 68: changed, spliced and invented archives are refused by a rule, or hold for everybody what they hold for us.

The same ones in every run; tests/soak/test_archive_soak.py tries others for as long as one likes.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ci_common.errors import InvalidArchive
from ci_persistence.archive_store import FileArchiveStore
from tests.support.archive_fuzz import LIMITS, Tally, built, check, mutated, written

_fuzzed = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)


def _try(archives: st.SearchStrategy[bytes], accepted: int, refused: int) -> None:
    tally = Tally()

    @_fuzzed
    @given(archives)
    def tried(data: bytes) -> None:
        check(data, tally)

    tried()
    assert tally.accepted >= accepted
    assert tally.refused >= refused


def test_what_the_standard_library_writes() -> None:
    _try(written(), accepted=30, refused=30)


def test_changed_archives() -> None:
    _try(mutated(), accepted=10, refused=100)


def test_invented_archives() -> None:
    _try(built(), accepted=5, refused=100)


@settings(_fuzzed, max_examples=60)
@given(mutated())
def test_the_store_has_what_it_accepted_and_nothing_else(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as above:
        root = Path(above, "archives")
        kept = asyncio.run(_saved(FileArchiveStore(root, LIMITS), data))
        assert [path.name for path in Path(above).iterdir()] == ["archives"]
        assert [path.name for path in root.iterdir()] == kept


async def _saved(store: FileArchiveStore, data: bytes) -> list[str]:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    try:
        return [(await store.save(chunks(), len(data))).ref]
    except InvalidArchive:
        return []
