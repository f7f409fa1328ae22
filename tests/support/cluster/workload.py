"""Small jobs whose verdict and log are known beforehand, and what is wrong with how they ended."""

import hashlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.cluster.cluster import Cluster
from tests.support.handing_in import hand_in
from tests.support.installation import Installation, Served, make_project
from tests.support.outcomes import final_events

LINES: Final = 500
_PASSING: Final = "def test_sum():\n    assert 1 + 1 == 2\n"
_FAILING: Final = "def test_sum():\n    assert 1 + 1 == 3\n"
_TALKING: Final = f"""
def test_talks(capfd):
    with capfd.disabled():
        for n in range({LINES}):
            print("line", n, "of", {LINES}, "\\u00e4" * 20)
"""
# Runs until the file appears that a test puts into its container, and says something all the time.
_WAITING: Final = """
import os, time

def test_waits(capfd):
    with capfd.disabled():
        n = 0
        print("still here", n, flush=True)
        while not os.path.exists("/tmp/enough"):
            n += 1
            print("still here", n, flush=True)
            time.sleep(0.05)
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A project of one test."""

    name: str
    code: str
    reason: str | None = None  # of its verdict; None: it passes
    says: tuple[bytes, ...] = ()  # in this order, each once

    def project(self, root: Path) -> Path:
        """Return a folder below that one, with the project in it."""
        return make_project(root / self.name, {"requirements.txt": "pytest\n", "test_it.py": self.code})


PASSING: Final = Kind("passing", _PASSING, says=(b"1 passed",))
FAILING: Final = Kind("failing", _FAILING, "tests_failed", (b"1 failed",))
TALKING: Final = Kind(
    "talking", _TALKING, says=tuple(f"line {n} of {LINES} {'ä' * 20}\n".encode() for n in range(LINES))
)
WAITING: Final = Kind("waiting", _WAITING, says=(b"still here 0\n", b"1 passed"))
MIXED: Final = (PASSING, PASSING, TALKING, PASSING, FAILING)


@dataclass(frozen=True, slots=True)
class Handed:
    """A job that the servers have, and of which kind it is."""

    job_id: str
    kind: Kind
    user: str = "ada"


def handed_in(system: Installation, server: Served, kind: Kind, user: str = "ada") -> Handed:
    """The server has a job of that kind."""
    project = kind.project(system.root / "projects")
    return Handed(hand_in(system, server, project, user=user), kind, user)


def wrong(cluster: Cluster, jobs: Iterable[Handed]) -> list[str]:
    """Return what is wrong with jobs that should have ended; nothing: each has its one verdict and its whole log.

    Both replicas are asked for the log, and the database past our own code for everything else.
    """
    return [f"{job.kind.name} {job.job_id}: {one}" for job in jobs for one in _wrong_with(cluster, job)]


def _wrong_with(cluster: Cluster, job: Handed) -> Generator[str]:
    found = cluster.system.query(
        "SELECT status, reason, attempt, log_size, log_sha256, log_truncated FROM jobs WHERE id = ?",
        job.job_id,
    )
    if not found:
        yield "it is lost"
        return
    status, reason, attempt, size, digest, truncated = found[0]
    if (status, reason) != ("completed", job.kind.reason):
        yield f"{status} {reason}, not completed {job.kind.reason}"
        return
    yield from _wrong_with_attempts(cluster.system, job.job_id, attempt)
    for replica in cluster.replicas:
        log = cluster.system.log(replica, job.job_id, job.user)
        if (len(log), hashlib.sha256(log).hexdigest(), truncated) != (size, digest, 0):
            yield f"{replica.name} has another log than was sealed: {len(log)} bytes, not {size}"
        if not _says_in_order(log, job.kind.says):
            yield f"{replica.name} does not have what the tests said, once and in order"


def _wrong_with_attempts(system: Installation, job_id: str, last: int) -> Generator[str]:
    """Every attempt but the last was lost with its agent, or given back before any test began; the job ended once."""
    attempts = system.query(
        "SELECT number, reason, begun_at IS NULL, ended_at IS NULL FROM attempts WHERE job_id = ? ORDER BY number",
        job_id,
    )
    numbers = [number for number, *_ in attempts]
    excused = [reason == "agent_lost" or (reason == "infra" and idle) for _, reason, idle, _ in attempts[:-1]]
    if numbers != list(range(1, last + 1)) or not all(excused) or any(is_open for *_, is_open in attempts):
        yield f"its attempts are {attempts}"
    if len(ends := final_events(system, job_id)) != 1:
        yield f"it ended {len(ends)} times: {ends}"


def _says_in_order(log: bytes, words: Iterable[bytes]) -> bool:
    place = 0
    for word in words:
        place = log.find(word, place)
        if place < 0 or log.count(word) != 1:
            return False
        place += len(word)
    return True
