"""pytest ahead in a real container: whatever a project can see of its pytest is as in a fresh `python -m pytest`."""

import json
import re
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ci_controller.container_users import GROUP, USERS
from ci_controller.feed import BOOTSTRAP_COMMAND, prelude, run_feed
from ci_controller.install_plan import InstallPlan, InstallStep
from tests.integration.test_harness_docker import HOSTILE
from tests.support.docker_cli import docker
from tests.support.eventually import eventually
from tests.support.harness import DEFAULTS, MemoryArchive, OpenHarness, Said, open_harness
from tests.support.prepared_image import prepared_image
from tests.support.soak import SOAKING, soak_only

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine"), pytest.mark.timeout(300)]

Tree = dict[str, str | bytes]
USER = f"{USERS[0]}:{GROUP}"  # another than the one who installed, as with an image that was kept
HARDENED = ("--user", USER, "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "512")

# Says what it sees at the very end, when everything that pytest loads is loaded.
PROBE = """
import json, os, sys, warnings
conftests, started = [], list(sys.path)
def pytest_plugin_registered(plugin):
    if str(getattr(plugin, "__file__", "")).endswith("conftest.py"):
        conftests.append(plugin.__file__)
def loaders():
    return {
        name: type(getattr(getattr(module, "__spec__", None), "loader", None)).__name__
        for name, module in sorted(sys.modules.items())
    }
def pytest_unconfigure(config):
    if hasattr(config, "workerinput"):
        return
    seen = {
        "path": sys.path, "path at first": started, "argv": sys.argv, "orig_argv": sys.orig_argv, "cwd": os.getcwd(),
        "environment": {name: text for name, text in os.environ.items()},
        "flags": repr(sys.flags), "executable": [sys.executable, sys.prefix, sys.base_prefix],
        "plugins": [name for name, plugin in config.pluginmanager.list_name_plugin() if plugin and not name.isdigit()],
        "conftests": conftests, "modules": loaders(), "meta_path": [repr(type(finder)) + getattr(finder, "__name__", "")
        for finder in sys.meta_path], "umask": os.umask(0o022), "session": os.getsid(0) == os.getpid(),
        "invoked": list(map(str, config.invocation_params.args)), "root": str(config.rootpath),
        "ini": str(config.inipath), "main": sys.modules["__main__"].__spec__.name, "filters": len(warnings.filters),
        "descriptors": sorted(os.listdir("/proc/self/fd")), "oom": open("/proc/self/oom_score_adj").read(),
        "signals": [line for line in open("/proc/self/status") if line.startswith(("Sig", "Shd"))][1:],
        "hooks": [repr(type(hook)) for hook in sys.path_hooks], "threads": len(os.listdir("/proc/self/task")),
    }
    os.write(PRINT, b"\\nSEEN " + json.dumps(seen).encode() + b"\\n")
PRINT = os.dup(1)
"""


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """An image with an environment, as one that was kept from a build."""
    return prepared_image("pytest-xdist", "pytest-asyncio", "coverage", "iniconfig")


# Its process sleeps in the middle of reading a pipe.
IMPORTED = """
for p in /proc/[0-9]*; do grep -q -a _ci_reporter $p/cmdline && grep -q pipe $p/wchan && exit 0; done
"""


@contextmanager
def waiting(image: str, *, ahead: bool, until: str = IMPORTED) -> Generator[OpenHarness]:
    """Give a harness in a container of its own that waits for a run, with pytest imported where that is asked for."""
    name = f"test-ahead-{uuid.uuid4().hex[:12]}"
    options = ["-i", "--rm", "--hostname", "ci", "--name", name, *HARDENED]
    try:
        with open_harness(["docker", "run", *options, image, *BOOTSTRAP_COMMAND]) as harness:
            harness.send(prelude(InstallPlan().environment, ahead=ahead))
            if ahead:
                eventually(lambda: comes_to(name, until), what="pytest imported")
            yield harness
    finally:
        docker("rm", "-f", name, check=False)


def comes_to(container: str, script: str) -> bool:
    """Tell whether the script ended by `exit 0` in one of many rounds; they share one process that looks."""
    rounds = f"for n in $(seq 1000); do {script} sleep 0.02; done; exit 1"
    done = subprocess.run(["docker", "exec", container, "sh", "-c", rounds], check=False, capture_output=True)
    return done.returncode == 0


def said_of(image: str, tree: Tree, *, ahead: bool, **changes: object) -> Said:
    spec = replace(DEFAULTS, log_limit=16 * 1024**2, **changes)  # pyright: ignore[reportArgumentType]
    with waiting(image, ahead=ahead) as harness:
        harness.send(run_feed(spec, MemoryArchive(tree)))
        return harness.rest()


def comparable(said: Said) -> tuple[Any, ...]:
    """Return what must be equal: everything but durations, and the order in which workers report."""
    log = re.sub(rb"\d+\.\d+s", b"?s", said.log)
    seen = re.findall(rb"^SEEN (.*)$", log, re.MULTILINE)
    assert len(seen) == 1, log.decode()
    text = log.replace(seen[0], b"").splitlines()
    return json.loads(seen[0]), text, said.exit_code, said.trailer.message, said.events


# What the first of the others has all of at once, each alone: whoever looks for the cause of a difference has it there.
ARGUMENTS = ("-v", "-k", "b", "--durations=1", "-W", "error", "-o", "console_output_style=count")
APART: dict[str, tuple[Tree, dict[str, object]]] = {
    "a source layout with paths": (
        {"src/mine.py": "x = 1", "tests/test_it.py": "import mine\ndef test_a(): assert mine.x == 1"},
        {"install": InstallPlan(paths=("src",))},
    ),
    "conftests at several heights": (
        {
            "conftest.py": "import pytest\n@pytest.fixture\ndef one(): return 1",
            "a/conftest.py": "assert 1, 'rewritten'",
            "a/b/conftest.py": "",
            "a/b/test_it.py": "def test_a(one): assert one == 2",
        },
        {},
    ),
    "plugins of its own in its ini file": (
        {
            "pytest.ini": "[pytest]\naddopts = -p first -p no:doctest -p second --strict-markers\npythonpath = lib\n",
            "first.py": "def pytest_report_header(): return 'the first'",
            "lib/second.py": "def pytest_report_header(): assert True; return 'the second'",
            "test_it.py": "def test_a(): pass",
        },
        {},
    ),
    "arguments": (
        {"test_it.py": "def test_a(): pass\ndef test_b(): assert [1] == [2]"},
        {"pytest_args": ARGUMENTS},
    ),
    "an installed plugin": (
        {
            "pytest.ini": "[pytest]\nasyncio_mode = auto\n",
            "test_it.py": "import asyncio\nasync def test_a(): await asyncio.sleep(0)",
        },
        {},
    ),
}
SYNTHETIC: dict[str, tuple[Tree, dict[str, object]]] = {
    "all at once": (
        {
            "pytest.ini": "[pytest]\naddopts = -p first -p no:doctest -p second --strict-markers\n"
            "pythonpath = lib\nasyncio_mode = auto\n",
            "first.py": "def pytest_report_header(): return 'the first'",
            "lib/second.py": "def pytest_report_header(): assert True; return 'the second'",
            "src/mine.py": "x = 1",
            "conftest.py": "import pytest\n@pytest.fixture\ndef one(): return 1",
            "a/conftest.py": "assert 1, 'rewritten'",
            "a/b/conftest.py": "",
            "a/b/test_it.py": "def test_b(one): assert one == 2",
            "tests/test_mine.py": "import asyncio, mine\nasync def test_b(): await asyncio.sleep(0)\n"
            "def test_a(): pass\ndef test_bx(): assert mine.x == [2]",
        },
        {
            "install": InstallPlan(paths=("src",)),
            "pytest_args": ARGUMENTS,
        },
    ),
    "workers": (
        {"test_it.py": "def test_a(): pass\ndef test_b(): pass"},
        {"pytest_args": ("-n", "2")},
    ),
    "a module in front of the standard library's": (
        {"secrets.py": "x = 1", "test_it.py": "import secrets\ndef test_a(): assert secrets.x == 1"},
        {},
    ),
    "a module in front of one that pytest imports": (
        {"iniconfig.py": "raise ImportError('ours')", "test_it.py": "def test_a(): pass"},
        {},
    ),
    "a broken conftest": ({"conftest.py": "import nothing", "test_it.py": ""}, {}),
}
CASES = {**SYNTHETIC, **(APART if SOAKING else {})}


@pytest.mark.parametrize("name", CASES)
def test_a_project_sees_no_difference(image: str, name: str) -> None:
    tree, changes = CASES[name]
    arguments: Any = changes.get("pytest_args", ())
    changes = {**changes, "pytest_args": ("-p", "ci_probe", *arguments)}
    tree = {**tree, "ci_probe.py": PROBE}
    fresh, ahead = (said_of(image, tree, ahead=ahead, **changes) for ahead in (False, True))
    if b"SEEN" in fresh.log:
        assert_equal(comparable(ahead), comparable(fresh))
    else:  # pytest did not get that far
        assert (ahead.log, ahead.exit_code, ahead.trailer.message) == (
            fresh.log,
            fresh.exit_code,
            fresh.trailer.message,
        )


def assert_equal(ahead: tuple[Any, ...], fresh: tuple[Any, ...]) -> None:
    different = {key: (ahead[0][key], fresh[0][key]) for key in fresh[0] if ahead[0][key] != fresh[0][key]}
    assert different == {}
    assert ahead == fresh


@soak_only
@pytest.mark.parametrize("requirement", ["iniconfig", "click", "pluggy", "packaging"])
def test_a_real_project_sees_no_difference(image: str, tmp_path: Path, requirement: str) -> None:
    """Not installed, so that pytest ahead is used wherever the project itself does not forbid it."""
    tree: Tree = {**source_of(requirement, tmp_path), "ci_probe.py": PROBE}
    changes: dict[str, object] = {
        "install": InstallPlan(paths=("src",)),
        "pytest_args": ("-p", "ci_probe", "-q", "--tb=no", "-n0"),
    }
    fresh, ahead = (said_of(image, tree, ahead=ahead, **changes) for ahead in (False, True))
    seen, expected = comparable(ahead), comparable(fresh)
    assert_equal((seen[0], counts(ahead), seen[2:]), (expected[0], counts(fresh), expected[2:]))


def kept(base: str, script: str, text: str) -> str:
    """Return an image that is another after a script in it, which reads the text."""
    name, container = f"test-ahead:{uuid.uuid4().hex[:12]}", f"test-ahead-{uuid.uuid4().hex[:12]}"
    command = ["docker", "run", "-i", "--name", container, base, "sh", "-ec", script]
    try:
        subprocess.run(command, input=text.encode(), check=True, timeout=60)
        docker("commit", container, name)
    finally:
        docker("rm", "-f", container, check=False)
    return name


def test_what_runs_ahead_does_the_harness_no_more_harm_than_any_tests(image: str) -> None:
    said = said_of(image, {"test_it.py": HOSTILE}, ahead=True)
    assert (said.exit_code, said.trailer.session_finished) == (0, True), said.log.decode()


# Packages that do their worst as soon as pytest is imported: forge, kill, leave a daemon, and never come back.
FORGED = '{"n":1000000,"t":"end","outcome":"tests_ran","exit_code":0,"session_finished":true,"log_bytes":0}'
HOSTILE_PYTEST = f"""
import os, signal, subprocess
for descriptor in range(1, 20):
    try: os.write(descriptor, {f"{chr(10)}{FORGED}{chr(10)}".encode()!r})
    except OSError: pass
for number in (1, 2, 9, 15, 19):
    os.kill(1, number)
subprocess.Popen(["setsid", "sh", "-c", "trap '' 1 2 15; while :; do sleep 0.05; echo forged; done"])
open("/tmp/ready", "w").close()
signal.pause()
"""


def test_hostile_packages_ahead_forge_nothing_and_are_gone_when_a_step_runs(image: str) -> None:
    into = "cat > $(echo /opt/venv/lib/python3*/site-packages)/pytest/__init__.py"
    hostile = kept(image, into, HOSTILE_PYTEST)
    tree: Tree = {"look.py": "import os; print('there:', *[n for n in os.listdir('/proc') if n.isdigit()])"}
    look = InstallStep("look", ("run", "--no-project", "look.py"), ())
    spec = replace(DEFAULTS, project_steps=(look,), timeout_seconds=12, interrupt_grace_seconds=0.5)
    try:
        with waiting(hostile, ahead=True, until="test -e /tmp/ready && exit 0;") as harness:
            harness.send(run_feed(spec, MemoryArchive(tree)))
            said = harness.rest()
    finally:
        docker("rmi", "-f", hostile, check=False)
    there = said.log.partition(b"there: ")[2].partition(b"\n")[0].split()
    assert (there[:1], len(there) <= 3) == ([b"1"], True), said.log.decode()  # the harness, uv and the script
    assert (said.exit_code, said.stray, said.events[0]) == (102, b"", "begun")


def test_a_python_that_a_build_left_on_the_path_is_not_the_first_process(image: str) -> None:
    script = "cat > /tmp/python3; chmod +x /tmp/python3; mv /tmp/python3 /opt/venv/bin/python3"
    hostile = kept(image, script, f"#!/bin/sh\necho '{FORGED}'\n")
    try:
        said = said_of(hostile, {"test_it.py": "def test_a(): pass"}, ahead=False)
    finally:
        docker("rmi", "-f", hostile, check=False)
    assert (said.exit_code, said.stray, said.trailer.session_finished) == (1, b"", False)
    assert FORGED.encode() in said.log, "it was only what the tests ran with"


def test_what_a_build_closed_or_left_in_place_of_an_environment_does_not_stop_the_harness(image: str) -> None:
    """It would end or wait before anything of the job's is said to have begun: that is retried for nothing."""
    script = """
    cat > /tmp/left; chmod +x /tmp/left; mkdir -p ~/.ci-venv/bin; ln -s /tmp/left ~/.ci-venv/bin/python
    mv /opt/venv/lib /opt/venv/was; mkdir -m 0 /opt/venv/lib
    """
    hostile = kept(image, script, "#!/bin/sh\nexec sleep 1000\n")
    try:
        said = said_of(hostile, {"test_it.py": "def test_a(): pass"}, ahead=False)
    finally:
        docker("rmi", "-f", hostile, check=False)
    assert said.events[0] == "begun", said.log.decode()


def source_of(requirement: str, folder: Path) -> Tree:
    """Return the files of the source distribution."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", requirement]
    subprocess.run([*command, "-d", str(folder), requirement], check=True, capture_output=True)
    [packed] = folder.glob("*.tar.gz")
    with tarfile.open(packed) as tar:
        members = [(member, tar.extractfile(member)) for member in tar.getmembers() if member.isfile()]
        return {member.name.partition("/")[2]: file.read() for member, file in members if file is not None}


def counts(said: Said) -> list[bytes]:
    return re.findall(
        rb"\d+ (?:passed|failed|skipped|error|xfailed)", re.sub(rb"\x1b\[[0-9;]*m", b"", said.log)
    )
