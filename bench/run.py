"""`make bench`: the whole system against `docker run`, alternating, in one go; prints a table and JSON."""

import io
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from bench.report import Row, main
from tests.support.docker_cli import RUNNER_IMAGE
from tests.support.installation import Daemon, Installation, make_project

TINY = Path(__file__).parent / "projects" / "tiny"
# What a person would type to get the same: fresh container, dependencies by uv, then pytest.
DOCKER_RUN = "tar -x -C /workspace && uv pip install -q -r requirements.txt && python -m pytest -q"
LATENCY_PROJECT = """
import sys, time

def test_prints_the_time():
    for _ in range(200):
        sys.stdout.write(f"@{time.time():.6f}\\n")
        sys.stdout.flush()
        time.sleep(0.01)
"""


def milliseconds(action: Callable[[], None]) -> float:
    """Return how long the action took."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def packed(project: Path) -> bytes:
    """Return the project as a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(project.glob("*.*")):
            tar.add(path, path.name)
    return buffer.getvalue()


def docker_run(tree: bytes, script: str) -> None:
    """Run the script in a fresh container of the runner image, the tree on its standard input."""
    command = ["docker", "run", "--rm", "-i", RUNNER_IMAGE, "sh", "-ec", script]
    subprocess.run(command, input=tree, check=True, capture_output=True)


def submit(system: Installation, server: Daemon) -> None:
    done = system.ci(server, "submit", "test", project=TINY)
    assert done.code == 0, done.text + done.err


def whole_command(system: Installation, server: Daemon, rounds: int) -> Row:
    """`ci submit test` of the tiny project against `docker run` of the same work, alternating."""
    tree = packed(TINY)
    docker_run(tree, DOCKER_RUN)
    submit(system, server)
    ours: list[float] = []
    floor: list[float] = []
    for _ in range(rounds):
        floor.append(milliseconds(lambda: docker_run(tree, DOCKER_RUN)))
        ours.append(milliseconds(lambda: submit(system, server)))
    return Row(
        "`ci submit test`, tiny project, whole command",
        "ms",
        tuple(ours),
        "`docker run`, uv + pytest",
        tuple(floor),
    )


def submit_to_started(system: Installation, server: Daemon, rounds: int) -> Row:
    """Job accepted until its container was started, against starting one by `docker run`."""
    ours: list[float] = []
    floor: list[float] = []
    for _ in range(rounds):
        floor.append(milliseconds(lambda: docker_run(b"", "true")))
        job = system.wait(server, system.submit(server, TINY))
        waited = datetime.fromisoformat(job["start_time"]) - datetime.fromisoformat(job["created_at"])
        ours.append(waited.total_seconds() * 1000)
    return Row("accepted → container started", "ms", tuple(ours), "`docker run … true`", tuple(floor))


def line_latency(system: Installation, server: Daemon, project: Path) -> Row:
    """A test prints the time; how much later does the client print that line?"""
    process = system.spawn_ci(server, "submit", "test", "--", "-s", project=project)
    assert process.stdout is not None
    late = [(time.time() - float(line[1:])) * 1000 for line in process.stdout if line.startswith(b"@")]
    process.communicate()
    assert process.returncode == 0
    return Row("a test prints → the client prints", "ms", tuple(late))


def memory(name: str, daemon: Daemon) -> Row:
    """Resident memory of a process after all of the above."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return Row(f"memory of the {name}", "MB", (kilobytes / 1024,))


@contextmanager
def running() -> Generator[tuple[Installation, Daemon, Daemon]]:
    """A CI system of our own runs; yields it, its controller and its server."""
    with tempfile.TemporaryDirectory() as root:
        system = Installation(Path(root), prefix="bench-")
        try:
            controller = system.start_controller()
            server = system.start_server()
            system.wait_ready(server)
            yield system, controller, server
        finally:
            system.stop()


def measure(rounds: int) -> list[Row]:
    """Return every row, from one run."""
    with running() as (system, controller, server):
        project = make_project(system.root / "latency", {"test_time.py": LATENCY_PROJECT})
        return [
            whole_command(system, server, rounds),
            submit_to_started(system, server, rounds),
            line_latency(system, server, project),
            memory("controller", controller),
            memory("server", server),
        ]


if __name__ == "__main__":
    main(__doc__, measure)
