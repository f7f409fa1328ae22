"""Every way for a job to end, made for real: a project handed in with `ci`, run in a container, judged.

Not here: `disk_limit` (test_disk.py), and `agent_lost`, which nothing can give before there are agents.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ci_common.job_terms import Reason
from ci_common.verdict import ENDINGS
from tests.e2e.conftest import Served
from tests.sandbox.project import leaver, liar
from tests.support.eventually import eventually
from tests.support.handing_in import hand_in
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
    timeout: str = ""

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
        (),
        b" in test_hangs\n",
        "20",
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
    "calls it wrongly": Case("", "usage_error", r"unrecognized arguments: --nope\.", ("--nope",)),
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
        ("--max-warnings", "0"),
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
        ("-s",),
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
    "forges a success and fails": Case(
        liar(), "tests_failed", r"1 failed, 9 passed\.", ("-s",), b"the truth"
    ),
    "forges a success and leaves": Case(
        leaver(),
        "crashed",
        r"pytest left with 0 before its session was finished, while test_lies\.py::test_that_leaves ran\.",
        ("-s",),
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
        ("-s",),
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


def submit_all(
    system: Installation, server: Daemon, folder: Path, cases: Mapping[str, Case]
) -> dict[str, str]:
    """Return the ids of the jobs, by the names of their cases."""
    return {
        name: hand_in(
            system,
            server,
            make_project(folder / str(index), case.files),
            *case.arguments,
            timeout=case.timeout,
        )
        for index, (name, case) in enumerate(cases.items())
    }


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


# What `ci wait` exits with, and what it says.
EXITS = {
    "takes too long": (124, "time-out"),
    "eats memory": (125, "memory"),
    "needs what there is not": (125, "no-such-package-of-ours"),
    "has no tests": (5, "no tests"),
    "leaves in its first test": (1, "crashed"),
    "leaves with 137": (1, "crashed"),
    "cannot be collected": (2, "SyntaxError"),
}


@pytest.mark.timeout(300)
def test_every_job_gets_its_reason_and_the_evidence(served: Served, tmp_path: Path) -> None:
    system, server = served
    system.start_controller(**SETTINGS)
    cases = ENDS | HOSTILE
    ids = submit_all(system, server, tmp_path, cases)
    jobs = {name: system.wait(server, ids[name], 200) for name in cases}
    logs = {name: system.log(server, ids[name]) if case.log else b"" for name, case in cases.items()}
    assert [one for name in cases for one in wrong(name, cases[name], jobs[name], logs[name])] == []
    for name, (code, said) in EXITS.items():
        waited = system.ci(server, "wait", ids[name])
        assert (waited.code, waited.out) == (code, b""), (name, waited)
        assert said in waited.err


def waited(system: Installation, job_id: str) -> timedelta:
    [(created,)] = system.query("SELECT created_at FROM jobs WHERE id = ?", job_id)
    return datetime.now(UTC) - datetime.fromisoformat(created)


def container_of(system: Installation, job_id: str) -> str:
    [(container,)] = system.query("SELECT container_id FROM attempts WHERE job_id = ?", job_id)
    return container


def test_what_is_done_to_a_job_from_outside_is_said_and_blamed_on_nobody(
    served: Served, tmp_path: Path
) -> None:
    """Before that, one that never gets its turn says so: controllers look for those first of all."""
    system, server = served
    # Not the short limits of the others: on a busy machine a job hangs longer than they allow.
    settings = {"CI_MAX_RUNNING_JOBS": "4", "CI_MAX_ATTEMPTS": "1"}
    controller = system.start_controller(**settings)
    project = make_project(tmp_path / "project", {"test_it.py": HANGS})
    ids = [hand_in(system, server, project, "-s") for _ in range(4)]
    for job_id in ids:
        eventually(lambda one=job_id: b"hanging" in system.log(server, one), what="the test")
    late = hand_in(system, server, project)
    eventually(lambda: waited(system, late) > timedelta(seconds=1), what="more than a second in the queue")
    assert controller.terminate() == 0
    system.start_controller(CI_QUEUE_TIMEOUT="1s", **settings)
    job = system.wait(server, late)
    assert (job["status"], job["reason"]) == ("failed", "queue_timeout")
    assert job["message"]

    cancelled, killed, removed, stopped = ids
    assert system.ci(server, "cancel", cancelled).code == 0
    system.docker("kill", container_of(system, killed))
    system.docker("rm", "-f", container_of(system, removed))
    system.docker("kill", "--signal", "TERM", container_of(system, stopped))
    jobs = [system.wait(server, job_id) for job_id in ids]
    assert [(job["status"], job["reason"], job["success"]) for job in jobs] == [
        ("cancelled", "cancelled", False),
        *[("dead_lettered", "infra", False)] * 3,
    ]
    assert jobs[0]["message"] == "Cancelled by ada@example.org."
    assert "ended from outside (137)" in jobs[1]["message"]
    assert "vanished" in jobs[2]["message"] or "ended from outside (137)" in jobs[2]["message"]
    assert "Stopped on request" in jobs[3]["message"]
    codes = [system.ci(server, "wait", job_id).code for job_id in (cancelled, killed, late)]
    assert codes == [143, 125, 124]


def test_every_reason_is_made_for_real() -> None:
    elsewhere = {Reason.DISK_LIMIT, Reason.AGENT_LOST, Reason.CANCELLED, Reason.INFRA, Reason.QUEUE_TIMEOUT}
    assert {case.reason for case in (ENDS | HOSTILE).values()} == {None, *Reason} - elsewhere
