"""The harness as an ordinary process: what goes in, what comes out, and what it ends with.

What only the first process of a container can show is in tests/integration/test_harness_docker.py.
"""

import ast
import hashlib
import io
import json
import re
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Self

import pytest

from ci_controller.feed import HARNESS_MODULES, PYTHON_ARGUMENTS, RunSpec
from ci_controller.frames import EventFrame, Outcome, OutputFrame
from ci_controller.harness import ending, memory, network, output, stacks
from ci_controller.harness.reports import Reports
from ci_controller.install_plan import InstallPlan, InstallStep
from tests.support.eventually import eventually
from tests.support.harness import (
    DEFAULTS,
    MemoryArchive,
    Said,
    fed,
    feed,
    rest_of,
    run_harness,
    started_harness,
)
from tests.support.soak import SOAKING

RAW = bytes(range(256)) * 50 + b"x" * 40_000 + b"\n" + "é".encode() * 9000 + b"\r partial \xc3"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own, as a job's container has one; pytest comes from ours."""
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (place / "lib" / version / "site-packages" / "ours.pth").write_text(sysconfig.get_paths()["purelib"])
    return place / "bin" / "python"


@dataclass(frozen=True)
class Place:
    """Where harnesses run: a workspace, and the environment that they find."""

    spec: RunSpec
    env: dict[str, str]

    @classmethod
    def make(cls, folder: Path, python: Path) -> Self:
        """Return one in an empty folder."""
        (folder / "home").mkdir()
        paths = {"PATH": str(python.parent), "HOME": str(folder / "home")}
        spec = replace(DEFAULTS, workspace=str(folder / "workspace"))
        return cls(spec, {**paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})

    def run(self, tree: str | dict[str, str | bytes], **changes: object) -> Said:
        """Run a tree, given as the text of its one test module or as files, with changes to the spec."""
        files: dict[str, str | bytes] = {"test_it.py": tree} if isinstance(tree, str) else tree
        return run_harness(COMMAND, fed(files, self.spec, **changes), self.env)


COMMAND = [sys.executable, *PYTHON_ARGUMENTS]


@pytest.fixture
def place(tmp_path: Path, python: Path) -> Place:
    return Place.make(tmp_path, python)


@pytest.fixture
def spec(place: Place) -> RunSpec:
    return place.spec


@pytest.fixture
def command() -> list[str]:
    return COMMAND


@pytest.fixture
def env(place: Place) -> dict[str, str]:
    return place.env


@pytest.fixture
def run(place: Place) -> Callable[..., Said]:
    return place.run


def records(header: RunSpec, tree: bytes) -> bytes:
    """Return a feed with a tree of one's own making, otherwise in order."""
    proper = b"".join(feed(header, MemoryArchive({})))
    upto = 4 + int.from_bytes(proper[:4], "big")
    for _ in range(2):  # how to wait, and the header
        upto += 5 + int.from_bytes(proper[upto + 1 : upto + 5], "big")
    end = json.dumps({"bytes": len(tree), "sha256": hashlib.sha256(tree).hexdigest()}).encode()
    parts = ((b"T", tree), (b"E", end), (b"G", b""))
    return proper[:upto] + b"".join(kind + len(data).to_bytes(4, "big") + data for kind, data in parts)


# -- how pytest ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "code", "collection_errors", "message"),
    [
        ("def test_a(): pass", 0, 0, "1 passed."),
        ("def test_a(): assert 0\ndef test_b(): pass", 1, 0, "1 failed, 1 passed."),
        ("def test_a(:", 2, 1, "1 error; test_it.py could not be collected: SyntaxError: invalid syntax."),
        (
            "import nope",
            2,
            1,
            "1 error; test_it.py could not be collected: ModuleNotFoundError: No module named 'nope'.",
        ),
        ("import pytest\ndef test_a(): pytest.exit('enough', returncode=3)", 3, 0, "Exit: enough."),
        ("def test_a(): raise KeyboardInterrupt", 2, 0, "KeyboardInterrupt."),
        ("x = 1", 5, 0, "no tests were found."),
        (
            "def test_a(): raise OSError(28, 'No space left on device')",
            1,
            0,
            "1 failed; test_it.py::test_a met a limit of the disk: OSError: [Errno 28] No space left on device.",
        ),
    ],
)
def test_the_code_and_the_counts_are_pytests_own(
    run: Callable[..., Said], tree: str, code: int, collection_errors: int, message: str | None
) -> None:
    said = run(tree)
    assert (said.exit_code, said.trailer.exit_code, said.trailer.message) == (code, code, message)
    assert (said.trailer.outcome, said.trailer.session_finished) == (Outcome.TESTS_RAN, True)
    assert said.trailer.collection_errors == collection_errors


