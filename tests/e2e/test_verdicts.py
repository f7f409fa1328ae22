"""Every way for a job to end, made for real: a project handed in with `ci`, run in a container, judged.

Not here: `disk_limit` (test_disk.py), and `agent_lost`, which nothing can give before there are agents.
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ci_common.models import Reason
from ci_common.verdict import ENDINGS
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation, make_project

pytestmark = pytest.mark.docker

# Short ones, so that each limit is met within seconds; one attempt, so that what is lost is told at once.
SETTINGS = {
    "CI_JOB_MEMORY": "300m",
    "CI_LOG_LIMIT": "256k",
    "CI_JOB_IDLE_TIMEOUT": "30s",
    "CI_MAX_ATTEMPTS": "1",
    "CI_MAX_RUNNING_JOBS": "6",  # of which those that only wait take some
}

EATER = "x = []\nwhile True: x.append(bytearray(10**7))"
HANGS = "import time\ndef test_hangs(): print('hanging', flush=True); time.sleep(600)"


@dataclass(frozen=True)
class Case:
    """A project (its files, or its one test module) and what must be said of it."""

    tree: str | Mapping[str, str]
    reason: str | None
    message: str  # a pattern
    arguments: tuple[str, ...] = ()
    log: bytes = b""

    @property
    def files(self) -> dict[str, str | bytes]:
        return {"test_it.py": self.tree} if isinstance(self.tree, str) else dict(self.tree)


def left(code: int) -> str:
    return f"pytest left with {code} before its session was finished, while test_it.py::test_a ran\\."


ENDS = {
    "says nothing": Case(
        HANGS,
        "idle_timeout",
        r"There was no output for 30 s while test_it\.py::test_hangs ran\.",
        log=b"==> The stacks of all threads of pytest:\n",
    ),
    "takes too long": Case(
        HANGS,
        "timeout",
        r"The time-out of 20 s passed while test_it\.py::test_hangs ran\.",
        ("--timeout", "20"),
        b" in test_hangs\n",
    ),
    "passes": Case("def test_a(): pass", None, r"1 passed\."),
    "fails": Case("def test_a(): pass\ndef test_b(): assert 0", "tests_failed", r"1 failed, 1 passed\."),
    "cannot be collected": Case(
        {"tests/test_bad.py": "def test_a(:"},
        "collection_error",
        r"1 error; tests/test_bad\.py could not be collected: SyntaxError: invalid syntax\.",
    ),
    "interrupts itself": Case("def test_a(): raise KeyboardInterrupt", "interrupted", r"KeyboardInterrupt\."),
    "breaks pytest": Case(
        {
            "conftest.py": "def pytest_runtest_protocol(): raise ValueError('boom')",
            "test_it.py": "def test_a(): 0",
        },
        "internal_error",
        r"ValueError: boom\.",
    ),
    "calls it wrongly": Case("", "usage_error", r"unrecognized arguments: --nope\.", ("--", "--nope")),
    "has a bad conftest": Case(
        {"conftest.py": "import nope", "test_it.py": ""},
        "usage_error",
        r"/workspace/conftest\.py could not be loaded: ModuleNotFoundError: No module named 'nope'\.",
    ),
    "has no tests": Case("x = 1", "no_tests", r"no tests were found\."),
    "warns too much": Case(
        "import warnings\ndef test_a(): warnings.warn('w')",
        "too_many_warnings",
        r"1 passed, 1 warnings\.",
        ("--", "--max-warnings", "0"),
    ),
    "needs what there is not": Case(
        {"requirements.txt": "no-such-package-of-ours==9.9", "test_it.py": "def test_a(): pass"},
        "install_failed",
        r"Installing requirements\.txt failed: no-such-package-of-ours==9\.9: no matching distribution - .*",
    ),
    "is one folder too high": Case(
        {"inner/pyproject.toml": "[project]\nname = 'x'\nversion = '1'\n", "inner/test_it.py": ""},
        "bad_archive",
        r"The project is inside the folder 'inner': .*",
    ),
    "eats memory": Case(
        "def test_big():\n " + EATER.replace("\n", "\n "),
        "oom",
        r"pytest was killed for memory at 300 MiB of 300 MiB while test_it\.py::test_big ran\.",
    ),
    "has a child that eats memory": Case(
        f"import subprocess, sys\ndef test_a(): subprocess.run([sys.executable, '-c', {EATER!r}])",
        None,
        r"1 passed\. A process that pytest started was killed for memory at 300 MiB of 300 MiB\.",
    ),
    "floods": Case(
        "def test_a():\n while True: print('y' * 100)",
        "log_limit",
        r"The output exceeded 256 KiB while test_it\.py::test_a ran\.",
        ("--", "-s"),
    ),
}

# None is a success where tests did not finish, and none is anybody's fault but the job's.
HOSTILE = {
    "leaves in its first test": Case(
        "import os\ndef test_a(): os._exit(0)\ndef test_b(): 0", "crashed", left(0)
    ),
    "leaves as its conftest is loaded": Case(
        {"conftest.py": "import os; os._exit(0)", "test_it.py": "def test_a(): pass"},
        "crashed",
        r"pytest left with 0 before its session was finished, while pytest was starting\..*",
    ),
    "leaves in its last hook": Case(
        {
            "conftest.py": "import os\ndef pytest_sessionfinish(): os._exit(0)",
            "test_it.py": "def test_a(): assert 0",
        },
        "crashed",
        r"pytest left with 0 before its session was finished, while the session was ending\.",
    ),
    "leaves at its exit": Case(
        "import atexit, os\natexit.register(os._exit, 0)\ndef test_a(): assert 0",
        "crashed",
        r"pytest left with 0 although its session had finished with 1\.",
    ),
    "leaves with 137": Case("import os\ndef test_a(): os._exit(137)", "crashed", left(137)),
    "leaves with a code of ours": Case("import os\ndef test_a(): os._exit(100)", "crashed", left(100)),
    "has a child that kills it": Case(
        "import subprocess, time\ndef test_a(): subprocess.run(['sh', '-c', 'kill -9 $PPID']); time.sleep(60)",
        "crashed",
        r"pytest was killed by signal 9 \(SIGKILL\) while test_it\.py::test_a ran\.",
    ),
    "attacks the harness": Case(
        """
