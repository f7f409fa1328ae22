"""Whatever is wrong with what comes in or with what is around: one clear sentence, the right code, nothing lost."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ci_common.api_keys import generate_api_key
from ci_common.errors import errors_by_code
from tests.support import plain_http
from tests.support.archives import HOSTILE, zip_of
from tests.support.eventually import eventually
from tests.support.handing_in import cancel, hand_in
from tests.support.installation import FIXTURES, Daemon, Installation, make_project
from tests.support.plain_http import NO_TLS
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.docker
Shared = tuple[Installation, Daemon]

BAD_DATA = 65
NO_SUCH_JOB = 66
UNAVAILABLE = 69
BUSY = 75
NOT_ALLOWED = 77
USAGE = 64

UNKNOWN_JOB = "00000000-0000-4000-8000-000000000000"

# What it is in HOSTILE -> what its refusal says.
ARCHIVES = {
    "nothing at all": "zip",
    "text": "zip",
    "no entries": "no files",
    "only directories": "no files",
    "parent": "../evil",
    "parent inside": "a/../../evil",
    "absolute": "/etc/passwd",
    "symlink": "link",
    "duplicate": "a.txt",
    "overlapping": "overlap",
    "encrypted": "encrypted",
    "bomb": "a.txt",
    "wrong checksum": "a.txt",
    "larger than declared": "a.txt",
}


# -- archives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["/submit", "/submit-stream", "/submit-async"])
def test_every_hostile_archive_is_refused_by_its_rule_and_leaves_nothing(shared: Shared, route: str) -> None:
    system, server = shared
    with system.http(server) as http:
        jobs, files = http.get("/jobs").json(), _archives(system)
        for what, said in ARCHIVES.items():
            archive, rule = HOSTILE[what]
            problem = _problem(http.post(route, files={"file": archive}), 422, "invalid_archive")
            assert problem["rule"] == rule, what
            assert said in problem["detail"], (what, problem)
        assert http.get("/jobs").json() == jobs
    assert _archives(system) <= files


def test_a_form_without_a_file_is_refused(shared: Shared) -> None:
    system, server = shared
    with system.http(server) as http:
        problem = _problem(http.post("/submit-async", files={"other": b"x"}), 422, "invalid_request")
        assert "'file'" in problem["detail"]
        _problem(http.post("/submit-async", content=b"PK"), 422, "invalid_request")


def test_an_upload_over_a_limit_is_refused_by_the_limit(installation: Installation, tmp_path: Path) -> None:
    system, limit, unpacked = installation, 100_000, 60_000
    system.key()
    server = system.start_server(CI_MAX_UPLOAD_BYTES=str(limit), CI_ARCHIVE_MAX_BYTES=str(unpacked))
    for size, said in ((4 * limit, str(limit)), (unpacked + 1000, str(unpacked))):
        project = make_project(tmp_path / str(size), {"test_a.py": "", "data": os.urandom(size)})
        done = system.ci(server, "submit", "test", project=project)
        assert (done.code, done.out) == (BAD_DATA, b""), done.err
        assert said in _one_sentence(done.err)
    with system.http(server) as http:
        large = zip_of({"data": os.urandom(2 * limit)})
        _problem(http.post("/submit-async", files={"file": large}), 413, "archive_too_large")
        chunked = {"Content-Type": "multipart/form-data; boundary=b"}
        body = http.post("/submit-async", headers=chunked, content=_form_in_pieces(large))
        _problem(body, 413, "archive_too_large")
        assert http.get("/jobs").json() == []
    assert _archives(system) == set()


def _form_in_pieces(archive: bytes) -> Iterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="p.zip"\r\n\r\n'
    yield from (archive[at : at + 10_000] for at in range(0, len(archive), 10_000))
    yield b"\r\n--b--\r\n"


# -- projects ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [{}, {"README.md": "hello\n"}], ids=["empty", "no Python"])
def test_what_is_no_project_is_told_before_anything_is_sent(
    shared: Shared, tmp_path: Path, files: dict[str, str | bytes]
) -> None:
    system, server = shared
    project = make_project(tmp_path / "p", files)
    project.mkdir(exist_ok=True)
    before = _jobs(system, server)
    done = system.ci(server, "submit", "test", project=project)
    assert (done.code, done.out) == (USAGE, b""), done.err
    assert "root of a Python project" in _one_sentence(done.err)
    assert _jobs(system, server) == before


# -- keys ----------------------------------------------------------------------------------------------


def test_a_wrong_or_malformed_key_is_77_and_says_where_keys_come_from(shared: Shared) -> None:
    system, server = shared
    wrong, listing = generate_api_key(), ("list", "--json")
    for key, more, command in (
        (wrong, "", ("submit", "test")),
        (wrong, "", ("status", UNKNOWN_JOB)),
        (system.key()[:-1], "well formed", listing),
        ("ci_é", "", listing),
    ):
        done = system.ci(server, *command, "--api-key", key, project=FIXTURES / "passing")
        assert (done.code, done.out) == (NOT_ALLOWED, b""), (key, command, done.err)
        assert "key" in _one_sentence(done.err)
        assert more in done.err
        assert key not in done.err


def test_no_key_at_all_is_77_and_says_how_to_give_one(shared: Shared) -> None:
    system, server = shared
    environment = {**system.environment(), "CI_SERVER_URL": server.url}
    command = [Path(sys.executable).parent / "ci", "list"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == NOT_ALLOWED, done.stderr
    assert "CI_API_KEY" in _one_sentence(done.stderr)
    anonymous = plain_http.get(f"{server.url}/jobs")
    _problem(anonymous, 401, "unauthorized")
    assert anonymous.headers["www-authenticate"].startswith("Bearer")


def test_a_revoked_key_is_77_with_the_next_request(shared: Shared) -> None:
    system, server = shared
    system.key("eve")
    issued = system.admin("key", "create", "--email", "eve@example.org", "--name", "lost", "--json")
    key, key_id = re.findall(r'"(?:api_key|id)": "([^"]+)"', issued.text)
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, verify=NO_TLS) as http:
        assert http.get("/jobs").status_code == 200
        assert system.admin("key", "revoke", key_id).code == 0
        _problem(http.get("/jobs"), 401, "unauthorized")
    done = system.ci(server, "list", "--json", "--api-key", key)
    assert (done.code, done.out) == (NOT_ALLOWED, b""), done.err
    assert "key" in _one_sentence(done.err)
    with system.http(server, "eve") as http:
        assert http.get("/jobs").status_code == 200, "her other key is as good as before"


# -- jobs ----------------------------------------------------------------------------------------------


def test_a_foreign_job_and_an_unknown_one_are_66_alike(shared: Shared) -> None:
    system, server = shared
    foreign = hand_in(system, server, FIXTURES / "passing")
    asked = [("wait", UNKNOWN_JOB), *((command, foreign) for command in ("wait", "status", "logs", "cancel"))]
    said: set[str] = set()
    for command, job_id in asked:
        done = system.ci(server, command, job_id, user="eve")
        assert (done.code, done.out) == (NO_SUCH_JOB, b""), done.err
        said.add(_one_sentence(done.err).replace(job_id, "ID"))
    assert len(said) == 1, said
    assert system.ci(server, "status", "no/such?job", user="eve").code == NO_SUCH_JOB
    assert system.wait(server, foreign)["success"] is True, "nobody else's request touched it"


# -- what is around --------------------------------------------------------------------------------------


def test_a_server_that_is_down_is_69_and_named(shared: Shared) -> None:
    system, _ = shared
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
    for command in (("submit", "test"), ("list", "--json")):
        done = system.ci(shared[1], *command, "--server", nowhere, project=FIXTURES / "passing")
        assert (done.code, done.out) == (UNAVAILABLE, b""), done.err
        assert nowhere in done.err


@pytest.mark.timeout(300)
def test_whatever_is_missing_everyone_says_so_and_the_job_waits_uncharged_until_it_is_there(
    installation: Installation, tmp_path: Path
) -> None:
    """Room in the queue, then a controller, then Docker, then the runtime that was asked for."""
    system = installation
    system.key()
    server = system.start_server(CI_MAX_QUEUED_PER_USER="1")
    queued = hand_in(system, server, FIXTURES / "passing")
    refused = system.ci(server, "submit", "test", project=FIXTURES / "passing")
    assert (refused.code, refused.out) == (BUSY, b""), refused.err
    assert "ci submit test --wait-for-capacity" in refused.err
    with _submitting(system, server, "--wait-for-capacity") as waiting:
        _read_until(waiting, "Waiting for room")
        assert [job["job_id"] for job in _jobs(system, server)] == [queued], "nothing is submitted meanwhile"
        cancel(system, server, queued)

        _read_until(waiting, "start ci-controller")
        assert _not_ready(server, "controller")

        blind = system.start_controller(DOCKER_HOST=f"unix://{tmp_path}/no-docker.sock")
        _read_until(waiting, "docker engine does not answer")
        assert "docker engine does not answer" in _not_ready(server, "engine")
        assert system.query("SELECT * FROM attempts") == [], "nothing was claimed"
        assert blind.terminate() == 0

        misled = system.start_controller(CI_JOB_RUNTIME="runsc-missing", CI_MAX_ATTEMPTS="1")
        eventually(lambda: "the engine has no such runtime" in misled.tail(), what="the word at the start")
        eventually(lambda: "CI_JOB_RUNTIME" in (_note(system) or ""), what="the controller's note")
        [job] = [job for job in _jobs(system, server) if job["job_id"] != queued]
        assert (job["status"], job["success"]) == ("queued", None)
        assert misled.terminate() == 0

        system.start_controller()
        out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert b"4 passed" in out
    job = system.job(server, job["job_id"])
    assert (job["attempt"], job["success"]) == (2, True), "the first one was given back, uncharged"
    assert len(_jobs(system, server)) == 2, "it was submitted once"
    assert plain_http.get(f"{server.url}/ready").status_code == 200


def _note(system: Installation) -> str | None:
    [[note]] = system.query("SELECT note FROM controller")
    return note


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, which is full once somebody fills it."""
    with small_disk(tmp_path / "disk", "3m") as place:
        yield place