def test_wrong_arguments_are_a_usage_error_before_any_session(run: Callable[..., Said]) -> None:
    said = run("", pytest_args=("--no-such-option",))
    assert (said.exit_code, said.trailer.session_finished) == (4, False)
    assert said.trailer.message == "unrecognized arguments: --no-such-option."


def test_a_conftest_that_cannot_be_loaded_is_named(run: Callable[..., Said]) -> None:
    said = run({"conftest.py": "import nope", "test_it.py": ""})
    assert said.exit_code == 4
    assert (said.trailer.message or "").endswith(
        "conftest.py could not be loaded: ModuleNotFoundError: No module named 'nope'."
    )


def test_a_failure_of_pytest_itself_is_said_with_its_exception(run: Callable[..., Said]) -> None:
    said = run(
        {
            "conftest.py": "def pytest_runtest_protocol(): raise ValueError('boom')",
            "test_it.py": "def test_a(): 0",
        }
    )
    assert (said.exit_code, said.trailer.message) == (3, "ValueError: boom.")


def test_too_many_warnings_are_counted(run: Callable[..., Said]) -> None:
    tree = "import warnings\ndef test_a(): warnings.warn('w')"
    said = run(tree, pytest_args=("--max-warnings", "0"))
    assert (said.exit_code, said.trailer.message) == (6, "1 passed, 1 warnings.")


LEAVING: list[tuple[str, int | None, int | None]] = [
    ("os._exit(0)", 0, None),
    ("os._exit(1)", 1, None),
    ("os._exit(137)", 137, None),
    ("os.kill(os.getpid(), 9)", None, 9),
]
MORE_LEAVING: list[tuple[str, int | None, int | None]] = [
    ("os._exit(107)", 107, None),
    ("os._exit(143)", 143, None),
    ("os._exit(255)", 255, None),
    ("os.kill(os.getpid(), 11)", None, 11),
]


@pytest.mark.parametrize(
    ("statement", "exit_code", "signal_number"), LEAVING + (MORE_LEAVING if SOAKING else [])
)
def test_leaving_early_is_never_a_success(
    run: Callable[..., Said], statement: str, exit_code: int | None, signal_number: int | None
) -> None:
    said = run(f"import os\ndef test_a(): {statement}")
    assert said.exit_code == 1
    assert (said.trailer.exit_code, said.trailer.signal) == (exit_code, signal_number)
    assert not said.trailer.session_finished
    assert (said.trailer.message or "").endswith(" while test_it.py::test_a ran.")


def test_a_success_that_leaves_with_another_code_is_no_success(run: Callable[..., Said]) -> None:
    tree = "import atexit, os\natexit.register(os._exit, 0)\ndef test_a(): assert 0"
    said = run(tree)
    assert (said.exit_code, said.trailer.exit_code, said.trailer.session_finished) == (1, 0, False)
    assert said.trailer.message == "pytest left with 0 although its session had finished with 1."


@pytest.mark.parametrize(
    ("conftest", "doing"),
    [
        ("import os; os._exit(0)", "while pytest was starting"),
        ("import os\ndef pytest_collectstart(): os._exit(0)", "while the tests were collected"),
        ("import os\ndef pytest_sessionfinish(): os._exit(0)", "while the session was ending"),
        ("import os\ndef pytest_runtest_teardown(): os._exit(0)", "while test_it.py::test_a ran"),
        (
            "import os\ndef pytest_runtest_logfinish(): os._exit(0)",
            "between tests, after test_it.py::test_a",
        ),
    ],
)
def test_wherever_it_leaves_early_it_is_no_success_and_said(
    run: Callable[..., Said], conftest: str, doing: str
) -> None:
    said = run({"conftest.py": conftest, "test_it.py": "def test_a(): pass"})
    assert (said.exit_code, said.trailer.exit_code, said.trailer.session_finished) == (1, 0, False)
    assert (said.trailer.message or "").startswith(
        f"pytest left with 0 before its session was finished, {doing}."
    )


