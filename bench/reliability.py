"""`make bench-reliability`: how long recovery takes and what is lost, on the whole real system; prints a table."""

import hashlib
import resource
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx

from bench.claims import claim_latencies
from bench.place import running
from bench.report import Row, main
from tests.support.archives import zip_of
from tests.support.docker_cli import docker
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation, make_project

TICKING = """
import itertools, time

def test_ticks():
    for number in itertools.count():
        print(f"tick {number}", flush=True)
        time.sleep(0.02)
"""
STUBBORN = """
import signal, time

def test_ignores_every_request():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        time.sleep(1)
"""
MUCH_BYTES = 40 * 1024**2
MUCH = f"""
import os

def test_writes_much():
    line = bytes(range(32, 127)) + b"\\n"
    data = line * ({MUCH_BYTES} // len(line))
    view = memoryview(data)
    while view:
        view = view[os.write(1, view[:65536]):]
"""
_MANY = {  # of all that one person and one address may have
    "CI_MAX_STREAMS_PER_USER": "10000",
    "CI_MAX_CONNECTIONS": "10000",
    "CI_MAX_CONNECTIONS_PER_ADDRESS": "10000",
    "CI_MAX_REQUESTS_PER_KEY": "1000000",
    "CI_MAX_REQUESTS_PER_ADDRESS": "1000000",
}
TINY = zip_of({"test_a.py": b"def test_a(): pass\n"})


def submitted(system: Installation, server: Daemon, name: str, code: str, sign: bytes) -> str:
    """A job is under way and has written its sign; returns its id."""
    project = make_project(system.root / name, {"test_it.py": code})
    job_id = system.submit(server, project, "--", "-s")
    eventually(lambda: sign in system.log(server, job_id), seconds=60, what="the job's output")
    return job_id


def take_over(
    system: Installation, server: Daemon, controller: Daemon, rounds: int
) -> tuple[Row, Row, Daemon]:
    """Seconds from `kill -9` of the controller until its successor manages, and how many containers were restarted.

    It manages when the log of the running job grows again: it has taken over, observed and adopted by then.
    """
    job_id = submitted(system, server, "ticking", TICKING, b"tick 3")
    before, seconds = containers(system), list[float]()
    for _ in range(rounds):
        controller.kill()
        size, began = len(system.log(server, job_id)), time.monotonic()
        controller = system.start_controller()
        eventually(lambda size=size: len(system.log(server, job_id)) > size, what="more of the log")
        seconds.append(time.monotonic() - began)
    restarted = len(containers(system) ^ before)
    system.ci(server, "cancel", job_id)
    system.wait(server, job_id)
    return (
        Row("controller `kill -9` → its successor manages again", "s", tuple(seconds)),
        Row(f"containers restarted by {rounds} take-overs", "n", (restarted,)),
        controller,
    )


