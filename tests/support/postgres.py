"""A PostgreSQL of one test process: a cluster of its own, and in it a migrated database for each test that asks.

The server refuses to run as root, so it runs as the user that Debian's packages make; it ends with this process.
"""

import atexit
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import psycopg
from psycopg import conninfo

from ci_persistence.postgres_migrations import migrate
from tests.support.eventually import eventually
from tests.support.in_memory import in_memory

_USER: Final = "postgres"
_PORT: Final = 5432  # also a name of the socket's file
_TEMPLATE: Final = "template_of_ours"
_SETTINGS: Final = (
    "max_connections=120",  # several clients of 8 connections each, in several processes
    "shared_buffers=32MB",
    "fsync=on",
    "log_min_messages=error",
    "autovacuum=off",
)


class Cluster:
    """A server of our own, reached through a socket in its directory, and through an address if it has one.

    The socket lets everybody in; who comes over the network needs a password. `inside` is put before its command.
    """

    def __init__(self, address: str = "", inside: Sequence[str] = (), parent: Path | None = None) -> None:
        self._address = address
        self._inside = tuple(inside)
        self._home = Path(tempfile.mkdtemp(prefix="ci-postgres-", dir=parent or in_memory()))
        self._binaries = _binaries()
        if os.geteuid() == 0:
            account = pwd.getpwnam(_USER)
            os.chown(self._home, account.pw_uid, account.pw_gid)
        options = ("-A", "trust", "-U", _USER, "--no-sync", "--locale=C", "-E", "UTF8")
        self._done("initdb", "-D", self._data, *options)
        if address:
            with Path(self._data, "pg_hba.conf").open("a") as rules:
                rules.write("host all all all scram-sha-256\n")
        self.start()

    @property
    def _data(self) -> str:
        return str(self._home / "data")

    def start(self) -> None:
        """The server runs and answers."""
        known = (f"listen_addresses={self._address}", *_SETTINGS)
        settings = [part for setting in known for part in ("-c", setting)]
        command = self._command(
            "postgres", "-D", self._data, "-k", str(self._home), "-p", str(_PORT), *settings
        )
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._home
            )
        eventually(self._answers, what="the server's first answer")

    def stop(self, *, hard: bool = False) -> None:
        """The server is gone, as after `pg_ctl stop` (all sessions end) or, hard, as if it had crashed."""
        self._process.send_signal(signal.SIGQUIT if hard else signal.SIGINT)
        self._process.wait(30)

    def remove(self) -> None:
        """Nothing is left of it."""
        if self._process.poll() is None:
            self.stop(hard=True)
        shutil.rmtree(self._home)

    def url(self, database: str) -> str:
        """Return what names one of its databases."""
        return f"postgresql://{_USER}@/{database}?host={self._home}&port={_PORT}"

    def cpu_seconds(self) -> float:
        """Return what the server and those of its sessions that have ended used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def execute(self, statement: str) -> None:
        """The statement was executed, outside of any transaction, in no database of a test."""
        with psycopg.connect(self.url(_USER), autocommit=True) as db:
            db.execute(statement.encode())

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._home / "log").read_text()
        try:
            psycopg.connect(self.url(_USER)).close()
        except psycopg.OperationalError:
            return False
        return True

    def _command(self, program: str, *arguments: str) -> Sequence[str]:
        command = (str(self._binaries / program), *arguments)
        if os.geteuid() != 0:
            return (*self._inside, "setpriv", "--pdeathsig", "QUIT", *command)
        user = ("--reuid", _USER, "--regid", _USER, "--init-groups")
        return (*self._inside, "setpriv", *user, "--pdeathsig", "QUIT", *command)

    def _done(self, program: str, *arguments: str) -> None:
        ended = subprocess.run(
            self._command(program, *arguments), cwd=self._home, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr


def _binaries() -> Path:
    """Return where the server's programs are; Debian has them beside those of other versions, not on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("postgres")
    assert found or on_path, "no PostgreSQL here: scripts/ensure-test-tools.sh installs it"
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


@cache
def cluster() -> Cluster:
    """Return the one of this process."""
    made = Cluster()
    atexit.register(made.remove)
    made.execute(f"CREATE DATABASE {_TEMPLATE}")
    migrate(made.url(_TEMPLATE))
    return made


def new_postgres(*, migrated: bool = True) -> str:
    """A database with the current schema and no rows is there; returns its URL."""
    name = f"test_{uuid.uuid4().hex}"
    cluster().execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE if migrated else 'template0'}")
    return cluster().url(name)


def drop_postgres(url: str) -> None:
    """The database is gone, whoever is connected to it."""
    name = conninfo.conninfo_to_dict(url)["dbname"]
    cluster().execute(f"DROP DATABASE {name} WITH (FORCE)")


def is_locked(url: str) -> bool:
    """Tell whether somebody holds a transaction open that wrote, or does nothing in one."""
    query = (
        b"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        b"AND (backend_xid IS NOT NULL OR state LIKE 'idle in transaction%')"
    )
    with psycopg.connect(url) as db:
        row = db.execute(query).fetchone()
    return row is not None and row[0] > 0