def test_what_kills_it_after_its_session_leaves_no_success(run: Callable[..., Said]) -> None:
    said = run("import atexit, os\natexit.register(os.kill, os.getpid(), 9)\ndef test_a(): pass")
    assert (said.exit_code, said.trailer.signal, said.trailer.session_finished) == (1, 9, False)
    assert said.trailer.message == "pytest was killed by signal 9 (SIGKILL) after the session."


FORGER = """
import json, os
def name(n): return os.readlink(f'/proc/self/fd/{n}') if os.path.exists(f'/proc/self/fd/{n}') else ''
def test_a():
    fact = {"finished": 0, "collection_errors": 0, "summary": "9 passed", "doing": ""}
    for n in range(3, 30):
        if 'pipe' in name(n):
            os.write(n, json.dumps({"token": TOKEN, **fact}).encode() + b"\\n")
    LEAVE
"""


@pytest.mark.parametrize("leave", ["os._exit(0)", "assert 0"])
def test_a_report_forged_on_the_inherited_descriptor_is_passed_over(
    run: Callable[..., Said], leave: str
) -> None:
    said = run(FORGER.replace("TOKEN", "''").replace("LEAVE", leave))
    assert said.exit_code == 1
    assert said.trailer.message != "9 passed."


def test_a_session_that_ends_twice_has_not_ended(run: Callable[..., Said]) -> None:
    """Whoever steals the token, and lets pytest go on, contradicts the reporter."""
    token = "__import__('_ci_reporter')._task[1]"
    said = run(FORGER.replace("TOKEN", token).replace("LEAVE", "pass"))
    assert (said.exit_code, said.trailer.session_finished) == (1, False)


def test_a_session_within_a_test_does_not_speak_for_the_whole(run: Callable[..., Said]) -> None:
    inner = "def test_inner(): assert 0"
    outer = "import pytest, os\ndef test_a():\n assert pytest.main(['inner.py']) == 1\n os._exit(1)"
    said = run({"test_it.py": outer, "inner.py": inner})
    assert not said.trailer.session_finished


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"5",
        b"{}",
        b"\xff",
        b"[" * 50_000,
        b'{"token": "t", "doing": "", "finished": Infinity, "collection_errors": 0, "summary": ""}',
        b'{"token": "u", "doing": "", "finished": 0, "collection_errors": 0, "summary": ""}',
        b'{"doing": "", "finished": 0, "collection_errors": 0, "summary": ""}',
    ],
)
def test_a_report_that_is_not_ours_says_nothing(line: bytes) -> None:
    reports = Reports()
    reports.token = "t"
    reports.feed(line + b"\n")
    assert reports.finished is None


def test_a_message_is_one_printable_line_whatever_the_job_reports(run: Callable[..., Said]) -> None:
    doing = "\x1b]0;title\n\ud800 nice"
    write = "[os.write(n, DATA + b'\\n') for n in range(3, 30) if 'pipe' in name(n)]"
    tree = (
        "import _ci_reporter, json, os\n"
        f"DATA = json.dumps({{'token': _ci_reporter._task[1], 'doing': {doing!r}}}).encode()\n"
        "def name(n): return os.readlink(f'/proc/self/fd/{n}') if os.path.exists(f'/proc/self/fd/{n}') else ''\n"
        f"def test_a():\n {write}\n os._exit(0)"
    )
    message = run(tree).trailer.message or ""
    assert "nice" in message
    assert message.isprintable()


def test_with_workers_only_the_main_process_reports(run: Callable[..., Said], env: dict[str, str]) -> None:
    said = run("def test_a(): pass\ndef test_b(): assert 0", pytest_args=("-p", "xdist", "-n", "2"))
    assert (said.exit_code, said.trailer.session_finished) == (1, True)
    assert said.trailer.message == "1 failed, 1 passed."


