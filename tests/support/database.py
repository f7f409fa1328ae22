"""A migrated database file for a test, copied from a template: a millisecond instead of a migration."""

import tempfile
from functools import cache
from pathlib import Path

from ci_persistence.migrations import migrate


@cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "template.db"
        migrate(path)
        return path.read_bytes()


def new_database(directory: Path) -> Path:
    """A database with the current schema and no rows is in the directory; returns its path."""
    path = directory / "ci_jobs.db"
    path.write_bytes(_template())
    return path
