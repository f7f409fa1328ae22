"""Rows 7 and 54 in their full size: a hundred rounds of `kill -9` with twenty jobs running; `CI_SOAK=1` runs it.

A seed that failed is repeated with CI_SOAK_SEED=…
"""

import os
import secrets

import pytest

from tests.support.installation import Installation
from tests.support.kill_loop import Wave, survive
from tests.support.soak import soak_only

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(3600),
    soak_only,
]

ROUNDS = int(os.environ.get("CI_SOAK_ROUNDS", "100"))


def test_a_hundred_rounds_of_kill_9(installation: Installation) -> None:
    seed = int(os.environ.get("CI_SOAK_SEED", secrets.randbelow(10**6)))
    survive(installation, Wave(rounds=ROUNDS, jobs=20, seed=seed, longest_pause=3.0, endless=True))