# -- what comes out --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a run said, and between which moments it did."""

    said: Said
    began: int
    ended: int

    def passed(self, test: str) -> bool:
        """Tell whether that test is said to have passed, in green."""
        return re.search(rb"::%b \x1b\[32mPASSED" % test.encode(), self.said.log) is not None


ORDINARY: dict[str, str | bytes] = {
    "pytest.ini": "[pytest]\naddopts = -v\n",
    "src/late.py": "x = 1",
    "src/json.py": "raise ImportError('in front of the standard library')",
    "do.sh": "#!/bin/sh\n",
    "test_it.py": """
import os
def test_plan():
    import json, late
    assert os.environ['CI'] == 'true'
def test_clean(): assert not {'COLUMNS', 'FORCE_COLOR', '_CI_REPORT'} & set(os.environ)
def test_modes(): assert os.access('do.sh', os.X_OK) and not os.access('test_it.py', os.X_OK)
""",
}


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Run:
    """One run of an ordinary project, which several tests look at."""
    place = Place.make(tmp_path_factory.mktemp("ordinary"), python)
    began = int(time.time() * 1000)
    said = place.run(ORDINARY, install=InstallPlan(paths=("src",)))
    return Run(said, began, int(time.time() * 1000))


def test_the_order_of_events_and_the_sum_in_the_trailer(ordinary: Run) -> None:
    said = ordinary.said
    assert said.exit_code == 0, said.log.decode()
    assert said.events == ["begun", "phase"]
    assert said.log.startswith(b"==> Running python -m pytest\n")
    assert said.trailer.log_bytes == len(said.log)
    assert said.trailer.log_sha256 == hashlib.sha256(said.log).hexdigest()


def test_what_happens_is_dated(ordinary: Run) -> None:
    said = ordinary.said
    events = [frame.at for frame in said.frames if isinstance(frame, EventFrame)]
    moments = [ordinary.began, *events, said.trailer.first_output_at, said.trailer.at, ordinary.ended]
    assert moments == sorted(moment for moment in moments if moment is not None)


def test_pytest_writes_in_colour_and_its_children_do_not_know(ordinary: Run) -> None:
    assert ordinary.passed("test_clean"), ordinary.said.log.decode()


def test_the_plan_s_environment_and_paths_are_in_force(ordinary: Run) -> None:
    assert ordinary.passed("test_plan"), ordinary.said.log.decode()


def test_modes_of_files_are_kept(ordinary: Run) -> None:
    assert ordinary.passed("test_modes"), ordinary.said.log.decode()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Said:
    """What is said of a run whose whole output is those bytes."""
    place = Place.make(tmp_path_factory.mktemp("raw"), python)
    conftest = f"import os\nos.write(1, open('raw', 'rb').read())\nos._exit(0)\nassert {len(RAW)}"
    return place.run({"conftest.py": conftest, "raw": RAW, "test_it.py": ""}, pytest_args=("-s",))


def test_output_is_byte_exact(raw: Said) -> None:
    assert raw.log == b"==> Running python -m pytest -s\n" + RAW


def test_every_line_is_ascii_json_under_16_kib(raw: Said) -> None:
    lines = raw.stdout.splitlines(keepends=True)
    assert max(map(len, lines)) < 16 * 1024
    assert [json.loads(line.decode("ascii"))["n"] for line in lines] == list(range(1, len(lines) + 1))


def test_output_that_looks_like_a_trailer_is_only_output(run: Callable[..., Said]) -> None:
    forged = json.dumps(
        {"n": 10**6, "t": "end", "outcome": "tests_ran", "exit_code": 0, "session_finished": True}
    )
    said = run(f"def test_a(): print('''\\n{forged}\\n'''); assert 0")
    assert said.trailer.exit_code == 1
    assert forged.encode() in said.log


# -- gathering -------------------------------------------------------------------------------------------------------


def test_bursts_are_gathered_so_that_frames_are_few(run: Callable[..., Said], spec: RunSpec) -> None:
    tree = """
import os, time
def test_a():
    began = time.monotonic()
    for _ in range(400):
        os.write(1, b".")
        time.sleep(0.001)
    open("elapsed", "w").write(str(time.monotonic() - began))
"""
    said = run(tree, pytest_args=("-s",))
    frames = sum(isinstance(frame, OutputFrame) and set(frame.data) == {ord(".")} for frame in said.frames)
    elapsed = float((Path(spec.workspace) / "elapsed").read_text())
    assert b"." * 400 in said.log
    assert frames <= 1 + 100 * elapsed