import contextlib, ctypes, os, resource
def test_a():
    for number in (1, 2, 3, 9, 15, 19, 24, 62):
        os.kill(1, number)
    assert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == -1
    for name in ("fd/0", "fd/1", "fd/2", "mem"):
        with contextlib.suppress(OSError):
            open(f"/proc/1/{name}", "wb").write(b"x")
    for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        with contextlib.suppress(OSError):
            resource.prlimit(1, limit, (0, 0))
    assert 0
""",
        "tests_failed",
        r"1 failed\.",
    ),
    "forges frames": Case(
        """
import os
FRAME = b'{"n":1000000,"t":"end","outcome":"tests_ran","exit_code":0,"session_finished":true,'
FRAME += b'"log_bytes":0,"log_sha256":""}'
def test_a():
    os.write(1, b"\\n" + FRAME + b"\\n")
    os.write(2, b"\\n" + FRAME + b"\\n")
    os._exit(0)
""",
        "crashed",
        left(0),
        ("--", "-s"),
    ),
    "forges a report": Case(
        """
import os
REPORT = b'{"finished":0,"collection_errors":0,"summary":"9 passed","doing":""}\\n'
def test_a():
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, REPORT)
        except OSError:
            pass
    os._exit(0)
""",
        "crashed",
        left(0),
    ),
    "leaves a daemon that writes": Case(
        """
import subprocess
def test_a():
    subprocess.Popen(["setsid", "sh", "-c", "trap '' 1 2 15; while :; do echo alive; sleep 0.05; done"])
    assert 0
