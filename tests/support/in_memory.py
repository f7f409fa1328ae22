"""A home for databases that commit often and need not outlive a power loss; import `home` as a fixture."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED_MEMORY = Path("/dev/shm")


def in_memory() -> str | None:
    """Return the directory for temporary files that are kept in memory, None where there is none."""
    return str(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty directory, in memory where there is room for that."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as directory:
        yield Path(directory)
