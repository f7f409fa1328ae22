"""Rows 7 and 54: `kill -9` in a loop on controller and server while ten jobs run; 100 rounds of it with twenty
are in `tests/soak/test_kill_soak.py`."""

import secrets

import pytest

from tests.support.installation import Installation
from tests.support.kill_loop import Wave, survive

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

ROUNDS = 5  # at a chance moment, three times while all of them run, and while some of them end


def test_kill_9_again_and_again(installation: Installation) -> None:
    survive(installation, Wave(rounds=ROUNDS, jobs=10, seed=secrets.randbelow(10**6)))
