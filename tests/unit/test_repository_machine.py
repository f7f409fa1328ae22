"""The state machine over every database we have; longer with CI_SOAK=1."""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

from tests.support.repository_contract.story import Backend
from tests.support.repository_machine import RepositoryMachine
from tests.unit.test_repository import sqlite_backend

SOAK = os.environ.get("CI_SOAK") == "1"


class SQLiteMachine(RepositoryMachine):
    """Over a SQLite file."""

    @staticmethod
    def make_backend(directory: Path) -> Backend:
        return sqlite_backend(directory)


TestSQLite = SQLiteMachine.TestCase
TestSQLite.settings = settings(
    max_examples=2000 if SOAK else 25,
    stateful_step_count=100 if SOAK else 30,
    derandomize=not SOAK,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
