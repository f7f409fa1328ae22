"""A run that makes an environment on its way, and feeds that are not what they should be: as an ordinary process."""

import json
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ci_controller.feed import PYTHON_ARGUMENTS, Build, RunSpec, build_feed, prelude, run_feed, tree_feed
from ci_controller.frames import Outcome
from ci_controller.harness import leftovers, runner
from ci_controller.harness.output import Log
from ci_controller.harness.runner import Runner
from ci_controller.harness.signals import Signals
from ci_controller.install_plan import InstallPlan, InstallStep
from tests.support.harness import DEFAULTS, MemoryArchive, OpenHarness, open_harness

STEP = InstallStep("requirements.txt", (), ("install",))
OWN = InstallStep("the project", (), ("install", "-e", "."))
# Stands where pip would be, as the directory of a step is the tree: installs one module, and leaves a mess.
PIP = """
import os, sysconfig, sys
assert open("requirements.txt").read() == "dep"
packages = sysconfig.get_paths()["purelib"]
with open(os.path.join(packages, "dep.py"), "w") as file:
    file.write(f"umask = {os.umask(0)}\\nenvironment = {dict(os.environ)!r}")
os.makedirs("build/closed/inner")
open("build/closed/inner/file", "w").close()
os.chmod("build/closed/inner", 0)
os.chmod("build", 0o500)
os.symlink(packages, "link")
for name in ("TMPDIR", "XDG_CACHE_HOME", "UV_CACHE_DIR", "PIP_CACHE_DIR"):
    open(os.path.join(os.environ[name], "cached"), "w").close()
"""
BUILD = Build((("requirements.txt", b"dep"), ("pip.py", PIP.encode())))
TREE = {
    "pip.py": "import sys\nopen('own', 'w').write(' '.join(sys.argv[1:]))",
    "test_it.py": "import dep, os\n"
    "def test_a(): assert dep.umask == 0o002 and 'TMPDIR' not in os.environ\n"
    "def test_b(): assert open('own').read() == 'install -e .'",
}


class Place:
    """Where one harness runs: an environment of its own, with pytest from ours."""

    def __init__(self, folder: Path, empty_environment: Path) -> None:
        shutil.copytree(empty_environment, folder / "venv", symlinks=True)
        [self.packages] = (folder / "venv" / "lib").glob("*/site-packages")
        (self.packages / "ours.pth").write_text(sysconfig.get_paths()["purelib"])
        self.home = folder / "home"
        self.home.mkdir()
        self.workspace = folder / "workspace"
        self.spec = replace(
            DEFAULTS,
            workspace=str(self.workspace),
            install=InstallPlan((STEP,)),
            project_steps=(OWN,),
        )
        self.env = {
            "PATH": f"{folder}/venv/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        self.command = [sys.executable, *PYTHON_ARGUMENTS]

    def prelude(self) -> bytes:
        constants = self.spec.install.environment
        return b"".join(prelude(constants, ahead=False, workspace=self.spec.workspace))

    def start(self, harness: OpenHarness, barrier: Callable[[], None], build: Build = BUILD) -> None:
        """The harness was fed everything, or as much as the barrier let through."""
        harness.send([self.prelude()])
        harness.send(build_feed(self.spec, build))
        barrier()
        harness.send(tree_feed(MemoryArchive(TREE)))

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.workspace)) for path in self.workspace.rglob("*"))


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is copied for every test: making it costs more than most of them."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder


@pytest.fixture
def place(tmp_path: Path, empty_environment: Path) -> Place:
    return Place(tmp_path, empty_environment)


def test_at_the_barrier_the_packages_are_there_and_nothing_else(place: Place) -> None:
    seen: list[object] = []

    def barrier() -> None:
        harness.wait_for("prepared")
        seen.append((place.files(), list(place.home.iterdir()), list(place.packages.glob("*_ci_*"))))
        seen.append((place.packages / "dep.py").stat().st_mode & 0o777)

    with open_harness(place.command, place.env) as harness:
        place.start(harness, barrier)
        said = harness.rest()
    assert seen == [([], [], []), 0o664]
    assert (said.exit_code, said.trailer.message) == (0, "2 passed."), said.log.decode()
    assert said.events == ["begun", "phase", "prepared", "phase", "phase"]
    assert said.log.startswith(
        b"==> Installing requirements.txt with pip\n==> Installing the project with pip\n==> Running"
    )


