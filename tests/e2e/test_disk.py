"""Jobs that fill disks, on the real engine: each ends as `disk_limit` and no other job notices. Full disks of ours."""

import http.client
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.docker_cli import docker
from tests.support.eventually import eventually
from tests.support.installation import FIXTURES, Daemon, Installation, make_project
from tests.support.small_disk import fill, small_disk

pytestmark = pytest.mark.docker

MIB = 1024**2
BLOCK = "x = b'x' * 2**20\n"
FOR_EVER = "    print('wrote', flush=True)\n    time.sleep(600)\n"
HOGS = {
    "several files": "    for n in range(50):\n        open(f'/tmp/{n}', 'wb').write(x)\n" + FOR_EVER,
    "one file": "    with open('/tmp/one', 'wb', 0) as f:\n        while True: f.write(x)\n",
}
HIDDEN = {
    "unlinked open file": (
        "    f = open('/tmp/one', 'wb', 0)\n    os.unlink('/tmp/one')\n    for n in range(100): f.write(x)\n"
    ),
    "many inodes": "    for n in range(25_000): open(f'/tmp/{n}', 'w').close()\n",
}
IDLE = "def test_idle():\n    print('idle', flush=True)\n    import time; time.sleep(600)\n"


def _project(path: Path, body: str) -> Path:
    code = f"import os, time\n{BLOCK}def test_x():\n{body}"
    return make_project(path, {"test_x.py": code})


def _printed(system: Installation, server: Daemon, job_id: str, text: bytes) -> None:
    eventually(lambda: text in system.log(server, job_id), what=f"{text!r} in the log", seconds=60)


def _not_done(system: Installation, server: Daemon, job_id: str) -> bool:
    return system.job(server, job_id)["success"] is None


def test_a_job_that_writes_past_its_limit_ends_as_disk_limit(
    installation: Installation, tmp_path: Path
) -> None:
    """Of several files the poll says so; a single one is refused by the kernel, and the verdict says why."""
    system = installation
    system.start_controller(CI_JOB_DISK="32MiB", CI_MAX_RUNNING_JOBS="3")
    server = system.start_server()
    system.wait_ready(server)
    hogs = [system.submit(server, _project(tmp_path / kind, code), "--", "-s") for kind, code in HOGS.items()]
    other = system.submit(server, FIXTURES / "passing")
    for hog in hogs:
        job = system.wait(server, hog)
        assert (job["status"], job["reason"]) == ("failed", "disk_limit"), job
        assert re.fullmatch(r"It wrote [\d.]+ MiB, its limit is 32 MiB\.", job["message"]), job
    assert system.ci(server, "wait", hogs[0]).code == 125
    assert system.wait(server, other)["success"] is True
    eventually(lambda: not system.containers(), what="the removal of every container")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "16m", inodes=1000) as mounted:
        yield mounted


@pytest.mark.timeout(240)
def test_on_a_low_docker_disk_the_job_that_took_most_goes_and_nothing_starts_until_there_is_room(
    installation: Installation, tmp_path: Path, disk: Path
) -> None:
    """First of bytes, then of inodes. The disk that is watched is a small one of this test's own: nobody fills the
    machine's."""
    system = installation
    system.start_controller(
        CI_DOCKER_ROOT=str(disk),
        CI_DISK_MIN_FREE="4MiB",
        CI_MAX_RUNNING_JOBS="2",
        CI_DISK_MIN_FREE_INODES="2",
    )
    server = system.start_server()
    system.wait_ready(server)
    idle = system.submit(server, make_project(tmp_path / "idle", {"test_x.py": IDLE}), "--", "-s")
    _printed(system, server, idle, b"idle")
    for kind, code in HIDDEN.items():
        hog = system.submit(server, _project(tmp_path / kind, code + FOR_EVER), "--", "-s")
        _printed(system, server, hog, b"wrote")
        _run_low(disk, kind)
        _check_blamed(system.wait(server, hog), kind)
        later = system.submit(server, FIXTURES / "passing")
        eventually(lambda: "too little room" in _ready(system, server), what="the note")
        assert _not_done(system, server, idle), "it wrote nothing"
        assert system.job(server, later)["status"] == "queued"
        for file in disk.iterdir():
            file.unlink()
        assert system.wait(server, later)["success"] is True
    assert _not_done(system, server, idle)
    assert system.ci(server, "cancel", idle).code == 0
    assert system.wait(server, idle)["status"] == "cancelled"


def _check_blamed(job: dict[str, Any], kind: str) -> None:
    assert (job["status"], job["reason"]) == ("failed", "disk_limit"), job
    most = r"written most: \d+ MiB" if kind == "unlinked open file" else r"made most files: \d+"
    assert re.fullmatch(rf"The Docker disk ran low: .+ free; this job had {most}\.", job["message"]), job


