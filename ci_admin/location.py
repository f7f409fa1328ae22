"""Which database a command works on when nobody names one: one rule, so that no folder loses jobs."""

import os
from collections.abc import Mapping
from pathlib import Path

FILE_NAME = "ci_jobs.db"


def personal_database(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where `ci-admin up` keeps its state: the same file from whatever folder it is started."""
    data_home = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data_home).expanduser() / "ci" / FILE_NAME


def database_in_force(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the database that was named, else the one in this folder, else that of `ci-admin up`.

    Where there is neither, it is `ci_jobs.db` in this folder, as the daemons have it.
    """
    if given is not None:
        return given
    here, personal = Path(FILE_NAME), personal_database(environ)
    return personal if personal.exists() and not here.exists() else here
