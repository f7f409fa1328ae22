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


@pytest.mark.parametrize(
    ("project", "code", "said"),
    [
        ("passing", 0, "4 passed"),
        ("failing", 1, "one and two is not four"),
        ("invalid", 2, "SyntaxError"),
    ],
)
def test_submit_exits_with_pytests_own_code(shared: Shared, project: str, code: int, said: str) -> None:
    system, server = shared
    done = system.ci(server, "submit", "test", project=FIXTURES / project)
    assert said in done.text
    assert done.code == code, done.err


def test_a_job_leaves_no_container_behind(shared: Shared) -> None:
    system, server = shared
    job_id = system.submit(server, FIXTURES / "passing")
    assert system.wait(server, job_id)["success"] is True
    eventually(lambda: not system.containers(), what="the removal of the container")


def test_async_then_wait_all_replays_the_log_and_the_code(shared: Shared) -> None:
    system, server = shared
    job_id = system.submit(server, FIXTURES / "failing")
    waited = system.ci(server, "wait", job_id, "--all")
    assert waited.code == 1, waited.err
    assert "one and two is not four" in waited.text
    assert waited.out == system.log(server, job_id), "the replay is the log, byte for byte"


def test_wait_without_all_on_a_finished_job_says_only_the_verdict(shared: Shared) -> None:
    system, server = shared
    job_id = system.submit(server, FIXTURES / "failing")
    system.wait(server, job_id)
    waited = system.ci(server, "wait", job_id)
    assert (waited.code, waited.out) == (1, b"")
    assert "failed" in waited.err


def test_list_shows_the_documented_columns(shared: Shared) -> None:
    system, server = shared
    job_id = system.submit(server, FIXTURES / "passing")
    system.wait(server, job_id)
    listing = system.ci(server, "list").text.splitlines()
    assert re.fullmatch(r"JOB ID +STATUS +START TIME +END TIME +SUCCESS\s*", listing[0]), listing[0]
    row = next(line for line in listing if job_id in line)
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{job_id} +completed +{stamp} +{stamp} +✓\s*", row), row


def test_list_json_has_the_documented_keys(shared: Shared) -> None:
    system, server = shared
    job_id = system.submit(server, FIXTURES / "passing")
    job = next(j for j in json.loads(system.ci(server, "list", "--json").text) if j["job_id"] == job_id)
    assert {"job_id", "status", "success", "start_time", "end_time"} <= set(job)


def test_pytest_arguments_reach_pytest(shared: Shared) -> None:
    system, server = shared
    done = system.ci(server, "submit", "test", "--", "-k", "hello", "-v", project=FIXTURES / "passing")
    assert done.code == 0, done.err
    assert "1 passed" in done.text
    assert "3 deselected" in done.text


def test_no_tests_is_pytests_code_five(shared: Shared, tmp_path: Path) -> None:
    system, server = shared
    project = make_project(tmp_path / "p", {"lonely.py": "x = 1\n"})
    done = system.ci(server, "submit", "test", project=project)
    assert done.code == 5, done.err
    assert "no_tests" in done.err or "no tests" in done.err


def test_a_requirement_that_does_not_exist_is_not_a_test_failure(shared: Shared, tmp_path: Path) -> None:
    system, server = shared
    project = make_project(
        tmp_path / "p",
        {"requirements.txt": "no-such-distribution-of-anyone-xyz==1\n", "test_a.py": "def test_a(): pass\n"},
    )
    done = system.ci(server, "submit", "test", project=project)
    assert done.code == 125, done.text
    assert "no-such-distribution-of-anyone-xyz" in done.text
    assert "install" in done.err


def test_output_is_byte_exact(shared: Shared, tmp_path: Path) -> None:
    """Binary bytes, a 40 kB line and a last line without a newline come through as they were written."""
    system, server = shared
    code = (
        "import os\n"
        "def test_writes():\n"
        "    os.write(1, b'<<<' + bytes(range(256)) * 3 + b'x' * 40_000 + 'é€'.encode() * 9000 + b'>>>')\n"
    )
    project = make_project(tmp_path / "p", {"requirements.txt": "pytest\n", "test_bytes.py": code})
    done = system.ci(server, "submit", "test", "--", "-s", project=project)
    expected = b"<<<" + bytes(range(256)) * 3 + b"x" * 40_000 + "é€".encode() * 9000 + b">>>"
    assert done.code == 0, done.err
    assert expected in done.out
    job_id = json.loads(system.ci(server, "list", "--json", "--limit", "1").text)[0]["job_id"]
    assert system.log(server, job_id) == done.out


def test_the_tree_arrives_as_it_is(shared: Shared, tmp_path: Path) -> None:
    """Exec bits, unicode names, empty files, untracked files and in-tree symlinks arrive; caches do not."""
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
    )
    project = make_project(
        tmp_path / "p",
        {
            "test_tree.py": code,
            "run.sh": "#!/bin/sh\n",
            "data/ünï.txt": "linked",
            "data/empty": b"",
            ".venv/lib/x.py": "",
        },
    )
    (project / "run.sh").chmod(0o755)
    (project / "link.txt").symlink_to("data/ünï.txt")
    done = system.ci(server, "submit", "test", project=project)
    assert done.code == 0, done.text + done.err


