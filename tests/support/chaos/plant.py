"""The system under chaos: one controller, two servers, an engine that can be cut off, and the book of what was done."""

import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.chaos.workload import MAX_ATTEMPTS, MEMORY, Kind
from tests.support.engine_proxy import EngineInBetween
from tests.support.installation import Daemon, Done, Installation

SLOTS: Final = 3
KEPT: Final = 60  # jobs and logs after a prune
_ASSIGNED: Final = re.compile(r"^(\S+) \S*?job-(\S+)-(\d+)$", re.MULTILINE)  # a container's id, and its name
# A bridge of its own, so that its rules can be flushed without harm to others on this host. The address is one
# of those that no network has (RFC 5737).
ENVIRONMENT: Final = {
    "CI_MAX_RUNNING_JOBS": str(SLOTS),
    "CI_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
    "CI_JOB_MEMORY": str(MEMORY),
    "CI_JOB_CPUS": "1",
    "CI_JOB_NETWORK_ALLOW": "192.0.2.77",
    "CI_KEEP_ARCHIVES_MAX": "0",
    "CI_KEEP_LOGS_MAX": str(KEPT),
    "CI_KEEP_LOGS_MIN": "0",
    "CI_KEEP_JOBS_MAX": str(KEPT),
    "CI_KEEP_JOBS_MIN": "0",
    "CI_KEEP_BLOBS": "1m",
    "CI_STREAM_SEND_TIMEOUT": "5",
    "CI_LOG_FORMAT": "json",
}


@dataclass
class ChaoticInstallation(Installation):
    """An installation whose every process has the soak's settings and the engine that can be cut off."""

    engine_url: str = ""

    def environment(self, **extra: str) -> dict[str, str]:
        return super().environment(**ENVIRONMENT, DOCKER_HOST=self.engine_url, **extra)


class Book:
    """What happened, with the second it happened in: in a file, so that a run can be understood afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self.problems: list[str] = []

    def write(self, line: str) -> None:
        with self._lock, self.path.open("a") as file:
            file.write(f"{time.monotonic() - self._begin:8.1f} {line}\n")

    def problem(self, line: str) -> None:
        """Something does not hold; the test fails with all of these at its end."""
        self.write(f"PROBLEM {line}")
        self.problems.append(line)


@dataclass
class Submitted:
    """A job that somebody got an id for."""

    job_id: str
    kind: Kind
    number: int
    user: str
    kills: int = 0  # of its containers, by us
    ending: tuple[Any, ...] | None = None  # as it was judged, once it was


@dataclass
class Ledger:
    """Every acknowledged job, and what may stand beside them."""

    jobs: dict[str, Submitted] = field(default_factory=dict[str, Submitted])
    unacknowledged: int = 0  # submissions of `ci` that failed: they made a job, or none
    counted: dict[str, int] = field(default_factory=dict[str, int])  # by what was checked
    _numbers: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def number(self) -> int:
        """Return a number that no other job has."""
        with self._lock:
            self._numbers += 1
            return self._numbers

    def count(self, what: str) -> None:
        with self._lock:
            self.counted[what] = self.counted.get(what, 0) + 1

    def note(self, job: Submitted) -> None:
        with self._lock:
            assert job.job_id not in self.jobs, f"one id for two submissions: {job.job_id}"
            self.jobs[job.job_id] = job

    def submission_of_ci_failed(self) -> None:
        with self._lock:
            self.unacknowledged += 1

    def open(self, user: str | None = None) -> list[Submitted]:
        """Return the jobs that were not judged yet."""
        with self._lock:
            return [one for one in self.jobs.values() if one.ending is None and user in (None, one.user)]


@dataclass
class Plant:
    """The running system; only one thread starts and ends its processes."""

    system: ChaoticInstallation
    engine: EngineInBetween
    book: Book
    ledger: Ledger
    users: tuple[str, ...]
    controller: Daemon
    servers: list[Daemon]
    absences: list[tuple[str, str, str]] = field(
        default_factory=list[tuple[str, str, str]]
    )  # user, from, until
    server_kills: int = 0

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(server.url for server in self.servers)

    @property
    def data(self) -> Path:
        return self.system.root / "ci_jobs.db.data"

    def restart_controller(self) -> None:
        self.controller = self.system.start_controller()

    def restart_server(self, index: int) -> None:
        self.servers[index] = self.system.restart_server(self.servers[index])

    def admin(self, *args: str) -> Done:
        """Return what `ci-admin` did; raises AssertionError if it failed."""
        done = self.system.admin(*args)
        assert done.code == 0, f"ci-admin {args}: {done.code} {done.err}"
        return done

    def containers(self) -> list[tuple[str, str, str]]:
        """Return id, job and attempt of every running container of the system that was assigned a job."""
        instance = self.system.instance_id()
        said = self.system.docker(
            "ps",
            "--no-trunc",
            "--filter",
            f"label=ci.instance={instance}",
            "--filter",
            "label=ci.kind=run",
            "--format",
            "{{.ID}} {{.Names}}",
        )
        return _ASSIGNED.findall(said)

    def still_runs(self) -> None:
        """Nobody ended but whom we ended; raises AssertionError."""
        for daemon in (self.controller, *self.servers):
            assert daemon.running, f"ended by itself with {daemon.process.returncode}: {daemon.tail()}"


class Crew:
    """Threads that work until they are called off; what one of them raises is a problem in the book."""

    def __init__(self, book: Book) -> None:
        self.off = threading.Event()
        self._book = book
        self._threads: list[threading.Thread] = []

    def add(self, name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - told with its thread's name, and the test fails
                self._book.problem(f"{name}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=run, name=name)
        self._threads.append(thread)
        thread.start()

    def end(self) -> None:
        self.off.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def crew(book: Book) -> Generator[Crew]:
    """A crew works while in the block; afterwards everybody has come home."""
    hands = Crew(book)
    try:
        yield hands
    finally:
        hands.end()


def processes_of(root: Path) -> list[str]:
    """Return the command lines of processes whose environment names that directory."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"CI_DB_PATH={root}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def firewall_rules() -> str:
    """Return what the host's packet filters hold, of both families."""
    found = [
        subprocess.run([command], capture_output=True, text=True, check=False).stdout
        for command in ("iptables-save", "ip6tables-save")
    ]
    return "\n".join(found)


def drawn(seed: int, *what: object) -> random.Random:
    """Return a source of chance for one purpose: what others draw does not shift it."""
    return random.Random(f"{seed}:{':'.join(map(str, what))}")