def _run_low(disk: Path, kind: str) -> None:
    if kind == "unlinked open file":
        fill(disk, leave=MIB)
        return
    for number in range(995):
        (disk / str(number)).touch()


def _ready(system: Installation, server: Daemon) -> str:
    with system.http(server) as client:
        return client.get("/ready").text


def test_a_submission_is_refused_before_it_is_read_and_the_client_says_why(
    installation: Installation, tmp_path: Path
) -> None:
    system = installation
    with small_disk(tmp_path / "data") as data:
        server = system.start_server(CI_DATA_DIR=str(data), CI_SUBMIT_MIN_FREE_BYTES="4000000")
        system.key()
        filler = fill(data, leave=2 * MIB)
        done = system.ci(server, "submit", "test", "--async", project=FIXTURES / "passing")
        assert done.code == 75, done.err
        assert "too little room" in done.err
        assert "operator" in done.err
        status, headers, problem = _announce_upload(server, system.key())
        assert (status, problem["code"]) == (507, "storage_full")
        assert headers["retry-after"]
        assert str(data) not in json.dumps(problem)
        filler.unlink()
        assert system.submit(server, FIXTURES / "passing")


def _announce_upload(server: Daemon, key: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return the answer to a submission of which no byte of the body ever comes."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    try:
        connection.putrequest("POST", "/submit-async")
        connection.putheader("Authorization", f"Bearer {key}")
        connection.putheader("Content-Type", "multipart/form-data; boundary=b")
        connection.putheader("Content-Length", "1000")
        connection.endheaders()
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, headers, json.loads(answer.read())
    finally:
        connection.close()


# -- floods ------------------------------------------------------------------------------------------------

SLACK = 4 * MIB
FLOOD = "    while True: os.write(1, b'all work and no play\\n' * 4096)\n"
LINE = 16 * MIB
LONG_LINE = f"    for n in range({LINE // MIB}): os.write(1, x)\n"


def memory_of(daemon: Daemon) -> int:
    """Return the most bytes of memory the process ever had."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.timeout(240)
def test_an_endless_flood_ends_at_the_cap_and_one_endless_line_is_kept_whole_in_little_memory(
    installation: Installation, tmp_path: Path
) -> None:
    """Rows 38 and 39, small: the long ones are in tests/soak."""
    system = installation
    server, controller = flood_ends_at_the_cap(system, tmp_path, cap=LINE + SLACK, seconds=120)
    before = memory_of(controller)
    job_id = system.submit(server, _project(tmp_path / "line", LONG_LINE), "--", "-s")
    assert system.wait(server, job_id)["success"] is True
    assert b"x" * LINE in system.log(server, job_id)
    assert memory_of(controller) - before < LINE // 2


def flood_ends_at_the_cap(
    system: Installation, tmp_path: Path, *, cap: int, seconds: float
) -> tuple[Daemon, Daemon]:
    """There is a marker, the container is gone, disk was bounded, and the controller stayed small; returns the server
    and the controller."""
    controller = system.start_controller(CI_LOG_LIMIT=str(cap))
    server = system.start_server()
    system.wait_ready(server)
    system.wait(server, system.submit(server, FIXTURES / "passing"))
    before, largest = memory_of(controller), 0
    job_id = system.submit(server, _project(tmp_path / "flood", FLOOD), "--", "-s")

    def ended() -> dict[str, Any] | None:
        nonlocal largest
        largest = max(largest, _engine_log(system))
        job = system.job(server, job_id)
        return job if job["success"] is not None else None

    job = eventually(ended, what="the end of the flood", seconds=seconds)
    assert (job["status"], job["reason"]) == ("failed", "log_limit"), job
    assert cap <= job["log_size"] <= cap + SLACK
    assert b"limit" in _tail(system, server, job_id)
    assert 0 < largest <= 2.5 * cap + SLACK
    assert memory_of(controller) - before < min(64 * MIB, cap // 2)
    eventually(lambda: not system.containers(), what="the removal of every container")
    return server, controller


def _tail(system: Installation, server: Daemon, job_id: str) -> bytes:
    with system.http(server) as client:
        return client.get(f"/jobs/{job_id}/log", headers={"Range": "bytes=-300"}).raise_for_status().content


def _engine_log(system: Installation) -> int:
    """Return the size of the engine's own copies of what this installation's containers print."""
    total = 0
    for container in system.containers():
        path = docker("inspect", "--format", "{{.LogPath}}", container, check=False)
        if path and os.path.exists(path):  # noqa: PTH110 - gone between two looks
            total += _size(path)
    return total


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except FileNotFoundError:
        return 0