def test_what_runs_is_the_tree_as_it_is_now(shared: Shared, tmp_path: Path) -> None:
    """Only what changed goes up, and that is enough: an edit, a new, a renamed and a removed file."""
    system, server = shared
    code = (
        "import pathlib\n"
        "def test_tree():\n"
        "    for path in sorted(pathlib.Path('data').rglob('*.txt')):\n"
        "        print(f'<{path}={path.read_text()}>')\n"
    )
    data = {"data/a.txt": "1", "data/b.txt": "2", "data/deep/c.txt": "3"}
    project = make_project(tmp_path / "p", {"test_tree.py": code, **data})

    def seen() -> set[str]:
        done = system.ci(server, "submit", "test", "--", "-s", project=project)
        assert done.code == 0, done.text + done.err
        return set(re.findall("<(.*?)>", done.text))

    assert seen() == {"data/a.txt=1", "data/b.txt=2", "data/deep/c.txt=3"}
    (project / "data/a.txt").write_text("9")
    (project / "data/b.txt").rename(project / "data/deep/b.txt")
    (project / "data/deep/c.txt").unlink()
    (project / "data/d.txt").write_text("1")
    assert seen() == {"data/a.txt=9", "data/deep/b.txt=2", "data/d.txt=1"}


def test_cancel_lets_pytest_print_its_summary(shared: Shared, tmp_path: Path) -> None:
    system, server = shared
    code = (
        "import time\ndef test_first(): pass\n"
        "def test_hangs():\n    print('hanging', flush=True)\n    time.sleep(600)\n"
    )
    project = make_project(tmp_path / "p", {"requirements.txt": "pytest\n", "test_hang.py": code})
    job_id = system.submit(server, project, "--", "-s")
    eventually(lambda: b"hanging" in system.log(server, job_id), what="the second test")
    cancelled = system.ci(server, "cancel", job_id)
    assert cancelled.code == 0, cancelled.err
    job = system.wait(server, job_id)
    assert (job["status"], job["reason"], job["success"]) == ("cancelled", "cancelled", False)
    assert b"KeyboardInterrupt" in system.log(server, job_id)
    assert b"1 passed" in system.log(server, job_id)
    assert system.ci(server, "wait", job_id).code == 143
    assert system.ci(server, "cancel", job_id).code != 0, "a finished job cannot be cancelled"


def test_the_jobs_timeout_ends_it_with_124(shared: Shared, tmp_path: Path) -> None:
    system, server = shared
    project = make_project(tmp_path / "p", {"test_hang.py": "import time\ndef test_x(): time.sleep(600)\n"})
    done = system.ci(server, "submit", "test", "--timeout", "3", project=project)
    assert done.code == 124, done.text + done.err
    assert "timeout" in done.err or "time-out" in done.err


def test_leaving_early_is_never_success(shared: Shared, tmp_path: Path) -> None:
    system, server = shared
    code = "import os\ndef test_a(): os._exit(0)\ndef test_b(): assert False\n"
    project = make_project(tmp_path / "p", {"test_exit.py": code})
    done = system.ci(server, "submit", "test", project=project)
    assert done.code == 1, done.text + done.err
    assert "crashed" in done.err


def test_a_full_queue_is_75_and_waiting_for_capacity_submits_once_there_is_room(
    installation: Installation, tmp_path: Path
) -> None:
    system = installation
    system.start_controller(CI_MAX_RUNNING_JOBS="1")
    server = system.start_server(CI_MAX_QUEUED_PER_USER="1")
    system.wait_ready(server)
    code = "import time\ndef test_x():\n    print('blocking', flush=True)\n    time.sleep(600)\n"
    blocking = system.submit(server, make_project(tmp_path / "p", {"test_block.py": code}), "--", "-s")
    eventually(lambda: b"blocking" in system.log(server, blocking), what="the job that takes the only slot")
    queued = system.submit(server, FIXTURES / "passing")

    refused = system.ci(server, "submit", "test", project=FIXTURES / "passing")
    assert (refused.code, refused.out) == (75, b""), refused.err
    assert "ci submit test --wait-for-capacity" in refused.err

    command = ("submit", "test", "--wait-for-capacity")
    with system.spawn_ci(server, *command, project=FIXTURES / "passing") as waiting:
        assert waiting.stderr is not None
        while b"Waiting for room" not in waiting.stderr.readline():
            assert waiting.poll() is None
        assert len(_job_ids(system, server)) == 2, "nothing is submitted while it waits"
        assert system.ci(server, "cancel", blocking).code == 0
        out, err = waiting.communicate(timeout=90)
    assert waiting.returncode == 0, err
    assert b"4 passed" in out
    assert system.wait(server, queued)["success"] is True
    assert len(_job_ids(system, server)) == 3, "and then once"


def _job_ids(system: Installation, server: Daemon) -> list[str]:
    return [job["job_id"] for job in json.loads(system.ci(server, "list", "--json").text)]


@contextmanager
def interrupted(system: Installation, server: Daemon, folder: Path) -> Generator[subprocess.Popen[bytes]]:
    """A `ci submit test` whose job would run for minutes has shown its output, and got one Ctrl-C."""
    code = "import time\ndef test_x():\n    print('started', flush=True)\n    time.sleep(600)\n"
    project = make_project(folder, {"test_slow.py": code})
    process = system.spawn_ci(server, "submit", "test", "--", "-s", project=project)
    assert process.stdout is not None
    with process:
        while b"started" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        yield process


def test_ctrl_c_leaves_the_job_running_and_exits_130(shared: Shared, tmp_path: Path) -> None:
    system, server = shared
    with interrupted(system, server, tmp_path / "p") as process:
        assert process.stderr is not None
        assert process.wait(timeout=30) == 130
        said = process.stderr.read().decode()
    job_id = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", said)[0]
    assert f"ci wait {job_id}" in said
    assert system.job(server, job_id)["status"] == "running"
    assert system.ci(server, "cancel", job_id).code == 0
    system.wait(server, job_id)


def test_ctrl_c_twice_cancels_the_job_and_exits_143(shared: Shared, tmp_path: Path) -> None:
    system, server = shared
    with interrupted(system, server, tmp_path / "p") as process:
        assert process.stderr is not None
        while b"Ctrl-C again" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 143
