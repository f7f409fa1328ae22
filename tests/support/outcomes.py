"""What must hold of jobs whatever happened to the processes around them, looked up past our own code."""

import hashlib
import subprocess
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci_controller.labels import INSTANCE
from tests.support.eventually import eventually
from tests.support.installation import Installation, Served

FINAL = ("completed", "failed", "cancelled", "dead_lettered")


@dataclass
class Starts:
    """Every start of a container of one installation, as the host's engine told of it."""

    log: Path
    containers: list[str] = field(default_factory=list[str])  # by id; once for each start


@contextmanager
def recorded_starts(system: Installation, log: Path) -> Generator[Starts]:
    """Starts are recorded from now on; they stand in `containers` behind the context."""
    starts = Starts(log)
    command = ["docker", "events", "--since", str(int(time.time())), "--format", "{{.ID}}"]
    for wanted in ("type=container", "event=start", f"label={INSTANCE}={system.instance_id()}"):
        command += ["--filter", wanted]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output) as events:
        try:
            yield starts
        finally:
            events.terminate()
            events.wait(timeout=30)
    starts.containers = log.read_text().split()


def check_no_container_restarted(starts: Starts) -> None:
    again = [container for container, times in Counter(starts.containers).items() if times > 1]
    assert again == [], f"started more than once: {again}"


def final_events(system: Installation, job_id: str) -> list[str]:
    """Return the events that end a job, of which it must have one."""
    sql = f"SELECT type FROM job_events WHERE job_id = ? AND type IN {FINAL}"
    return [name for (name,) in system.query(sql, job_id)]


def until_ended(system: Installation, *jobs: str, seconds: float = 90) -> None:
    """The jobs have ended; the database is asked, which costs the machine less than asking a server."""
    eventually(lambda: not set(jobs) & set(open_jobs(system)), seconds=seconds, what=f"the end of {jobs}")


def until_printed(system: Installation, job_id: str, text: bytes, seconds: float = 60) -> None:
    """That text stands in the log of some attempt of the job."""
    eventually(lambda: ran(system, job_id, text), seconds=seconds, what=f"{text!r} in the log of {job_id}")


def begun(system: Installation, job_id: str) -> list[str | None]:
    """Return how the attempts ended in which the user's code ran; None is a verdict of the tests themselves."""
    sql = "SELECT reason FROM attempts WHERE job_id = ? AND begun_at IS NOT NULL ORDER BY number"
    return [reason for (reason,) in system.query(sql, job_id)]


def open_jobs(system: Installation) -> list[str]:
    return [job_id for (job_id,) in system.query("SELECT id FROM jobs WHERE end_time IS NULL")]


def ran(system: Installation, job_id: str, text: bytes) -> int:
    """Return how often that text stands in the logs of all attempts of a job."""
    return sum(path.read_bytes().count(text) for path in logs_of(system, job_id))


def logs_of(system: Installation, job_id: str) -> list[Path]:
    return sorted(system.root.glob(f"*.data/logs/{job_id}/*.log"))


def check_log(system: Installation, server: Served, job_id: str, user: str = "ada") -> bytes:
    """The log is what its row says of it, byte for byte; returns it."""
    log = system.log(server, job_id, user)
    [(size, digest)] = system.query("SELECT log_size, log_sha256 FROM jobs WHERE id = ?", job_id)
    assert (size, digest) == (len(log), hashlib.sha256(log).hexdigest()), job_id
    return log


def check_one_end(system: Installation, job_id: str) -> None:
    """The job came to one end, and no attempt of it is open."""
    assert len(final_events(system, job_id)) == 1, final_events(system, job_id)
    still_open = "SELECT number FROM attempts WHERE job_id = ? AND ended_at IS NULL"
    assert system.query(still_open, job_id) == []


def check_all_removed(system: Installation) -> None:
    eventually(lambda: not system.containers(), what="the removal of every container")


def snapshot(system: Installation) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row about jobs, but for the controller's heartbeat."""
    tables = {"jobs": "id", "attempts": "job_id, number", "job_events": "job_id, position"}
    rows = {name: system.query(f"SELECT * FROM {name} ORDER BY {order}") for name, order in tables.items()}
    return {**rows, "controller": system.query("SELECT epoch, holder FROM controller")}