def containers(system: Installation) -> set[str]:
    """Return id and start of every container: a restart changes it."""
    ids = system.containers()
    return (
        set(docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", *ids).splitlines())
        if ids
        else set()
    )


def cancelling(system: Installation, server: Daemon, code: str, sign: bytes, name: str, rounds: int) -> Row:
    """Seconds from the request until no process of the job is left."""
    seconds: list[float] = []
    for number in range(rounds):
        job_id = submitted(system, server, f"cancelled-{number}", code, sign)
        [container] = system.containers()
        process = Path("/proc") / docker("inspect", "--format", "{{.State.Pid}}", container)
        began = time.monotonic()
        with system.http(server) as http:
            http.delete(f"/jobs/{job_id}").raise_for_status()
        eventually(lambda process=process: not process.exists(), seconds=60, what="the end of the job")
        seconds.append(time.monotonic() - began)
        system.wait(server, job_id)
    return Row(name, "s", tuple(seconds))


def log_completeness(system: Installation, server: Daemon, controller: Daemon) -> tuple[Row, Daemon]:
    """Per cent of what a test wrote that is in the log, in order, although the controller is killed meanwhile."""
    project = make_project(system.root / "much", {"test_it.py": MUCH})
    job_id = system.submit(server, project, "--", "-s")
    for part in (0.1, 0.5):
        eventually(
            lambda part=part: log_size(system, job_id) > part * MUCH_BYTES, seconds=120, what="the log"
        )
        controller.kill()
        controller = system.start_controller()
    assert system.wait(server, job_id, seconds=180)["success"] is True
    log, line = system.log(server, job_id), bytes(range(32, 127)) + b"\n"
    written = line * (MUCH_BYTES // len(line))
    start = log.index(line)
    same = hashlib.sha256(log[start : start + len(written)]).digest() == hashlib.sha256(written).digest()
    share = 100.0 if same else 100 * log.count(line) * len(line) / len(written)
    return Row(
        f"log kept of {MUCH_BYTES // 1024**2} MiB, controller killed twice meanwhile", "%", (share,)
    ), controller


def log_size(system: Installation, job_id: str) -> int:
    sizes = [path.stat().st_size for path in system.root.glob(f"*.data/logs/{job_id}/*.log")]
    return sum(sizes)


def lost_jobs(system: Installation, server: Daemon, rounds: int) -> tuple[Row, Row]:
    """Jobs whose id a client got and that are not in the database, over rounds of `kill -9` of the server."""
    acknowledged: set[str] = set()
    for _ in range(rounds):
        over = threading.Event()
        with ThreadPoolExecutor(4) as clients:
            work = [clients.submit(submit_until, server.url, system.key(), over) for _ in range(4)]
            time.sleep(0.7)  # the moment of the fault
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            over.set()
            for one in work:
                acknowledged |= one.result()
        system.restart_server(server)
        server = system.daemons[-1]
    found = {str(row[0]) for row in system.query("SELECT id FROM jobs")}
    return (
        Row(f"jobs acknowledged during {rounds} times `kill -9` of the server", "n", (len(acknowledged),)),
        Row("… of these lost", "n", (len(acknowledged - found),)),
    )


def submit_until(url: str, key: str, over: threading.Event) -> set[str]:
    """Submit until the server is gone; returns the ids it acknowledged."""
    ids: set[str] = set()
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as http:
        while not over.is_set():
            try:
                answer = http.post("/submit-async", files={"file": TINY})
            except httpx.TransportError:
                break
            if answer.status_code == 200:
                ids.add(answer.json()["job_id"])
    return ids


def idle_readers(system: Installation, server: Daemon, count: int) -> Row:
    """Memory that so many open streams of one queued job cost a server."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with system.http(server) as http, ExitStack() as opened:
        job_id = http.post("/submit-async", files={"file": TINY}).json()["job_id"]
        before = resident(server)
        kept = [http_stream(system, server, job_id, opened) for _ in range(count)]
        grown = resident(server) - before
        assert len(kept) == count
    return Row(f"server memory for {count} idle stream readers", "MB", (grown,))


def http_stream(system: Installation, server: Daemon, job_id: str, opened: ExitStack) -> Iterator[bytes]:
    """A stream is open until `opened` is left, and has said something; it closes when nobody keeps what is returned."""
    client = opened.enter_context(system.http(server))  # each with a connection of its own
    response = opened.enter_context(client.stream("GET", f"/jobs/{job_id}/stream"))
    response.raise_for_status()
    pieces = response.iter_raw()
    next(pieces)
    return pieces


def resident(daemon: Daemon) -> float:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def measure(rounds: int) -> list[Row]:
    """Return every row, from one run."""
    rows: list[Row] = []
    with running() as (system, controller, server):
        manages, restarts, controller = take_over(system, server, controller, rounds)
        rows += [manages, restarts]
        polite = "cancel → the job's processes are gone, a test that listens"
        rows.append(cancelling(system, server, TICKING, b"tick 3", polite, rounds))
        deaf = "cancel → the job's processes are gone, a test that ignores signals (grace 15 s)"
        rows.append(cancelling(system, server, STUBBORN, b"ready", deaf, 2))
        kept, controller = log_completeness(system, server, controller)
        rows.append(kept)
        controller.terminate()
        rows += lost_jobs(system, server, rounds)
        rows.append(idle_readers(system, system.start_server(workers=1, **_MANY), 2_000))
    return [*rows, *claim_latencies()]


if __name__ == "__main__":
    main(__doc__, measure)
