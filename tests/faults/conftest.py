"""Fixtures of the fault tests: a Docker engine of one's own, and a CI system on it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.installation import Installation
from tests.support.prepared_image import prepared_image
from tests.support.private_engine import PrivateEngine, private_engine


def _number(worker_id: str) -> int:
    """Return a number that no other worker of this run has."""
    found = re.search(r"\d+$", worker_id)
    return int(found[0]) if found else 0


@pytest.fixture(scope="module")
def own_engine(engine: None, worker_id: str) -> Iterator[PrivateEngine]:
    """The image is loaded once: it costs more than all that the engine does for a test."""
    with private_engine(_number(worker_id), image=prepared_image()) as own:
        yield own


@pytest.fixture
def private(own_engine: PrivateEngine, tmp_path: Path) -> Iterator[Installation]:
    """A CI system on an engine that ends its containers when it ends; nothing started yet."""
    own_engine.set_live_restore(False)
    yield from _installation(own_engine, tmp_path)


@pytest.fixture
def live_restore(own_engine: PrivateEngine, tmp_path: Path) -> Iterator[Installation]:
    """A CI system on an engine whose containers outlive it; nothing started yet."""
    own_engine.set_live_restore(True)
    yield from _installation(own_engine, tmp_path)


def _installation(engine: PrivateEngine, root: Path) -> Iterator[Installation]:
    system = Installation(root, prefix="test-", engine=engine, image=prepared_image())
    yield system
    assert system.stop() == [], "containers were left over"
