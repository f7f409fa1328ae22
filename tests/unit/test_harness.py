"""The harness as an ordinary process: what goes in, what comes out, and what it ends with.

What only the first process of a container can show is in tests/integration/test_harness_docker.py.
"""

import ast
import hashlib
import io
import json
import signal
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from ci_controller.feed import BOOTSTRAP_COMMAND, RunSpec, feed
from ci_controller.frames import EventFrame, Outcome, OutputFrame
from ci_controller.harness import harness
from ci_controller.install_plan import InstallPlan, InstallStep
from tests.support.eventually import eventually
from tests.support.harness import DEFAULTS, MemoryArchive, Said, fed, rest_of, run_harness, started_harness

RAW = bytes(range(256)) * 50 + b"x" * 40_000 + b"\n" + "é".encode() * 9000 + b"\r partial \xc3"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own, as a job's container has one; pytest comes from ours."""
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (place / "lib" / version / "site-packages" / "ours.pth").write_text(sysconfig.get_paths()["purelib"])
    return place / "bin" / "python"


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return replace(DEFAULTS, workspace=str(tmp_path / "workspace"))


@pytest.fixture
def command(python: Path) -> list[str]:
    return [str(python), *BOOTSTRAP_COMMAND[1:]]


@pytest.fixture
def env(python: Path, tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    return {"PATH": str(python.parent), "HOME": str(home), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.fixture
def run(command: list[str], spec: RunSpec, env: dict[str, str]) -> Callable[..., Said]:
    """Run a tree, given as the text of its one test module or as files, with changes to the spec."""

    def run(tree: str | dict[str, str | bytes], **changes: object) -> Said:
        files: dict[str, str | bytes] = {"test_it.py": tree} if isinstance(tree, str) else tree
        return run_harness(command, fed(files, spec, **changes), env)

    return run


def records(header: RunSpec, tree: bytes) -> bytes:
    """Return a feed with a tree of one's own making, otherwise in order."""
    proper = b"".join(feed(header, MemoryArchive({})))
    first = 4 + int.from_bytes(proper[:4], "big")
    upto = first + 5 + int.from_bytes(proper[first + 1 : first + 5], "big")
    end = json.dumps({"bytes": len(tree), "sha256": hashlib.sha256(tree).hexdigest()}).encode()
    parts = ((b"T", tree), (b"E", end), (b"G", b""))
    return proper[:upto] + b"".join(kind + len(data).to_bytes(4, "big") + data for kind, data in parts)


# -- how pytest ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "code", "collection_errors", "message"),
    [
        ("def test_a(): pass", 0, 0, "1 passed."),
        ("def test_a(): assert 0\ndef test_b(): pass", 1, 0, "1 failed, 1 passed."),
        ("def test_a(:", 2, 1, "1 error."),
        ("import pytest\ndef test_a(): pytest.exit('enough', returncode=3)", 3, 0, None),
        ("x = 1", 5, 0, None),
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


@pytest.mark.parametrize(
    ("statement", "exit_code", "signal_number"),
    [
        ("os._exit(0)", 0, None),
        ("os._exit(1)", 1, None),
        ("os._exit(107)", 107, None),
        ("os.kill(os.getpid(), 9)", None, 9),
        ("os.kill(os.getpid(), 11)", None, 11),
    ],
)
def test_leaving_early_is_never_a_success(
    run: Callable[..., Said], statement: str, exit_code: int | None, signal_number: int | None
) -> None:
    said = run(f"import os\ndef test_a(): {statement}")
    assert said.exit_code == 1
    assert (said.trailer.exit_code, said.trailer.signal) == (exit_code, signal_number)
    assert not said.trailer.session_finished
    assert "while test_it.py::test_a ran" in (said.trailer.message or "")


def test_a_success_that_leaves_with_another_code_is_no_success(run: Callable[..., Said]) -> None:
    tree = "import atexit, os\natexit.register(os._exit, 0)\ndef test_a(): assert 0"
    said = run(tree)
    assert (said.exit_code, said.trailer.exit_code, said.trailer.session_finished) == (1, 0, False)


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
        b'{"finished": Infinity, "collection_errors": 0, "summary": ""}',
    ],
)
def test_a_report_that_is_not_ours_says_nothing(line: bytes) -> None:
    reports = harness.Reports()
    reports.feed(line + b"\n")
    assert reports.finished is None


def test_a_message_is_one_printable_line_whatever_the_job_reports(run: Callable[..., Said]) -> None:
    fact = json.dumps({"running": "\x1b]0;title\n\ud800 nice"})
    write = "[os.write(n, DATA + b'\\n') for n in range(3, 30) if 'pipe' in name(n)]"
    tree = (
        f"import os\nDATA = {fact!r}.encode()\n"
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


def test_the_order_of_events_and_the_sum_in_the_trailer(run: Callable[..., Said]) -> None:
    said = run("def test_a(): pass")
    assert said.events == ["begun", "phase"]
    assert said.log.startswith(b"==> Running python -m pytest\n")
    assert said.trailer.log_bytes == len(said.log)
    assert said.trailer.log_sha256 == hashlib.sha256(said.log).hexdigest()


def test_output_is_byte_exact(run: Callable[..., Said]) -> None:
    conftest = f"import os\nos.write(1, open('raw', 'rb').read())\nos._exit(0)\nassert {len(RAW)}"
    said = run({"conftest.py": conftest, "raw": RAW, "test_it.py": ""}, pytest_args=("-s",))
    assert said.log == b"==> Running python -m pytest -s\n" + RAW


def test_every_line_is_ascii_json_under_16_kib(run: Callable[..., Said]) -> None:
    said = run(
        {"conftest.py": "import os; os.write(1, open('raw', 'rb').read())", "raw": RAW}, pytest_args=("-s",)
    )
    lines = said.stdout.splitlines(keepends=True)
    assert max(map(len, lines)) < 16 * 1024
    assert [json.loads(line.decode("ascii"))["n"] for line in lines] == list(range(1, len(lines) + 1))


def test_output_that_looks_like_a_trailer_is_only_output(run: Callable[..., Said]) -> None:
    forged = json.dumps(
        {"n": 10**6, "t": "end", "outcome": "tests_ran", "exit_code": 0, "session_finished": True}
    )
    said = run(f"def test_a(): print('''\\n{forged}\\n'''); assert 0")
    assert said.trailer.exit_code == 1
    assert forged.encode() in said.log


def test_pytest_writes_in_colour_and_its_children_do_not_know(run: Callable[..., Said]) -> None:
    said = run(
        "import os\ndef test_a(): assert not {'COLUMNS', 'FORCE_COLOR', '_CI_REPORT'} & set(os.environ)"
    )
    assert said.exit_code == 0
    assert b"\x1b[32m" in said.log


def test_the_plan_s_environment_and_paths_are_in_force(run: Callable[..., Said]) -> None:
    tree: dict[str, str | bytes] = {
        "src/late.py": "x = 1",
        "src/json.py": "raise ImportError('in front of the standard library')",
        "test_it.py": "import json, late, os\ndef test_a(): assert os.environ['CI'] == 'true'",
    }
    assert run(tree, install=InstallPlan(paths=("src",))).exit_code == 0


def test_modes_of_files_are_kept(run: Callable[..., Said]) -> None:
    tree = {
        "do.sh": "#!/bin/sh\n",
        "test_it.py": "import os\ndef test_a(): assert os.access('do.sh', os.X_OK)",
    }
    assert run(tree).exit_code == 0


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
    monkeypatch.setattr(harness, "GATHER_SECONDS", 3600)
    log = harness.Log()
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
    log.output(b"x" * harness.FRAME_BYTES)
    assert Said(capfd.readouterr().out.encode(), 0).log == b"x" * harness.FRAME_BYTES
    log.output(b"the end")
    log.trailer("tests_ran", None, {})
    said = Said(capfd.readouterr().out.encode(), 0)
    assert said.log == b"the end"
    assert said.trailer.log_bytes == len(b"at oncelater togetherthe end") + harness.FRAME_BYTES


# -- installing ------------------------------------------------------------------------------------------------------


def test_a_step_that_fails_ends_the_run_and_says_why(run: Callable[..., Said]) -> None:
    step = InstallStep("requirements.txt", (), ("install", "-r", "requirements.txt"))
    said = run("def test_a(): pass", install=InstallPlan((step,)))  # there is no such file, and no uv
    assert (said.exit_code, said.trailer.outcome) == (101, Outcome.INSTALL_FAILED)
    assert said.log.startswith(b"==> Installing requirements.txt with pip\n")
    assert (said.trailer.message or "").startswith("Installing requirements.txt failed: pip ended with 1: ")
    assert "Could not open requirements file" in (said.trailer.message or "")


# -- limits ----------------------------------------------------------------------------------------------------------

SLOW = "import time\ndef test_ok(): pass\ndef test_slow(): time.sleep(60)"
STUBBORN = "import signal, time\nsignal.signal(2, signal.SIG_IGN)\nsignal.signal(15, signal.SIG_IGN)\n" + SLOW


def test_the_time_out_interrupts_so_that_pytest_sums_up(run: Callable[..., Said]) -> None:
    said = run(SLOW, timeout_seconds=4)
    assert (said.exit_code, said.trailer.outcome) == (102, Outcome.TIMEOUT)
    assert said.trailer.message == "The time-out of 4 s passed while test_it.py::test_slow ran."
    assert b"==> The time-out of 4 s passed, interrupting\n" in said.log
    assert b"KeyboardInterrupt" in said.log


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


# -- the sources -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["harness.py", "reporter.py"])
def test_they_run_on_the_oldest_python_we_promise(name: str) -> None:
    source = resources.files("ci_controller.harness").joinpath(name).read_text("utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in imported} - sys.stdlib_module_names <= {"pytest"}


def test_its_outcomes_are_the_decoders() -> None:
    assert {*harness.EXIT_CODES, "tests_ran"} == {outcome.value for outcome in Outcome}
    assert all(100 <= code <= 119 for code in (*harness.EXIT_CODES.values(), harness.HARNESS_FAILED))
