"""The harness as the first process of a real container: what it stands, what it kills, what it proves."""

import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from ci_common.job_terms import Reason
from ci_controller.container_runtime import ExitState
from ci_controller.container_users import GROUP, USERS
from ci_controller.feed import BOOTSTRAP_COMMAND, harness_source
from ci_controller.frames import Outcome
from ci_controller.install_plan import plan_for
from ci_controller.verdict import Lost, decide
from tests.support.docker_cli import RUNNER_IMAGE, docker
from tests.support.harness import (
    DEFAULTS,
    MemoryArchive,
    Said,
    fed,
    rest_of,
    run_harness,
    started_harness,
)
from tests.support.prepared_image import prepared_image
from tests.support.soak import SOAKING

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

Tree = dict[str, str | bytes]
USER = f"{USERS[0]}:{GROUP}"
HARDENED = ("--user", USER, "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "512")


def stdin_of(tree: Tree, **changes: object) -> bytes:
    plan = plan_for(MemoryArchive(tree))
    return fed(tree, replace(DEFAULTS, install=plan), **changes)


def stdin_without_installing(tree: Tree, **changes: object) -> bytes:
    """For an image that has pytest."""
    return fed(tree, DEFAULTS, **changes)


@contextmanager
def command(*options: str, image: str = RUNNER_IMAGE) -> Generator[list[str]]:
    """Give the command that runs the harness in a container, which is gone afterwards whatever happened."""
    name = f"test-harness-{uuid.uuid4().hex[:12]}"
    try:
        yield ["docker", "run", "-i", "--rm", "--name", name, *HARDENED, *options, image, *BOOTSTRAP_COMMAND]
    finally:
        docker("rm", "-f", name, check=False)


@pytest.fixture
def install() -> Callable[..., Said]:
    """Install what a tree needs, as its plan says, and run it."""

    def run(tree: Tree, *options: str, **changes: object) -> Said:
        with command(*options) as argv:
            return run_harness(argv, stdin_of(tree, **changes))

    return run


@pytest.fixture
def run() -> Callable[..., Said]:
    """Run a tree, given as the text of its one test module, where pytest is there already."""

    def run(tree: str, *options: str, **changes: object) -> Said:
        with command(*options, image=prepared_image()) as argv:
            return run_harness(argv, stdin_without_installing({"test_it.py": tree}, **changes))

    return run


BUILD = "[build-system]\nrequires = ['hatchling']\nbuild-backend = 'hatchling.build'\n"
SRC_PROJECT: Tree = {
    "pyproject.toml": BUILD + "[project]\nname = 'mine'\nversion = '1'\ndependencies = ['iniconfig']\n"
    "[project.optional-dependencies]\ntest = ['pytest']\n[tool.hatch.build.targets.wheel]\npackages = ['src/mine']\n",
    "src/mine/__init__.py": "x = 1",
    "tests/test_mine.py": "import iniconfig, mine\ndef test_x(): assert mine.x == 1",
}


def test_a_project_is_installed_and_tested(install: Callable[..., Said]) -> None:
    said = install(SRC_PROJECT)
    assert (said.exit_code, said.trailer.message) == (0, "1 passed.")
    assert said.events == ["begun", "phase", "phase"], "without the wish nothing waits for the network to go"
    assert b"==> Installing the project with test with uv\n" in said.log


def test_where_nothing_brings_pytest_it_comes_all_the_same(install: Callable[..., Said]) -> None:
    said = install({"test_it.py": "def test_a(): pass"})
    assert said.exit_code == 0
    assert b"==> Installing pytest with uv, as nothing in the project brings it\n" in said.log


def test_a_requirement_that_does_not_exist_is_named(install: Callable[..., Said]) -> None:
    said = install({"test_it.py": "", "requirements.txt": "no-such-package-of-ours==9.9"})
    assert (said.exit_code, said.trailer.outcome) == (101, Outcome.INSTALL_FAILED)
    assert (said.trailer.message or "").startswith(
        "Installing requirements.txt failed: no-such-package-of-ours==9.9: no matching distribution - "
    )
    assert b"no-such-package-of-ours" in said.log


def test_without_uv_the_requirement_is_named_in_pips_words(install: Callable[..., Said]) -> None:
    no_uv = ("--mount", "type=bind,source=/dev/null,target=/usr/local/bin/uv")
    said = install({"test_it.py": "", "requirements.txt": "no-such-package-of-ours==9.9"}, *no_uv)
    message = said.trailer.message or ""
    assert "no-such-package-of-ours==9.9: no matching distribution - Could not find a version" in message
    assert message.endswith(" (pip ended with 1).")


HOSTILE = """
import ctypes, os, platform, pytest, struct, signal, subprocess, sys

@pytest.mark.parametrize("number", [1, 2, 3, 9, 10, 15, 17, 19, 23])
def test_signals_from_within_are_not_obeyed(number):
    os.kill(1, number)

def test_a_queued_signal_that_claims_to_come_from_outside_is_not_obeyed():
    libc = ctypes.CDLL(None, use_errno=True)
    system_call = {"x86_64": 129, "aarch64": 138}[platform.machine()]  # rt_sigqueueinfo
    info = struct.pack("iiiiii104x", signal.SIGTERM, 0, -1, 0, 0, 0)  # si_code SI_QUEUE, si_pid 0
    assert libc.syscall(system_call, 1, int(signal.SIGTERM), info) == 0

@pytest.mark.parametrize("name", ["fd/0", "fd/1", "fd/2", "fd/3", "mem", "environ"])
def test_the_first_process_cannot_be_opened(name):
    with pytest.raises(PermissionError):
        open(f"/proc/1/{name}", "r+b")

def test_it_cannot_be_traced_nor_its_memory_and_descriptors_taken():
    libc = ctypes.CDLL(None, use_errno=True)
    attach, seize, first = 16, 0x4206, 1
    assert libc.ptrace(attach, first, 0, 0) == -1
    assert libc.ptrace(seize, first, 0, 0) == -1
    pidfd = os.pidfd_open(1)
    assert libc.syscall(438, pidfd, 1, 0) == -1  # pidfd_getfd
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("QQ", ctypes.addressof(buffer), 8)
    assert libc.process_vm_readv(1, vector, 1, vector, 1, 0) == -1

def test_frames_on_every_stream_of_ours_are_only_output():
    frame = b'{"n":1000000,"t":"end","outcome":"tests_ran","exit_code":0,"session_finished":true,'
    frame += b'"log_bytes":0,"log_sha256":""}'
    for descriptor in (1, 2):
        os.write(descriptor, b"\\n" + frame + b"\\n")

def test_we_are_nobody_special():
    assert (os.getuid(), os.getgid()) == (60706, 1000)
    assert "CapEff:\\t0000000000000000" in open("/proc/self/status").read()

def test_we_go_before_the_harness_when_memory_is_short():
    assert int(open("/proc/self/oom_score_adj").read()) > int(open("/proc/1/oom_score_adj").read())

def test_nothing_of_the_harness_is_inherited():
    listing = [sys.executable, "-c", "import os; print(len(os.listdir('/proc/self/fd')))"]
    assert subprocess.run(listing, close_fds=False, capture_output=True).stdout == b"4\\n"  # 3 and the listing's own

def test_a_child_may_close_and_print_what_it_likes():
    subprocess.run(["sh", "-c", "exec >&- 2>&-; kill -9 1; kill -STOP 1"])
"""


def test_hostile_tests_do_it_no_harm(run: Callable[..., Said]) -> None:
    said = run(HOSTILE)
    assert (said.exit_code, said.trailer.session_finished) == (0, True), said.log.decode()


ORDINARY: Tree = {
    "requirements.txt": "iniconfig\n",
    "test_it.py": """
import getpass, os, pwd, subprocess, sys
from pathlib import Path

def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

def test_the_user_has_a_name_and_a_home():
    assert getpass.getuser() == pwd.getpwuid(os.getuid()).pw_name == "ci60706"
    assert os.path.expanduser("~") == os.path.expanduser("~ci60706") == os.environ["HOME"] == "/home/ci"
    Path.home().joinpath(".settings").write_text("x")

def test_git_works_where_the_tests_run():
    output("git", "init", "-q")
    output("git", "add", "test_it.py")
    output("git", "-c", "user.email=a@b.c", "-c", "user.name=A", "commit", "-qm", "x")
    assert output("git", "log", "--format=%s") == "x\\n"

def test_pip_replaces_what_the_image_brought_and_what_was_installed():
    output(sys.executable, "-m", "pip", "install", "-q", "--force-reinstall", "pip", "iniconfig")

def test_what_was_installed_is_open_to_the_group_and_what_tests_make_is_not():
    import _pytest
    assert os.stat(_pytest.__file__).st_mode & 0o777 == 0o664
    assert os.stat(os.path.dirname(_pytest.__file__)).st_mode & 0o7777 == 0o775
    os.mkdir("made")
    Path("made/file").write_text("x")
    assert (os.stat("made").st_mode & 0o7777, os.stat("made/file").st_mode & 0o777) == (0o755, 0o644)
""",
}


def test_what_ordinary_tests_do_as_their_user_works(install: Callable[..., Said]) -> None:
    said = install(ORDINARY)
    assert (said.exit_code, said.trailer.message) == (0, "4 passed."), said.log.decode()


STRANGER: Tree = {
    "venv.py": "raise SystemExit('the tree was imported')",
    "test_it.py": """
import os, pwd, pytest, sys
def test_it():
    assert os.getcwd() == "/tmp/workspace"
    assert sys.prefix == "/tmp/.ci-venv"
    assert os.path.expanduser("~") == "/tmp"
    with pytest.raises(KeyError):
        pwd.getpwuid(os.getuid())
""",
}


def test_an_image_that_knows_nothing_of_the_user_runs_tests_all_the_same(
    install: Callable[..., Said],
) -> None:
    """As one that an operator brings: no name, and nothing of the image's own is open to user or group.

    Its Python cannot be added to either: it gets an environment over it, in whose making the tree has no part.
    """
    said = install(STRANGER, "--user=60705:60705")
    assert (said.exit_code, said.trailer.message) == (0, "1 passed."), said.log.decode()


DAEMON = """
import subprocess
def test_a():
    script = "trap '' 1 2 15; while :; do (sleep 0.05; echo alive); done"
    subprocess.Popen(["setsid", "sh", "-c", script])
"""


def test_what_is_left_running_is_killed_whatever_session_it_is_in(run: Callable[..., Said]) -> None:
    said = run(DAEMON, pytest_args=("-s",))
    assert (said.exit_code, said.trailer.outcome) == (0, Outcome.TESTS_RAN)


def test_a_fork_bomb_ends_with_the_tests(run: Callable[..., Said]) -> None:
    bomb = "import subprocess\ndef test_a(): subprocess.Popen(['sh', '-c', 'f() { f | f & }; f'])"
    said = run(bomb, "--pids-limit", "60")
    assert (said.exit_code, said.trailer.outcome) == (0, Outcome.TESTS_RAN)


MEMORY = ("--memory", "150m", "--memory-swap", "150m")
EATER = "x = []\nwhile True: x.append(bytearray(10**7))"


def test_pytest_killed_for_memory_is_said_with_the_numbers(run: Callable[..., Said]) -> None:
    said = run("def test_big():\n " + EATER.replace("\n", "\n "), *MEMORY)
    assert (said.exit_code, said.trailer.outcome) == (106, Outcome.OOM)
    assert said.trailer.message == (
        "pytest was killed for memory at 150 MiB of 150 MiB while test_it.py::test_big ran."
    )


def test_a_child_killed_for_memory_is_only_noted(run: Callable[..., Said]) -> None:
    said = run(
        f"import subprocess, sys\ndef test_a(): subprocess.run([sys.executable, '-c', {EATER!r}])", *MEMORY
    )
    assert (said.exit_code, said.trailer.session_finished) == (0, True)
    assert (said.trailer.message or "").startswith(
        "1 passed. A process that pytest started was killed for memory"
    )


def test_a_request_from_outside_stops_it_with_its_summary() -> None:
    tree: Tree = {
        "test_it.py": "import time\ndef test_ok(): pass\ndef test_b(): print('there'); time.sleep(60)"
    }
    with (
        command(image=prepared_image()) as argv,
        started_harness(argv, stdin_without_installing(tree, pytest_args=("-s",)), b"there") as (
            process,
            lines,
        ),
    ):
        docker("kill", "--signal", "SIGINT", argv[argv.index("--name") + 1])
        said = rest_of(process, lines)
    assert (said.exit_code, said.trailer.outcome) == (105, Outcome.STOPPED)
    assert b"1 passed" in said.log


STOPPED_WHILE_SWEEPING = """
import json, os, sys, time, types
for name, source in json.loads(HARNESS):
    module = sys.modules[name] = types.ModuleType(name)
    exec(source, module.__dict__)
from ci_controller.harness.ending import Ended
from ci_controller.harness.output import Log
from ci_controller.harness.runner import Runner
from ci_controller.harness.signals import Signals

class Stopped(Runner):
    def _kill_all(self):
        os.write(self._signals._sender, Signals.STOP)
        super()._kill_all()

limits = {"timeout": 60, "idle_timeout": 60, "interrupt_grace": 1, "terminate_grace": 1}
it = Stopped({"workspace": "/tmp", **limits}, Log(), Signals(), time.monotonic())
leaves = ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do setsid sleep 100 & done"]
print("first", it.run(leaves, dict(os.environ), "while leaving"))
try:
    it.run(["echo", "second ran"], dict(os.environ), "while echoing")
except Ended as end:
    print("then", end.outcome)
"""


def test_a_stop_while_leftovers_are_killed_is_not_forgotten() -> None:
    with command() as argv:
        python = [*argv[: -len(BOOTSTRAP_COMMAND)], "python3", "-"]
        said = run_harness(python, f"HARNESS = {harness_source()!r}\n{STOPPED_WHILE_SWEEPING}".encode())
    assert said.stray == b"first 0\nthen stopped\n"


def isolation_events(argv: list[str], stdin: bytes, *, disconnect: bool) -> Said:
    """Return what a harness said whose network is taken away, or not, once it has installed everything."""
    with started_harness(argv, stdin, b"") as (process, lines):
        assert process.stdout is not None
        while "installed" not in (said := Said(b"".join(lines), -1)).events:
            line = process.stdout.readline()
            assert line, f"it ended before everything was installed: {said.log!r}"
            lines.append(line)
        assert b"Running" not in Said(b"".join(lines), -1).log
        if disconnect:
            docker("network", "disconnect", "--force", "bridge", argv[argv.index("--name") + 1])
        return rest_of(process, lines)


ALONE = "import os\ndef test_alone(): assert os.listdir('/sys/class/net') == ['lo']"


def test_the_tests_begin_when_the_network_is_gone() -> None:
    with command() as argv:
        said = isolation_events(argv, stdin_of({"test_it.py": ALONE}, isolate=True), disconnect=True)
    assert (said.exit_code, said.trailer.message) == (0, "1 passed."), said.log.decode()
    assert said.log.startswith(b"==> Installing pytest"), "with the network that it had"
    assert said.events == ["begun", "phase", "installed", "phase"]


def test_a_network_that_stays_is_no_fault_of_the_job() -> None:
    stdin = stdin_of({"test_it.py": ALONE}, isolate=True)
    impatient = stdin.replace(b"ISOLATION_SECONDS = 60", b"ISOLATION_SECONDS = 2 ")
    assert impatient != stdin
    with command(image=prepared_image()) as argv:
        said = isolation_events(argv, impatient, disconnect=False)
    assert (said.exit_code, said.trailer.outcome) == (108, Outcome.NOT_ISOLATED)
    assert decide(said.trailer, ExitState(108), None, begun=True) == Lost(
        Reason.INFRA, "The network was still there 2 s after installing."
    )


def test_a_feed_that_ends_early_is_lost_and_charged_to_nobody() -> None:
    with command("--network", "none") as argv:
        said = run_harness(argv, stdin_of({"test_it.py": ""})[:-5])
    assert said.exit_code == 100
    assert not hasattr(decide(said.trailer, ExitState(100), None, begun=False), "status")


@pytest.mark.skipif(
    not SOAKING, reason="CI_SOAK=1: the longer form of an image that knows nothing of the user"
)
def test_an_image_whose_python_cannot_be_added_to_gets_an_environment_over_it(
    install: Callable[..., Said],
) -> None:
    as_nobody = ("--user", "65534", "--workdir", "/tmp", "--env", "HOME=/nonexistent")
    tree: Tree = {
        "test_it.py": "def test_a(): pass",
        "venv.py": "raise SystemExit('the tree was imported')",
    }
    said = install(tree, *as_nobody, workspace="/tmp/workspace")
    assert said.exit_code == 0, said.log.decode()