def test_what_uv_installs_for_an_image_is_compiled_and_not_what_it_installs_for_a_run(place: Place) -> None:
    uv = place.packages.parent.parent.parent / "bin" / "uv"
    uv.write_text('#!/bin/sh\necho "compile=$UV_COMPILE_BYTECODE" "$@"\n')
    uv.chmod(0o755)
    steps = [replace(step, uv=("sync", step.title.split()[-1])) for step in (STEP, OWN)]
    place.spec = replace(place.spec, install=InstallPlan((steps[0],)), project_steps=(steps[1],))
    with open_harness(place.command, place.env) as harness:
        place.start(harness, lambda: None)
        log = harness.rest().log
    assert b"compile=1 sync requirements.txt\n" in log
    assert b"compile= sync project\n" in log


def test_a_run_in_a_kept_environment_says_since_when_it_is_kept(place: Place) -> None:
    spec = replace(place.spec, install=InstallPlan(), project_steps=(), kept_from="2026-03-01 12:00 UTC")
    with open_harness(place.command, place.env) as harness:
        harness.send([place.prelude(), *run_feed(spec, MemoryArchive({"test_it.py": "def test_a(): pass"}))])
        log = harness.rest().log
    assert log.startswith(b"==> Using the environment kept from 2026-03-01 12:00 UTC\n==> Running")


def test_an_installation_that_fails_prepares_nothing(place: Place) -> None:
    build = Build((("pip.py", b"raise SystemExit('no such thing')"),))
    with open_harness(place.command, place.env) as harness:
        harness.send([place.prelude()])
        harness.send(build_feed(place.spec, build))
        said = harness.rest()
    assert (said.exit_code, said.trailer.outcome) == (101, Outcome.INSTALL_FAILED)
    assert said.events == ["begun", "phase"]


def test_told_to_stop_at_the_barrier_it_stops(place: Place) -> None:
    class Stop(Exception):
        pass

    def barrier() -> None:
        harness.wait_for("prepared")
        harness.process.send_signal(signal.SIGINT)
        raise Stop

    with open_harness(place.command, place.env) as harness:
        with pytest.raises(Stop):
            place.start(harness, barrier)
        assert harness.process.wait(30) == 105
        said = harness.rest()
    assert said.trailer.outcome is Outcome.STOPPED


def test_the_time_at_the_barrier_is_not_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(runner.time, "monotonic", lambda: now)
    signals = Signals.__new__(Signals)  # no thread that takes signals of this process
    it = Runner({"timeout": 60, "idle_timeout": 60}, Log(), signals, started=now)
    before = it._deadline  # pyright: ignore[reportPrivateUsage]
    with it.paused():
        now += 3600
    assert it._deadline == before + 3600  # pyright: ignore[reportPrivateUsage]


DEEP = """
import os
os.chdir(os.path.dirname(os.environ["TMPDIR"]))
for _ in range(1500):
    os.mkdir("d")
    os.chdir("d")
"""


def test_what_cannot_be_removed_is_the_fault_of_who_left_it(place: Place) -> None:
    """A chain of directories that is deeper than Python's own recursion goes, or is charged to the job."""
    build = Build((("requirements.txt", b"dep"), ("pip.py", DEEP.encode())))
    try:
        with open_harness(place.command, place.env) as harness:
            harness.send([place.prelude()])
            harness.send(build_feed(place.spec, build))
            said = harness.rest()
    finally:
        subprocess.run(
            ["rm", "-rf", place.home / ".ci-build"], check=True
        )  # pytest could not remove it either
    assert (said.exit_code, said.trailer.outcome) == (101, Outcome.INSTALL_FAILED), said.log.decode()