def test_only_what_follows_close_behind_is_gathered(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "GATHER_SECONDS", 3600)
    log = output.Log()
    log.output(b"at once")
    assert Said(capfd.readouterr().out.encode(), 0).log == b"at once"
    assert log.due == float("inf")
    log.output(b"later ")
    log.output(b"together")
    assert capfd.readouterr().out == ""
    assert log.due < float("inf")
    log.event("phase")
    said = Said(capfd.readouterr().out.encode(), 0)
    assert [type(frame) for frame in said.frames] == [OutputFrame, EventFrame]
    assert said.log == b"later together"
    log.output(b"x" * output.FRAME_BYTES)
    assert Said(capfd.readouterr().out.encode(), 0).log == b"x" * output.FRAME_BYTES
    log.output(b"the end")
    log.trailer("tests_ran", None, {})
    said = Said(capfd.readouterr().out.encode(), 0)
    assert said.log == b"the end"
    assert said.trailer.log_bytes == len(b"at oncelater togetherthe end") + output.FRAME_BYTES


# -- installing ------------------------------------------------------------------------------------------------------


def test_a_step_that_fails_ends_the_run_and_says_why(run: Callable[..., Said]) -> None:
    step = InstallStep("requirements.txt", (), ("install", "-r", "requirements.txt"))
    said = run("def test_a(): pass", install=InstallPlan((step,)))  # there is no such file, and no uv
    assert (said.exit_code, said.trailer.outcome) == (101, Outcome.INSTALL_FAILED)
    assert said.log.startswith(b"==> Installing requirements.txt with pip\n")
    message = said.trailer.message or ""
    assert message.startswith("Installing requirements.txt failed: Could not open requirements file")
    assert message.endswith(" (pip ended with 1).")


# -- memory ----------------------------------------------------------------------------------------------------------

# As Linux 6.18 shows them in a container of Docker 20.10.
MEMORY_V1 = {
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
    "memory/memory.max_usage_in_bytes": "67108864\n",
    "memory/memory.limit_in_bytes": "67108864\n",
}
# In the form that the kernel documents; not seen at work here, because no machine with cgroup v2 was at hand.
MEMORY_V2 = {
    "memory.events": "low 0\nhigh 0\nmax 23\noom 1\noom_kill {kills}\noom_group_kill 0\n",
    "memory.peak": "67108864\n",
    "memory.max": "67108864\n",
}
BEFORE_5_19 = {"memory.events": MEMORY_V2["memory.events"], "memory.max": "67108864\n"}


def cgroup(folder: Path, files: dict[str, str], kills: int) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text.format(kills=kills))
    return str(folder)


@pytest.mark.parametrize("files", [MEMORY_V1, MEMORY_V2, BEFORE_5_19], ids=["v1", "v2", "v2-without-peak"])
def test_kills_for_memory_are_counted_and_said_with_the_numbers(
    tmp_path: Path, files: dict[str, str]
) -> None:
    found = memory.Memory(cgroup(tmp_path, files, kills=1))
    assert found.kills() == 0  # that one was before us
    cgroup(tmp_path, files, kills=3)
    assert found.kills() == 2
    said = "pytest was killed for memory at 64 MiB of 64 MiB while a ran."
    assert found.sentence("pytest was", "while a ran") == said


@pytest.mark.parametrize(
    "files",
    [
        {},
        {**MEMORY_V1, "memory/memory.limit_in_bytes": "9223372036854771712\n"},
        {**MEMORY_V2, "memory.max": "max\n"},
    ],
    ids=["none", "v1-unlimited", "v2-unlimited"],
)
def test_without_a_limit_there_are_no_numbers(tmp_path: Path, files: dict[str, str]) -> None:
    found = memory.Memory(cgroup(tmp_path, files, kills=0))
    assert (found.kills(), found.sentence("pytest was", "")) == (0, "pytest was killed for memory.")


