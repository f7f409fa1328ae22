"""Seeded worlds: whatever goes wrong, I1 to I9 hold after each step, and afterwards every job gets its verdict.

Run one seed again: `CI_SIMULATION_SEED=17 pytest -n 0 tests/simulation/test_simulation.py`; more: `make soak`.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.simulation.invariants import check_all
from tests.simulation.world import World, simulated
from tests.support.soak import SOAKING

STEPS = int(os.environ.get("CI_SIMULATION_STEPS", "80"))
ONE = os.environ.get("CI_SIMULATION_SEED")
SEEDS = [int(ONE)] if ONE else range(100 if SOAKING else 8)


@contextmanager
def told(world: World) -> Generator[None]:
    """What fails in here says how to see it again."""
    try:
        yield
    except BaseException as error:
        again = (
            f"CI_SIMULATION_SEED={world.seed} CI_SIMULATION_STEPS={world.steps} "
            ".venv/bin/pytest -n 0 tests/simulation/test_simulation.py"
        )
        error.add_note(
            f"seed {world.seed}, step {len(world.story)}, after {world.story[-6:]}\nagain: {again}"
        )
        raise


async def a_life(seed: int, path: Path, steps: int = STEPS) -> None:
    """A world goes through its steps and recovers; in most, containers wait ahead of need."""
    with capture_logs():
        async with simulated(seed, path, warm_containers=seed % 3) as world:
            with told(world):
                await world.live(steps, check_all)
                await world.recover(check_all)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_world_full_of_faults(seed: int, home: Path) -> None:
    await a_life(seed, home)