""",
        "tests_failed",
        r"1 failed\.",
        ("--", "-s"),
    ),
    # Whoever rules pytest's own process can lie about what it did; about no other job, and not without finishing.
    "lies about itself": Case(
        {
            "conftest.py": "def pytest_sessionfinish(session): session.exitstatus = 0",
            "test_it.py": "def test_a(): assert 0",
        },
        None,
        r"1 failed\.",
    ),
}


@pytest.fixture
def busy(installation: Installation) -> tuple[Installation, Daemon]:
    installation.start_controller(**SETTINGS)
    server = installation.start_server()
    installation.wait_ready(server)
    return installation, server


def submit_all(
    system: Installation, server: Daemon, folder: Path, cases: Mapping[str, Case]
) -> dict[str, str]:
    """Return the ids of the jobs, by the names of their cases."""
    system.key()
    projects = [make_project(folder / str(index), case.files) for index, case in enumerate(cases.values())]

    def submit(project: Path, case: Case) -> str:
        return system.submit(server, project, *case.arguments)

    with ThreadPoolExecutor(4) as threads:
        return dict(zip(cases, threads.map(submit, projects, cases.values()), strict=True))


def wrong(name: str, case: Case, job: Mapping[str, Any], log: bytes) -> list[str]:
    """Return what is not as it must be."""
    ending = next(ending for ending in ENDINGS if ending.reason == case.reason)
    found = (job["status"], job["reason"], job["success"])
    problems: list[str] = []
    if found != (ending.status, case.reason, case.reason is None):
        problems.append(f"{name}: {found}, {job['message']!r}")
    elif not re.fullmatch(case.message, job["message"] or ""):
        problems.append(f"{name}: {job['message']!r} is not {case.message!r}")
    return problems + ([f"{name}: {case.log!r} is not in its log"] if case.log not in log else [])


@pytest.mark.timeout(300)
def test_every_job_gets_its_reason_and_the_evidence(
    busy: tuple[Installation, Daemon], tmp_path: Path
) -> None:
    system, server = busy
    cases = ENDS | HOSTILE
    ids = submit_all(system, server, tmp_path, cases)
    jobs = {name: system.wait(server, ids[name], 200) for name in cases}
    logs = {name: system.log(server, ids[name]) if case.log else b"" for name, case in cases.items()}
    assert [one for name in cases for one in wrong(name, cases[name], jobs[name], logs[name])] == []
    codes = {"takes too long": 124, "eats memory": 125, "leaves with 137": 1, "cannot be collected": 2}
    assert {name: system.ci(server, "wait", ids[name]).code for name in codes} == codes


def running(system: Installation, server: Daemon, folder: Path) -> tuple[str, str]:
    """Return a job whose one test hangs, and its container."""
    job_id = system.submit(server, make_project(folder, {"test_it.py": HANGS}), "--", "-s")
    eventually(lambda: b"hanging" in system.log(server, job_id), what="the test")
    names = system.docker("ps", "--no-trunc", "--format", "{{.ID}} {{.Names}}").splitlines()
    return job_id, next(line.split()[0] for line in names if job_id in line)


def test_what_is_done_to_a_job_from_outside_is_said_and_blamed_on_nobody(
    installation: Installation, tmp_path: Path
) -> None:
    system = installation
    # Not the short limits of the others: on a busy machine a job hangs longer than they allow.
    system.start_controller(CI_MAX_RUNNING_JOBS="4", CI_MAX_ATTEMPTS="1")
    server = system.start_server()
    system.wait_ready(server)
    cancelled, _ = running(system, server, tmp_path / "cancelled")
    killed, kill = running(system, server, tmp_path / "killed")
    removed, remove = running(system, server, tmp_path / "removed")
    stopped, stop = running(system, server, tmp_path / "stopped")
    assert system.ci(server, "cancel", cancelled).code == 0
    system.docker("kill", kill)
    system.docker("rm", "-f", remove)
    system.docker("kill", "--signal", "TERM", stop)
    jobs = [system.wait(server, job_id) for job_id in (cancelled, killed, removed, stopped)]
    assert [(job["status"], job["reason"], job["success"]) for job in jobs] == [
        ("cancelled", "cancelled", False),
        *[("dead_lettered", "infra", False)] * 3,
    ]
    assert jobs[0]["message"] == "Cancelled by ada@example.org."
    assert "ended from outside (137)" in jobs[1]["message"]
    assert "vanished" in jobs[2]["message"] or "ended from outside (137)" in jobs[2]["message"]
    assert "Stopped on request" in jobs[3]["message"]
    assert [system.ci(server, "wait", job_id).code for job_id in (cancelled, killed)] == [143, 125]


def waited(system: Installation, job_id: str) -> timedelta:
    [(created,)] = system.query("SELECT created_at FROM jobs WHERE id = ?", job_id)
    return datetime.now(UTC) - datetime.fromisoformat(created)


def test_a_job_that_never_got_its_turn_says_so(installation: Installation, tmp_path: Path) -> None:
    """Controllers look for those twice a minute, and first of all when they begin."""
    settings = {"CI_MAX_RUNNING_JOBS": "1", "CI_QUEUE_TIMEOUT": "1s"}
    controller = installation.start_controller(**settings)
    server = installation.start_server()
    installation.wait_ready(server)
    first, _ = running(installation, server, tmp_path / "first")
    second = installation.submit(server, tmp_path / "first")
    eventually(
        lambda: waited(installation, second) > timedelta(seconds=1), what="more than a second in the queue"
    )
    assert controller.terminate() == 0
    installation.start_controller(**settings)
    job = installation.wait(server, second)
    assert (job["status"], job["reason"]) == ("failed", "queue_timeout")
    assert job["message"]
    assert installation.ci(server, "wait", second).code == 124
    assert installation.ci(server, "cancel", first).code == 0
    installation.wait(server, first)


def test_every_reason_is_made_for_real() -> None:
    elsewhere = {Reason.DISK_LIMIT, Reason.AGENT_LOST, Reason.CANCELLED, Reason.INFRA, Reason.QUEUE_TIMEOUT}
    assert {case.reason for case in (ENDS | HOSTILE).values()} == {None, *Reason} - elsewhere
