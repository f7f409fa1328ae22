"""`kill -9` of controller and server, again and again, while jobs are submitted, run and are cancelled.

Whenever it strikes: an acknowledged job is there exactly once, comes to the one right verdict, ran once, and its
log has every byte.
"""

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

LINES = 20
BINARY = bytes(range(256)) * 40
CODE = f"""
import os, time

def test_writes():
    for number in range({LINES}):
        os.write(1, f"WORD line {{number}} é\\n".encode())
        time.sleep(0.05)
    os.write(1, bytes(range(256)) * 40)
    END
"""
# How its test ends, the status and the reason that follow; by turns.
KINDS = {
    "passes": ("pass", "completed", None),
    "fails": ("assert False", "completed", "tests_failed"),
    "is cancelled": ("time.sleep(600)", "cancelled", "cancelled"),
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


@dataclass(frozen=True)
class Wave:
    """How much is done to how many."""

    rounds: int
    jobs: int  # that are open at a time, and in all unless `endless`
    slots: int
    seed: int
    longest_pause: float = 1.5
    endless: bool = False  # whatever ended is replaced by another, as long as there are rounds


@dataclass
class Acknowledged:
    """Jobs that got an id: their kinds, in the order of their submission."""

    kinds: dict[str, str] = field(default_factory=dict[str, str])
    words: dict[str, str] = field(default_factory=dict[str, str])

    def of_kind(self, kind: str) -> list[str]:
        return [job_id for job_id, its in tuple(self.kinds.items()) if its == kind]


def survive(system: Installation, wave: Wave) -> None:
    """What the module says holds; the seed is printed."""
    sys.stdout.write(f"kill loop: seed {wave.seed}\n")
    chance = random.Random(wave.seed)
    # One attempt: a job whose tests were lost once would be dead-lettered, and seen.
    settings = {"CI_MAX_RUNNING_JOBS": str(wave.slots), "CI_MAX_ATTEMPTS": "1"}
    controller = system.start_controller(**settings)
    server = system.start_server()
    system.wait_ready(server)
    acknowledged = Acknowledged()
    cancelled: set[str] = set()
    with recorded_starts(system, system.root / "starts") as starts:
        with submitting(system, server, wave, acknowledged):
            for _ in range(wave.rounds):
                # Not a wait for anything: when it strikes is the fault.
                time.sleep(chance.uniform(0.05, wave.longest_pause))
                victims = chance.choice(("controller", "server", "both"))
                if victims != "server":
                    controller.kill()
                if victims != "controller":
                    server.kill()
                    server = system.restart_server(server)
                if victims != "server":
                    controller = successor(system, settings, chance)
                cancel_all(system, server, acknowledged.of_kind("is cancelled"), cancelled)
        cancel_all(system, server, acknowledged.of_kind("is cancelled"), cancelled)
        eventually(lambda: not open_jobs(system), seconds=60 + 5 * wave.jobs, what="the end of every job")
        check_all_removed(system)
    check_no_container_restarted(starts)
    check_every_job(system, server, acknowledged)
    check_it_struck(system)


def successor(system: Installation, settings: dict[str, str], chance: random.Random) -> Daemon:
    """A controller has taken over; one in five may be killed on the way."""
    [(before,)] = system.query("SELECT epoch FROM controller")
    started = system.start_controller(**settings)
    if chance.random() < 0.2:
        return started
    eventually(lambda: system.query("SELECT epoch FROM controller") > [(before,)], what="the take-over")
    return started


@contextmanager
def submitting(
    system: Installation, server: Daemon, wave: Wave, acknowledged: Acknowledged
) -> Generator[None]:
    """Jobs are submitted meanwhile; behind the context each of them was acknowledged."""
    enough = threading.Event()

    def work() -> None:
        for number in range(10**6 if wave.endless else wave.jobs):
            while len(open_jobs(system)) >= wave.jobs and not enough.wait(0.1):
                pass
            if wave.endless and enough.is_set():
                return
            submit(system, server, number, acknowledged)

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


def cancel_all(system: Installation, server: Daemon, jobs: list[str], done: set[str]) -> None:
    for job_id in jobs:
        if job_id not in done:
            until_answered(system, server, "DELETE", f"/jobs/{job_id}").raise_for_status()
            done.add(job_id)


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
    if kind == "is cancelled":  # perhaps before its turn came
        assert (len(charged) <= 1, times <= 1) == (True, True), (charged, times)
        return
    assert (charged, times) == ([reason], 1), (
        f"{word} ran once: {charged}, {times}, {logs_of(system, job_id)}"
    )
    log = check_log(system, server, job_id)
    wanted = expected(word)
    start = log.index(f"{word} line 0 ".encode())
    assert log[start : start + len(wanted)] == wanted


def expected(word: str) -> bytes:
    """Return what the test writes, to the byte."""
    return b"".join(f"{word} line {number} é\n".encode() for number in range(LINES)) + BINARY


def check_it_struck(system: Installation) -> None:
    """Some container outlived its controller: otherwise nothing was shown."""
    logs = [path.read_text(errors="replace") for path in Path(system.root).glob("controller-*.log")]
    assert any("nobody reads its output" in text for text in logs[1:]), "no running job was ever struck"
