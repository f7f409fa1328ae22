"""Rows 7 and 54: `kill -9` in a loop on controller and server while twenty jobs run; 100 rounds of it are
in `tests/soak/test_kill_soak.py`."""

import secrets

import pytest

from tests.support.installation import Installation
from tests.support.kill_loop import Wave, survive

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def test_kill_9_again_and_again(installation: Installation) -> None:
    survive(installation, Wave(rounds=4, jobs=20, seed=secrets.randbelow(10**6)))