def test_a_full_disk_refuses_jobs_and_the_same_submission_works_once_there_is_room(
    installation: Installation, disk: Path, tmp_path: Path
) -> None:
    """Before that, one that fills up under a job costs the job nothing."""
    system, data = installation, str(disk / "data")
    system.start_controller(CI_DATA_DIR=data, CI_DISK_MIN_FREE="100000")
    server = system.start_server(CI_DATA_DIR=data, CI_MIN_FREE_BYTES="500000", CI_SUBMIT_MIN_FREE_BYTES="0")
    system.wait_ready(server)
    earlier = _passes_while_the_disk_fills_up(system, server, disk, tmp_path / "long")
    log = system.log(server, earlier)

    filler = disk / "filler"
    _fill(filler)
    project = make_project(tmp_path / "p", {"test_a.py": "def test_a(): pass\n"})
    (project / "new").write_bytes(os.urandom(200_000))  # what the server has already would need no room
    archive, once = zip_of({"test_a.py": b"def test_a(): pass\n"}), {"Idempotency-Key": "the-same"}
    with system.http(server) as http:
        refused = http.post("/submit-async", files={"file": archive}, headers=once)
        _problem(refused, 507, "storage_full")
        assert "MiB free" in _not_ready(server, "disk")
        done = system.ci(server, "submit", "test", project=project)
        assert (done.code, done.out) == (BUSY, b""), done.err
        assert "room" in done.err or "space" in done.err
        assert [job["job_id"] for job in _jobs(system, server)] == [earlier], "no half of a job"
        assert system.log(server, earlier) == log

        filler.unlink()
        accepted = http.post("/submit-async", files={"file": archive}, headers=once).raise_for_status()
    done = system.ci(server, "submit", "test", project=project)
    assert done.code == 0, done.err
    assert system.wait(server, accepted.json()["job_id"])["success"] is True