# -- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interfaces", "isolated"),
    [
        ({"lo": "0x9"}, True),
        ({"lo": "0x9", "eth0": "0x1003"}, False),
        ({"lo": "0x9", "tunl0": "0x80"}, True),  # a kernel's own, down: nobody in there may bring it up
        ({}, True),
    ],
)
def test_only_an_interface_that_is_up_is_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interfaces: dict[str, str], isolated: bool
) -> None:
    for name, flags in interfaces.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "flags").write_text(f"{flags}\n")
    monkeypatch.setattr(network, "INTERFACES", str(tmp_path))
    assert network.is_isolated() is isolated


def test_where_interfaces_cannot_be_seen_no_isolation_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "INTERFACES", str(tmp_path / "absent"))
    assert not network.is_isolated()


# -- limits ----------------------------------------------------------------------------------------------------------

SLOW = "import time\ndef test_ok(): pass\ndef test_slow(): time.sleep(60)"
STUBBORN = "import signal, time\nsignal.signal(2, signal.SIG_IGN)\nsignal.signal(15, signal.SIG_IGN)\n" + SLOW


def test_the_time_out_interrupts_so_that_pytest_sums_up(run: Callable[..., Said]) -> None:
    said = run(SLOW, timeout_seconds=4)
    assert (said.exit_code, said.trailer.outcome) == (102, Outcome.TIMEOUT)
    assert said.trailer.message == "The time-out of 4 s passed while test_it.py::test_slow ran."
    assert b"==> The time-out of 4 s passed, interrupting\n" in said.log
    assert b"KeyboardInterrupt" in said.log


STUCK = """
import ctypes, threading, time
def in_a_lock(): (lock := threading.Lock()).acquire(); lock.acquire()
def in_sleep(): time.sleep(60)
def in_c(): ctypes.CDLL(None).sleep(60)
def in_c_with_the_interpreters_lock(): ctypes.PyDLL(None).sleep(60)
def test_hangs():
    for stuck in (in_a_lock, in_sleep, in_c):
        threading.Thread(target=stuck, daemon=True).start()
    time.sleep(0.2)
    in_c_with_the_interpreters_lock()
"""


def test_before_the_first_signal_every_threads_stack_is_in_the_log(run: Callable[..., Said]) -> None:
    said = run(STUCK, timeout_seconds=8, interrupt_grace_seconds=0.3, terminate_grace_seconds=0.3)
    _, line, dump = said.log.partition(b"==> The time-out of 8 s passed, interrupting\n")
    assert line
    assert dump.startswith(b"==> The stacks of all threads of pytest:\n")
    for function in ("in_a_lock", "in_sleep", "in_c", "in_c_with_the_interpreters_lock", "test_hangs"):
        assert f" in {function}\n".encode() in dump, dump.decode()
    assert said.trailer.message == "The time-out of 8 s passed while test_it.py::test_hangs ran."


def test_the_workers_of_xdist_dump_too_and_what_they_run_is_said(run: Callable[..., Said]) -> None:
    tree = "import time, pytest\n@pytest.mark.parametrize('n', [1, 2])\ndef test_slow(n): time.sleep(60)"
    said = run(tree, idle_timeout_seconds=8, pytest_args=("-p", "xdist", "-n", "2"))
    assert said.trailer.outcome is Outcome.IDLE_TIMEOUT
    beginning, _, tests = (said.trailer.message or "").partition(" while ")
    assert beginning == "There was no output for 8 s"
    # In the order in which the workers began them, which is theirs.
    assert sorted(tests.removesuffix(" ran.").split(" and ")) == [
        "test_it.py::test_slow[1]",
        "test_it.py::test_slow[2]",
    ]
    assert said.log.count(b"==> The stacks of all threads of its process ") == 2
    assert said.log.count(b" in test_slow\n") >= 2


def test_where_nothing_can_dump_nobody_is_asked(run: Callable[..., Said]) -> None:
    """The signal would kill a program without a handler for it."""
    steps = (InstallStep("it", (), ("install",)),)
    install = (
        "import signal, time\nsignal.signal(2, lambda *_: print('interrupted', flush=True))\ntime.sleep(60)"
    )
    grace = {"interrupt_grace_seconds": 0.3, "terminate_grace_seconds": 0.3}
    said = run({"pip.py": install, "test_it.py": ""}, install=InstallPlan(steps), timeout_seconds=2, **grace)
    assert said.trailer.message == "The time-out of 2 s passed while installing it."
    assert b"interrupted" in said.log
    assert b"stacks" not in said.log


