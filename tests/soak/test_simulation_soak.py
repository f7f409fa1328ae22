"""Thousands of seeded worlds: `make soak`, or CI_SOAK=1 CI_SOAK_SEEDS=5000 CI_SOAK_MINUTES=10 pytest tests/soak."""

import itertools
import os
import secrets
import time
from pathlib import Path

import pytest

from tests.simulation.test_simulation import a_life
from tests.support.in_memory import home
from tests.support.soak import MINUTES, soak_only

__all__ = ["home"]

pytestmark = soak_only

SEEDS = int(os.environ.get("CI_SOAK_SEEDS", "0"))  # 0: as many as the minutes allow
STEPS = 300


@pytest.mark.timeout(MINUTES * 60 + 600)
async def test_thousands_of_worlds(home: Path) -> None:
    """Seeds nobody has seen, but for those of the default run; a failing one is printed with its command."""
    first = int(os.environ.get("CI_SOAK_FIRST_SEED", secrets.randbelow(10**9)))
    deadline = time.monotonic() + MINUTES * 60
    for number in itertools.count():
        if time.monotonic() > deadline or (SEEDS and number >= SEEDS):
            break
        world = home / str(number)
        world.mkdir()
        await a_life(first + number, world, STEPS)
        _remove(world)


def _remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    directory.rmdir()
