"""`kill -9` of controller and server, again and again, while jobs are submitted, run and are cancelled.

Whenever it strikes: an acknowledged job is there exactly once, comes to the one right verdict, ran once, and its
log has every byte.
"""

import hashlib
import io
import random
import sys
import threading
import time
import zipfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import httpx

from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation
from tests.support.outcomes import (
    begun,
    check_all_removed,
    check_log,
    check_no_container_restarted,
    check_one_end,
    logs_of,
    open_jobs,
    ran,
    recorded_starts,
)

# Writes until it is told to end, by a file that is put into its container, and then says what it wrote.
CODE = """
import hashlib, itertools, os, time

def test_writes():
    written = hashlib.sha256()
    def write(data):
        os.write(1, data)
        written.update(data)
    for number in itertools.count():
        write(f"WORD line {number} é\\n".encode())
        if os.path.exists("/tmp/enough"):
            break
        time.sleep(0.1)
    write(bytes(range(256)) * 40)
    os.write(1, f"WORD wrote {written.hexdigest()}\\n".encode())
    END
"""
# How its test ends, the status and the reason that follow; by turns.
KINDS = {
    "passes": ("pass", "completed", None),
    "fails": ("assert False", "completed", "tests_failed"),
    "is cancelled": ("pass", "cancelled", "cancelled"),
}
TURNS = [
    "passes",
    "fails",
    "passes",
    "passes",
    "is cancelled",
    "passes",
    "fails",
    "passes",
    "passes",
    "passes",
]
CONTROLLER, SERVER = "controller", "server"
# Who is killed, again and again in this order; whether each job is known to run then, or some begin and end.
STRIKES = (
    ({CONTROLLER, SERVER}, False),
    ({CONTROLLER}, True),
    ({SERVER}, True),
    ({CONTROLLER, SERVER}, True),
    ({CONTROLLER}, False),
    ({CONTROLLER, SERVER}, False),
)
RELEASED = 5  # jobs that come to their end around a kill


@dataclass(frozen=True)
class Wave:
    """How much is done to how many."""

    rounds: int
    jobs: int  # that run at a time, and in all unless `endless`
    seed: int
    longest_pause: float = 1.5
    endless: bool = False  # whatever ended is replaced by another, as long as there are rounds


@dataclass
class Acknowledged:
    """Jobs that got an id: their kinds, in the order of their submission."""

    kinds: dict[str, str] = field(default_factory=dict[str, str])
    words: dict[str, str] = field(default_factory=dict[str, str])


@dataclass
class Loop:
    """The system, its two processes that are killed, and what is known of its jobs."""

    system: Installation
    wave: Wave
    chance: random.Random
    controller: Daemon
    server: Daemon
    acknowledged: Acknowledged = field(default_factory=Acknowledged)
    seen: set[str] = field(default_factory=set[str])  # jobs whose tests have begun to write
    released: set[str] = field(default_factory=set[str])  # that were told to end, or cancelled

    @property
    def settings(self) -> dict[str, str]:
        # One attempt: a job whose tests were lost once would be dead-lettered, and seen.
        return {"CI_MAX_RUNNING_JOBS": str(self.wave.jobs), "CI_MAX_ATTEMPTS": "1"}

    def strike(self, victims: set[str], *, all_run: bool) -> None:
        """The victims were killed and others are in their place."""
        if all_run:
            eventually(
                self.all_run, seconds=60 + 5 * self.wave.jobs, what="as many running jobs as there may be"
            )
        else:
            self.release(RELEASED)
            # Not a wait for anything: when it strikes is the fault.
            time.sleep(self.chance.uniform(0.05, self.wave.longest_pause))
        if CONTROLLER in victims:
            self.controller.kill()
        if SERVER in victims:
            self.server.kill()
            self.server = self.system.restart_server(self.server)
        if CONTROLLER in victims:
            # One in five may be killed on the way, if the next kill does not need to meet one that leads.
            self.succeed(wait=all_run or self.chance.random() < 0.8)

    def succeed(self, *, wait: bool) -> None:
        """Another controller was started, and has taken over if that is waited for."""
        [(before,)] = self.system.query("SELECT epoch FROM controller")
        self.controller = self.system.start_controller(**self.settings)
        if wait:
            eventually(
                lambda: self.system.query("SELECT epoch FROM controller") > [(before,)], what="the take-over"
            )

    def running(self) -> list[str]:
        """Return the jobs whose tests write and were not told to end."""
        open_now = [job_id for job_id in open_jobs(self.system) if job_id in self.acknowledged.kinds]
        for job_id in open_now:
            if job_id not in self.seen and ran(self.system, job_id, self.first_line(job_id)):
                self.seen.add(job_id)
        return [job_id for job_id in open_now if job_id in self.seen - self.released]

    def all_run(self) -> bool:
        """Whether every slot is taken by a job that writes."""
        return len(self.running()) == self.wave.jobs

    def first_line(self, job_id: str) -> bytes:
        return f"{self.acknowledged.words[job_id]} line 0 ".encode()

    def release(self, count: int) -> None:
        """So many of the running jobs were told to end, or cancelled if that is their kind."""
        running = self.running()
        for job_id in self.chance.sample(running, min(count, len(running))):
            self.released.add(job_id)
            if self.acknowledged.kinds[job_id] == "is cancelled":
                until_answered(self.system, self.server, "DELETE", f"/jobs/{job_id}").raise_for_status()
            else:
                self.system.tell(container_of(self.system, job_id))

    def finish(self) -> None:
        """Every job was released once it ran, and has ended."""

        def none_is_open() -> bool:
            self.release(self.wave.jobs)
            return not open_jobs(self.system)

        eventually(none_is_open, seconds=60 + 5 * self.wave.jobs, what="the end of every job")