def test_a_link_is_removed_and_not_what_it_names(tmp_path: Path) -> None:
    kept, directory = tmp_path / "kept", tmp_path / "directory"
    (kept / "inner").mkdir(parents=True)
    (directory / "deep").mkdir(parents=True)
    (directory / "deep" / "link").symlink_to(kept)
    (directory / "link").symlink_to(kept)
    (directory / "dangling").symlink_to("nowhere")
    leftovers.empty(str(directory))
    assert (list(directory.iterdir()), (kept / "inner").is_dir()) == ([], True)


# -- feeds that are not whole, or not ours ---------------------------------------------------------------------------


def record(kind: bytes, payload: bytes = b"", size: int | None = None) -> bytes:
    return kind + (len(payload) if size is None else size).to_bytes(4, "big") + payload


def test_wherever_the_input_ends_before_the_user_s_code_nothing_has_run(place: Place) -> None:
    sent = list(build_feed(place.spec, BUILD))
    for fed in ([], [sent[0][:3]], [sent[0][:-1]], sent[:1], [*sent[:1], sent[1][:-7]], sent[:2]):
        with open_harness(place.command, place.env) as harness:
            harness.send([place.prelude(), *fed])
            said = harness.rest()
        assert (said.exit_code, said.trailer.outcome, said.events) == (100, Outcome.NOT_STARTED, [])
        assert said.log + said.stray == b""


def test_where_the_input_ends_at_the_barrier_no_test_has_run(place: Place) -> None:
    sent = list(build_feed(place.spec, BUILD))
    with open_harness(place.command, place.env) as harness:
        harness.send([place.prelude(), *sent])
        said = harness.rest()
    assert (said.exit_code, said.trailer.outcome) == (100, Outcome.NOT_STARTED)
    assert said.events == ["begun", "phase", "prepared"]


def hostile(spec: RunSpec) -> dict[str, bytes]:
    """Return feeds of somebody who is not our controller, by what is wrong with them."""
    header, *tree, _go = run_feed(spec, MemoryArchive(TREE))
    waiting = b"".join(prelude({}, ahead=False, workspace=spec.workspace))
    source = 4 + int.from_bytes(waiting[:4], "big")
    harness, waiting = waiting[:source], waiting[source:]
    document = json.loads(header[5:])
    part = tree[0]
    return {
        "no W": harness + header,
        "W twice": harness + waiting + waiting,
        "W that is no JSON": harness + record(b"W", b"\xff{"),
        "W that is deep": harness + record(b"W", b"[" * 100_000),
        "W that is a list": harness + record(b"W", b"[]"),
        "W without anything": harness + record(b"W", b"{}"),
        "W of a wrong type": harness + waiting.replace(b'"ahead": false', b'"ahead": "yes!"'.ljust(15)[:14]),
        "W too large": harness + record(b"W", size=64 * 1024 * 1024 + 1),
        "H that is no JSON": harness + waiting + record(b"H", b"nonsense"),
        "H without steps": harness + waiting + record(b"H", json.dumps({**document, "steps": None}).encode()),
        "H of text": harness + waiting + record(b"H", json.dumps({**document, "timeout": "long"}).encode()),
        "T before H": harness + waiting + part,
        "G before T": harness + waiting + header + record(b"G"),
        "H twice": harness + waiting + header + header,
        "an unknown record": harness + waiting + header + record(b"X", b"x"),
        "T that is no tar": harness + waiting + header + record(b"T", b"x" * 2000),
        "E that is no JSON": harness + waiting + header + part + record(b"E", b"{"),
        "E of something else": harness + waiting + header + part + record(b"E", b'{"bytes": 1}'),
        "T after E": harness + waiting + header + b"".join(tree) + part,
        "T too large": harness + waiting + header + record(b"T", size=2**32 - 1),
    }


@pytest.mark.parametrize("what", hostile(DEFAULTS))
def test_a_feed_that_is_not_ours_starts_nothing(place: Place, what: str) -> None:
    place.spec = replace(place.spec, install=InstallPlan(), project_steps=())
    with open_harness(place.command, place.env) as harness:
        harness.send([hostile(place.spec)[what]])
        said = harness.rest()
    assert (said.exit_code, said.trailer.outcome, said.events) == (100, Outcome.NOT_STARTED, []), said.stray
    assert said.log + said.stray == b""
