"""The long form of the tests: `make soak` sets CI_SOAK=1, and says by CI_SOAK_MINUTES how long each may go on."""

import os
from typing import Final

import pytest

SOAKING: Final = os.environ.get("CI_SOAK") == "1"
MINUTES: Final = float(os.environ.get("CI_SOAK_MINUTES", "30"))
# For tests that have no short form, or whose case a shorter test has in every run.
soak_only: Final = pytest.mark.skipif(not SOAKING, reason="runs for long: `make soak`, or CI_SOAK=1")