def survive(system: Installation, wave: Wave) -> None:
    """What the module says holds; the seed is printed."""
    sys.stdout.write(f"kill loop: seed {wave.seed}\n")
    server = system.start_server()
    settings = {"CI_MAX_RUNNING_JOBS": str(wave.jobs), "CI_MAX_ATTEMPTS": "1"}
    loop = Loop(system, wave, random.Random(wave.seed), system.start_controller(**settings), server)
    system.wait_ready(server)
    with recorded_starts(system, system.root / "starts") as starts:
        with submitting(loop):
            for victims, all_run in islice(cycle(STRIKES), wave.rounds):
                loop.strike(victims, all_run=all_run)
        loop.finish()
        check_all_removed(system)
    check_no_container_restarted(starts)
    check_every_job(system, loop.server, loop.acknowledged)
    check_it_struck(system)


def container_of(system: Installation, job_id: str) -> str:
    sql = "SELECT container_id FROM attempts WHERE job_id = ? ORDER BY number DESC LIMIT 1"
    [(container,)] = system.query(sql, job_id)
    return container


@contextmanager
def submitting(loop: Loop) -> Generator[None]:
    """Jobs are submitted meanwhile; behind the context each of them was acknowledged."""
    system, wave, server = loop.system, loop.wave, loop.server  # its successors have its address
    enough = threading.Event()

    def work() -> None:
        for number in range(10**6 if wave.endless else wave.jobs):
            while len(open_jobs(system)) >= wave.jobs and not enough.wait(0.1):
                pass
            if wave.endless and enough.is_set():
                return
            submit(system, server, number, loop.acknowledged)

    system.key()
    with ThreadPoolExecutor(1, "submitter") as threads:
        submitter = threads.submit(work)
        try:
            yield
        finally:
            enough.set()
        submitter.result()


def submit(system: Installation, server: Daemon, number: int, acknowledged: Acknowledged) -> None:
    kind = TURNS[number % len(TURNS)]
    word = f"job-{number}"
    code = CODE.replace("WORD", word).replace("END", KINDS[kind][0])
    job_id = until_answered(
        system,
        server,
        "POST",
        "/submit-async",
        files={"file": zipped({"test_it.py": code})},
        data={"pytest_args": "-s"},
        headers={"Idempotency-Key": word},
    ).json()["job_id"]
    acknowledged.words[job_id] = word
    acknowledged.kinds[job_id] = kind


def until_answered(
    system: Installation, server: Daemon, method: str, path: str, **request: object
) -> httpx.Response:
    """Ask again, as `ci` does, until a server that lives long enough has answered."""

    def answer() -> httpx.Response | None:
        try:
            with system.http(server) as http:
                response = http.request(method, path, **request)  # pyright: ignore[reportArgumentType]
        except httpx.TransportError:
            return None
        return response if response.status_code < 500 else None

    return eventually(answer, seconds=120, what=f"an answer to {path}")


def zipped(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def check_every_job(system: Installation, server: Daemon, acknowledged: Acknowledged) -> None:
    found = [job_id for (job_id,) in system.query("SELECT id FROM jobs ORDER BY id")]
    assert found == sorted(acknowledged.kinds), "every acknowledged job is there once, and no other"
    for job_id, kind in acknowledged.kinds.items():
        check_job(system, server, job_id, kind, acknowledged.words[job_id])


def check_job(system: Installation, server: Daemon, job_id: str, kind: str, word: str) -> None:
    _, status, reason = KINDS[kind]
    job = system.job(server, job_id)
    assert (job["status"], job["reason"]) == (status, reason), job
    check_one_end(system, job_id)
    times = ran(system, job_id, f"{word} line 0 ".encode())
    charged = begun(system, job_id)
    assert (charged, times) == ([reason], 1), (
        f"{word} ran once: {charged}, {times}, {logs_of(system, job_id)}"
    )
    log = check_log(system, server, job_id)
    if kind == "is cancelled":  # in the middle of what it writes
        return
    start, end = log.index(f"{word} line 0 ".encode()), log.index(f"{word} wrote ".encode())
    digest = hashlib.sha256(log[start:end]).hexdigest()
    assert log[end:].startswith(f"{word} wrote {digest}\n".encode()), f"{word} wrote something else"


def check_it_struck(system: Installation) -> None:
    """Some container outlived its controller: otherwise nothing was shown."""
    logs = [path.read_text(errors="replace") for path in Path(system.root).glob("controller-*.log")]
    assert any("nobody reads its output" in text for text in logs[1:]), "no running job was ever struck"
