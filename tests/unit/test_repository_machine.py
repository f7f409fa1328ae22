"""The state machine over every database we have; longer with CI_SOAK=1."""

from pathlib import Path

from hypothesis import HealthCheck, settings

from tests.support.postgres import drop_postgres
from tests.support.repository_contract.story import Backend
from tests.support.repository_machine import RepositoryMachine
from tests.support.soak import SOAKING
from tests.unit.test_repository import postgres_backend, sqlite_backend


class SQLiteMachine(RepositoryMachine):
    """Over a SQLite file."""

    @staticmethod
    def make_backend(directory: Path) -> Backend:
        return sqlite_backend(directory)


class PostgresMachine(RepositoryMachine):
    """Over a database of PostgreSQL."""

    @staticmethod
    def make_backend(directory: Path) -> Backend:
        return postgres_backend()

    def teardown(self) -> None:
        super().teardown()
        drop_postgres(self.backend.location)


TestSQLite = SQLiteMachine.TestCase
TestPostgres = PostgresMachine.TestCase
TestSQLite.settings = settings(
    max_examples=2000 if SOAKING else 15,
    stateful_step_count=100 if SOAKING else 30,
    derandomize=not SOAKING,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
# Four times as slow: the same stories on fewer days.
TestPostgres.settings = settings(TestSQLite.settings, max_examples=2000 if SOAKING else 8)