def test_silence_ends_the_run(run: Callable[..., Said]) -> None:
    said = run(SLOW, idle_timeout_seconds=2.5)
    assert (said.exit_code, said.trailer.outcome) == (103, Outcome.IDLE_TIMEOUT)


def test_output_resets_the_patience_with_silence(run: Callable[..., Said]) -> None:
    talking = "import time\ndef test_a():\n for _ in range(10): time.sleep(0.4); print('.', flush=True)"
    assert run(talking, idle_timeout_seconds=3, pytest_args=("-s",)).exit_code == 0


def test_who_ignores_everything_is_killed(run: Callable[..., Said]) -> None:
    grace = {"interrupt_grace_seconds": 0.2, "terminate_grace_seconds": 0.2}
    said = run(STUBBORN, timeout_seconds=1.5, **grace)
    assert said.trailer.outcome is Outcome.TIMEOUT


def test_the_log_limit_cuts_exactly_there(run: Callable[..., Said]) -> None:
    said = run("def test_a():\n while True: print('y' * 100)", log_limit=100_000, pytest_args=("-s",))
    assert (said.exit_code, said.trailer.outcome) == (104, Outcome.LOG_LIMIT)
    kept, marker = said.log[:100_000], said.log[100_000:]
    assert kept.endswith(b"y")
    assert marker == b"\n==> The log limit of 97.66 KiB is reached, killing everything\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_lets_pytest_sum_up(
    command: list[str], spec: RunSpec, env: dict[str, str], number: signal.Signals
) -> None:
    tree = {"test_it.py": SLOW.replace("time.sleep", "print('sleeping', flush=True); time.sleep")}
    with started_harness(command, fed(tree, spec, pytest_args=("-s",)), b"sleeping", env) as (process, lines):
        process.send_signal(number)
        said = rest_of(process, lines)
    assert (said.exit_code, said.trailer.outcome) == (105, Outcome.STOPPED)
    assert b"==> Stopping on request" in said.log
    assert b"1 passed" in said.log


def test_told_to_stop_as_a_step_ends_it_does_not_begin_the_next(
    command: list[str], spec: RunSpec, env: dict[str, str]
) -> None:
    step = """
import os, time
open("pid", "w").write(str(os.getpid()))
print("waits for go", flush=True)
while not os.path.exists("go"): time.sleep(0.01)
"""
    stdin = fed(
        {"pip.py": step, "test_it.py": "def test_a(): pass"},
        spec,
        install=InstallPlan((InstallStep("it", (), ("install",)),)),
    )
    workspace = Path(spec.workspace)
    with started_harness(command, stdin, b"waits for go", env) as (process, lines):
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: _state(process.pid) == "T", what="the harness standing still")
        process.send_signal(signal.SIGINT)
        (workspace / "go").touch()
        eventually(lambda: not _is_running(int((workspace / "pid").read_text())), what="the step's end")
        process.send_signal(signal.SIGCONT)
        said = rest_of(process, lines)
    assert (said.exit_code, said.trailer.outcome) == (105, Outcome.STOPPED)
    assert b"Running python -m pytest" not in said.log


def test_told_to_stop_while_it_is_fed_nothing_runs(
    command: list[str], spec: RunSpec, env: dict[str, str]
) -> None:
    stdin = fed({"test_it.py": ""}, spec)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    with process:
        assert process.stdin is not None
        process.stdin.write(stdin[:-5])
        process.stdin.flush()
        workspace = Path(spec.workspace)
        eventually(lambda: (workspace / "test_it.py").exists(), what="the unpacked tree")
        process.send_signal(signal.SIGINT)
        said = rest_of(process, [])
    assert (said.exit_code, said.trailer.outcome, said.events) == (105, Outcome.STOPPED, [])