def _passes_while_the_disk_fills_up(system: Installation, server: Daemon, disk: Path, folder: Path) -> str:
    """What could not be written while there was no room is written when there is: the container kept it."""
    code = (
        "import pathlib, sys\ndef test_x():\n"
        "    for n in range(20_000):\n        print(f'line {n:05}', 'x' * 40)\n"
        "    sys.stdout.flush()\n"
    )
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(2_500_000))
    job_id = hand_in(system, server, make_project(folder, {"test_x.py": code}), "-s")
    eventually(lambda: _full(disk), what="a full disk", seconds=60)
    filler.unlink()
    job = system.wait(server, job_id)
    assert (job["success"], job["attempt"]) == (True, 1), job
    printed = re.findall(rb"line (\d{5}) x{40}\n", system.log(server, job_id))
    assert [int(number) for number in printed] == list(range(20_000))
    return job_id


# -- helpers ---------------------------------------------------------------------------------------------


def _problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return a problem document after judging its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert problem["request_id"]
    assert errors_by_code()[code].http_status == status
    return problem


def _one_sentence(err: str) -> str:
    """Return the error's sentence, from its line or from its JSON; there is one and no traceback."""
    errors = [line for line in err.splitlines() if line.startswith(("error: ", '{"error": '))]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    sentence = json.loads(errors[0])["error"]["message"] if errors[0][0] == "{" else errors[0]
    return re.sub(r" \(request [0-9a-f]{32}\)$", "", sentence)


@contextmanager
def _submitting(system: Installation, server: Daemon, *options: str) -> Generator["subprocess.Popen[bytes]"]:
    """Yield a `ci submit test` under way; nothing that fails meanwhile leaves it behind."""
    with system.spawn_ci(server, "submit", "test", *options, project=FIXTURES / "passing") as process:
        try:
            yield process
        finally:
            process.kill()


def _read_until(process: "subprocess.Popen[bytes]", text: str) -> str:
    """Return the first remark of a running `ci` that has this in it."""
    assert process.stderr is not None
    seen: list[str] = []
    while line := process.stderr.readline().decode():
        seen.append(line)
        if text in line:
            return line
    raise AssertionError(f"it ended without saying {text!r}: {seen}")


def _not_ready(server: Daemon, check: str) -> str:
    """Return why /ready says that this is not well, once it says so."""

    def said() -> str | None:
        reasons: list[str] = plain_http.get(f"{server.url}/ready").json()["reasons"]
        return next((reason for reason in reasons if reason.startswith(f"{check}: ")), None)

    return eventually(said, what=f"/ready complaining about the {check}")


def _jobs(system: Installation, server: Daemon) -> list[dict[str, Any]]:
    with system.http(server) as http:
        return http.get("/jobs").raise_for_status().json()


def _archives(system: Installation) -> set[str]:
    """Return the names of all files in the store of archives, finished or not."""
    return {path.name for path in Path(f"{system.database}.data").glob("archives/*")}


def _fill(path: Path) -> None:
    """Nothing more fits on the disk of this path."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def _full(place: Path) -> bool:
    return os.statvfs(place).f_bavail == 0
