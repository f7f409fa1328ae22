"""The main job through the real `ci` command: submit, read the log, exit with pytest's code."""

import json
import re
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.installation import FIXTURES, Daemon, Installation, make_project

pytestmark = pytest.mark.docker
Shared = tuple[Installation, Daemon]


def test_a_job_that_passes(shared: Shared) -> None:
    system, server = shared
    done = system.ci(server, "submit", "test", project=FIXTURES / "passing", user="passer")
    assert done.code == 0, done.err
    assert "4 passed" in done.text
    assert_listed(system, server)
    eventually(lambda: not system.containers(), what="the removal of the container")


def assert_listed(system: Installation, server: Daemon) -> None:
    """The lists show the one job with the documented columns and keys."""
    [job] = json.loads(system.ci(server, "list", "--json", user="passer").text)
    assert {"job_id", "status", "success", "start_time", "end_time"} <= set(job)
    head, _, row, *_ = system.ci(server, "list", user="passer").text.splitlines()
    assert re.fullmatch(r"JOB ID +STATUS +START TIME +END TIME +SUCCESS\s*", head), head
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{job['job_id']} +completed +{stamp} +{stamp} +✓\s*", row), row


def test_async_then_wait_all_replays_the_log_and_the_code(shared: Shared) -> None:
    system, server = shared
    job_id = system.submit(server, FIXTURES / "failing")
    waited = system.ci(server, "wait", job_id, "--all")
    assert waited.code == 1, waited.err
    assert "one and two is not four" in waited.text
    assert waited.out == system.log(server, job_id), "the replay is the log, byte for byte"
    waited = system.ci(server, "wait", job_id)
    assert (waited.code, waited.out) == (1, b""), "of a finished job only the verdict"
    assert "failed" in waited.err


def test_output_is_byte_exact(shared: Shared, tmp_path: Path) -> None:
    """Binary bytes, a 40 kB line and a last line without a newline come through as they were written.

    Arguments reach pytest, what is not asked for is not run; and the exit code is pytest's own.
    """
    system, server = shared
    code = (
        "import os\n"
        "def test_writes():\n"
        "    os.write(1, b'<<<' + bytes(range(256)) * 3 + b'x' * 40_000 + 'é€'.encode() * 9000 + b'>>>')\n"
        "def test_asked_for(): assert 0\n"
        "def test_other(): pass\n"
    )
    project = make_project(tmp_path / "p", {"requirements.txt": "pytest\n", "test_bytes.py": code})
    arguments = ("--", "-s", "-k", "writes or asked")
    done = system.ci(server, "submit", "test", *arguments, project=project, user="writer")
    expected = b"<<<" + bytes(range(256)) * 3 + b"x" * 40_000 + "é€".encode() * 9000 + b">>>"
    assert done.code == 1, done.err
    assert expected in done.out
    assert "1 failed, 1 passed, 1 deselected" in done.err
    with system.http(server, "writer") as http:
        [job] = http.get("/jobs").json()
    assert system.log(server, job["job_id"], "writer") == done.out


def test_the_tree_arrives_as_it_is_now(shared: Shared, tmp_path: Path) -> None:
    """Exec bits, unicode names, empty files, untracked files and in-tree symlinks arrive; caches do not.

    Only what changed goes up, and that is enough: an edit, a new, a renamed and a removed file.
    """
    system, server = shared
    code = (
        "import os, pathlib\n"
        "def test_tree():\n"
        "    assert os.access('run.sh', os.X_OK)\n"
        "    assert not os.access('data/ünï.txt', os.X_OK)\n"
        "    assert pathlib.Path('data/empty').read_bytes() == b''\n"
        "    assert pathlib.Path('link.txt').read_text() == 'linked'\n"
        "    assert not pathlib.Path('.venv').exists()\n"
        "    assert os.getuid() != 0\n"
        "    for path in sorted(pathlib.Path('data').rglob('*.txt')):\n"
        "        print(f'<{path}={path.read_text()}>')\n"
    )
    data = {"data/ünï.txt": "linked", "data/empty": b"", "data/b.txt": "2", "data/deep/c.txt": "3"}
    files = {"test_tree.py": code, "run.sh": "#!/bin/sh\n", ".venv/lib/x.py": "", **data}
    project = make_project(tmp_path / "p", files)
    (project / "run.sh").chmod(0o755)
    (project / "link.txt").symlink_to("data/ünï.txt")

    def seen() -> set[str]:
        done = system.ci(server, "submit", "test", "--", "-s", project=project)
        assert done.code == 0, done.text + done.err
        return set(re.findall("<(.*?)>", done.text))

    assert seen() == {"data/ünï.txt=linked", "data/b.txt=2", "data/deep/c.txt=3"}
    (project / "link.txt").unlink()
    (project / "link.txt").write_text("linked")
    (project / "data/ünï.txt").write_text("9")
    (project / "data/b.txt").rename(project / "data/deep/b.txt")
    (project / "data/deep/c.txt").unlink()
    (project / "data/d.txt").write_text("1")
    assert seen() == {"data/ünï.txt=9", "data/deep/b.txt=2", "data/d.txt=1"}


@contextmanager
def interrupted(system: Installation, server: Daemon, folder: Path) -> Generator[subprocess.Popen[bytes]]:
    """A `ci submit test` whose job would run for minutes has shown its output, and got one Ctrl-C."""
    code = (
        "import time\ndef test_first(): pass\n"
        "def test_slow():\n    print('started', flush=True)\n    time.sleep(600)\n"
    )
    project = make_project(folder, {"requirements.txt": "pytest\n", "test_slow.py": code})
    process = system.spawn_ci(server, "submit", "test", "--", "-s", project=project)
    assert process.stdout is not None
    with process:
        while b"started" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        yield process


def test_ctrl_c_leaves_the_job_running_and_cancel_lets_pytest_print_its_summary(
    shared: Shared, tmp_path: Path
) -> None:
    system, server = shared
    with interrupted(system, server, tmp_path / "p") as process:
        assert process.stderr is not None
        assert process.wait(timeout=30) == 130
        said = process.stderr.read().decode()
    job_id = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", said)[0]
    assert f"ci wait {job_id}" in said
    assert system.job(server, job_id)["status"] == "running"

    cancelled = system.ci(server, "cancel", job_id)
    assert cancelled.code == 0, cancelled.err
    job = system.wait(server, job_id)
    assert (job["status"], job["reason"], job["success"]) == ("cancelled", "cancelled", False)
    assert b"KeyboardInterrupt" in system.log(server, job_id)
    assert b"1 passed" in system.log(server, job_id)
    assert system.ci(server, "wait", job_id).code == 143
    assert system.ci(server, "cancel", job_id).code != 0, "a finished job cannot be cancelled"


def test_ctrl_c_twice_cancels_the_job_and_exits_143(shared: Shared, tmp_path: Path) -> None:
    system, server = shared
    with interrupted(system, server, tmp_path / "p") as process:
        assert process.stderr is not None
        while b"Ctrl-C again" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 143
