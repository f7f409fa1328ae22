"""Rows 7 and 54: `kill -9` in a loop on controller and server while twenty jobs are under way; 100 rounds of it are
in `tests/soak/test_kill_soak.py`."""

import secrets

import pytest

from tests.support.installation import Installation
from tests.support.kill_loop import Wave, survive

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def test_kill_9_again_and_again(installation: Installation) -> None:
    survive(installation, Wave(rounds=5, jobs=20, slots=5, seed=secrets.randbelow(10**6)))