def test_what_pytest_left_running_is_killed_and_its_output_kept(
    run: Callable[..., Said], spec: RunSpec
) -> None:
    left = "import os, subprocess, sys\ndef test_a():\n p = subprocess.Popen(['/bin/sleep', '100'])\n"
    said = run(left + " open('pid', 'w').write(str(p.pid))", pytest_args=("-s",))
    assert said.exit_code == 0
    pid = int((Path(spec.workspace) / "pid").read_text())
    eventually(lambda: not _is_running(pid), what="the end of what was left running")


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and _state(pid) != "Z"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# -- a feed that is not whole ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.95, 0.99, 0.9999])
def test_a_feed_that_breaks_off_starts_nothing(
    command: list[str], spec: RunSpec, env: dict[str, str], share: float
) -> None:
    stdin = fed({"test_it.py": "", "filling": bytes(100_000)}, spec)
    said = run_harness(command, stdin[: int(len(stdin) * share)], env)
    assert (said.exit_code, said.log, said.stray, said.events) == (100, b"", b"", [])


def test_without_go_nothing_starts(command: list[str], spec: RunSpec, env: dict[str, str]) -> None:
    said = run_harness(command, fed({"test_it.py": ""}, spec)[:-5], env)
    assert (said.exit_code, said.trailer.outcome, said.events) == (100, Outcome.NOT_STARTED, [])


def test_a_damaged_tree_starts_nothing(command: list[str], spec: RunSpec, env: dict[str, str]) -> None:
    stdin = fed({"test_it.py": "def test_a(): pass  # marker"}, spec)
    said = run_harness(command, stdin.replace(b"# marker", b"# Marker"), env)
    assert (said.exit_code, said.trailer.message) == (100, "The tree arrived damaged.")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("link", tarfile.SYMTYPE),
        ("hard", tarfile.LNKTYPE),
        ("../up", tarfile.REGTYPE),
        ("/abs", tarfile.REGTYPE),
    ],
)
def test_a_tree_is_files_below_the_workspace_and_nothing_else(
    command: list[str], spec: RunSpec, env: dict[str, str], name: str, kind: bytes
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    said = run_harness(command, records(spec, stream.getvalue()), env)
    assert (said.exit_code, said.trailer.outcome, said.events) == (107, Outcome.BAD_ARCHIVE, [])


def test_a_name_that_no_file_system_takes_is_the_archives_fault(
    command: list[str], spec: RunSpec, env: dict[str, str]
) -> None:
    said = run_harness(command, fed({"n" * 300 + ".py": ""}, spec), env)
    assert said.trailer.outcome is Outcome.BAD_ARCHIVE


def test_a_file_above_the_limit_of_one_is_the_archives_fault(
    command: list[str], spec: RunSpec, env: dict[str, str]
) -> None:
    """Not the machine's, on which it would be tried again and again."""
    limited = ["/bin/sh", "-c", 'ulimit -f 64; exec "$@"', "sh", *command]
    said = run_harness(limited, fed({"test_it.py": "", "big.bin": b"x" * 2**20}, spec), env)
    assert (said.exit_code, said.trailer.outcome) == (107, Outcome.BAD_ARCHIVE)
    assert "File too large" in (said.trailer.message or "")


# -- the sources -----------------------------------------------------------------------------------------------------


def imports_of(name: str) -> set[str]:
    """Return what a module imports that the standard library does not have, parsed as the oldest Python would."""
    source = resources.files("ci_controller.harness").joinpath(f"{name}.py").read_text("utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {module for module in imported if module.partition(".")[0] not in sys.stdlib_module_names}


@pytest.mark.parametrize("index", range(len(HARNESS_MODULES)), ids=HARNESS_MODULES)
def test_each_module_runs_on_the_oldest_python_and_needs_only_those_before_it(index: int) -> None:
    before = {f"ci_controller.harness.{name}" for name in HARNESS_MODULES[:index]}
    assert imports_of(HARNESS_MODULES[index]) <= before


def test_the_reporter_needs_pytest_alone() -> None:
    assert imports_of("reporter") == {"pytest"}
    text = resources.files("ci_controller.harness").joinpath("reporter.py").read_text("utf-8")
    assert f"_DUMP_SIGNAL = {stacks.DUMP_SIGNAL}  #" in text


def test_its_outcomes_are_the_decoders() -> None:
    assert {*ending.EXIT_CODES, "tests_ran"} == {outcome.value for outcome in Outcome}
    assert all(100 <= code <= 119 for code in (*ending.EXIT_CODES.values(), ending.HARNESS_FAILED))
