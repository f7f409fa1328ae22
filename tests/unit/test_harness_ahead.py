"""pytest ahead, with the harness as an ordinary process: when it is used, when it is not, and that it never stays."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ci_controller.feed import PYTHON_ARGUMENTS, RunSpec, prelude, run_feed
from ci_controller.frames import Outcome
from ci_controller.install_plan import InstallPlan, InstallStep
from tests.support.eventually import eventually
from tests.support.harness import DEFAULTS, MemoryArchive, OpenHarness, Said, open_harness
from tests.support.soak import SOAKING

Tree = dict[str, str | bytes]

# Every process that imports pytest leaves its number.
COUNTED = """
import os as _os
with open(_os.path.join(_os.environ["HOME"], "imported"), "a") as _file:
    _file.write(f"{_os.getpid()}\\n")
if "SPEAK" in _os.environ:
    print("imported", flush=True)
"""
WHO = "import os\ndef test_a(): open('pid', 'w').write(str(os.getpid()))"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with a pytest among its own packages, as that of an image with an environment has it."""
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages, ours = place / "lib" / version / "site-packages", Path(sysconfig.get_paths()["purelib"])
    for pattern in (
        "_pytest",
        "py.py",
        "pytest-*.dist-info",
        "pluggy*",
        "iniconfig*",
        "packaging*",
        "pygments*",
    ):
        for path in ours.glob(pattern):
            (packages / path.name).symlink_to(path)
    shutil.copytree(ours / "pytest", packages / "pytest", ignore=shutil.ignore_patterns("__pycache__"))
    with (packages / "pytest" / "__init__.py").open("a") as file:
        file.write(COUNTED)
    return place / "bin" / "python"


@dataclass
class Place:
    """Where one harness runs, and what can be seen of it from there."""

    python: Path
    home: Path
    spec: RunSpec

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": f"{self.python.parent}:/usr/bin:/bin", "HOME": str(self.home)}

    @contextmanager
    def harness(
        self, environment: Mapping[str, str] | None = None, *, ahead: bool = True
    ) -> Generator[OpenHarness]:
        """Give a harness that was told how to wait, and does; with pytest imported."""
        constants = self.spec.install.environment if environment is None else environment
        with open_harness([sys.executable, *PYTHON_ARGUMENTS], self.env) as harness:
            harness.send(prelude(constants, ahead=ahead, workspace=self.spec.workspace))
            if ahead:
                eventually(self.imports, what="pytest imported")
            yield harness

    def run(self, tree: Tree, *, ahead: bool = True, **changes: object) -> Said:
        """Return what is said of a tree whose run comes when pytest waits."""
        with self.harness(ahead=ahead) as harness:
            harness.send(self.feed(tree, **changes))
            return harness.rest()

    def feed(self, tree: Tree, **changes: object) -> list[bytes]:
        spec = replace(self.spec, **changes)  # pyright: ignore[reportArgumentType]
        return list(run_feed(spec, MemoryArchive(tree)))

    def imports(self) -> list[int]:
        """Return which processes imported pytest, in their order."""
        file = self.home / "imported"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def ran_in(self) -> int:
        return int((Path(self.spec.workspace) / "pid").read_text())

    def traces(self) -> list[str]:
        """Return what stands of ours among the packages."""
        packages = next((self.python.parent.parent / "lib").glob("*/site-packages"))
        return sorted(path.name for path in packages.rglob("*_ci_*"))


@pytest.fixture
def place(python: Path, tmp_path: Path) -> Place:
    (tmp_path / "home").mkdir()
    return Place(python, tmp_path / "home", replace(DEFAULTS, workspace=str(tmp_path / "workspace")))


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


# -- when it is used -------------------------------------------------------------------------------------------------


def test_the_tests_run_in_the_process_that_had_pytest_before_there_was_a_tree(place: Place) -> None:
    with place.harness() as harness:
        [waiting] = place.imports()
        harness.send(place.feed({"test_it.py": WHO}))
        said = harness.rest()
    assert (said.exit_code, said.trailer.message, said.stray) == (0, "1 passed.", b"")
    assert (place.ran_in(), place.imports()) == (waiting, [waiting])
    assert said.events == ["begun", "phase"]


def test_it_has_the_arguments_the_environment_and_the_paths_of_the_run(place: Place) -> None:
    tree: Tree = {
        "src/late.py": "x = 1",
        "test_it.py": "import os, sys, late\n"
        "def test_a():\n"
        " assert sys.argv[1:] == sys.orig_argv[3:] == ['-p', '_ci_reporter', '--color=yes', '-k', 'a or ü']\n"
        " assert os.environ['PDM_BUILD_SCM_VERSION'] == '9'\n"
        " assert not [name for name in os.environ if name.startswith('_CI_')]\n" + WHO,
    }
    plan = InstallPlan(
        environment={**InstallPlan().environment, "PDM_BUILD_SCM_VERSION": "9"}, paths=("src",)
    )
    said = place.run(tree, install=plan, pytest_args=("-k", "a or ü"))
    assert said.exit_code == 0, said.log.decode()
    assert place.imports() == [place.ran_in()]


def test_nothing_of_it_is_left_for_what_the_tests_start(place: Place) -> None:
    script = "import os; print(sorted(os.listdir('/proc/self/fd')), flush=True)"
    tree = f"import subprocess, sys\ndef test_a(): subprocess.run([sys.executable, '-c', {script!r}], close_fds=False)"
    said = place.run({"test_it.py": tree}, pytest_args=("-s",))
    assert b"['0', '1', '2', '3']" in said.log  # the last is the listing's own
    assert "!_ci_ahead.pth" not in place.traces()


def test_it_can_be_slower_than_the_tree(place: Place) -> None:
    constants = place.spec.install.environment
    with open_harness([sys.executable, *PYTHON_ARGUMENTS], place.env) as harness:
        harness.send(prelude(constants, ahead=True, workspace=place.spec.workspace))
        harness.send(place.feed({"test_it.py": WHO}))
        said = harness.rest()
    assert said.exit_code == 0
    assert place.imports() == [place.ran_in()]


def test_how_it_ends_is_pytests_own(place: Place) -> None:
    said = place.run({"test_it.py": "import os\ndef test_a(): os._exit(0)"})
    assert (said.exit_code, said.trailer.session_finished) == (1, False)
    assert said.trailer.message == (
        "pytest left with 0 before its session was finished, while test_it.py::test_a ran."
    )


# -- when it is not --------------------------------------------------------------------------------------------------


# One of each kind in every run: the standard library's, a package's, and what no environment needs to have.
SHADOWS = ["typing.py", "pluggy/__init__.py", "sitecustomize.py"]
MORE_SHADOWS = ["py.py", "iniconfig.py"]


@pytest.mark.parametrize("shadow", SHADOWS + (MORE_SHADOWS if SOAKING else []))
def test_what_the_tree_puts_in_front_of_a_module_is_what_counts(place: Place, shadow: str) -> None:
    """The same process begins anew, and says what a fresh one says."""
    tree: Tree = {shadow: "raise ImportError('the tree came first')", "test_it.py": WHO}
    fresh = place.run(tree, ahead=False)
    before = len(place.imports())
    shutil.rmtree(place.spec.workspace)
    said = place.run(tree)
    waited = place.imports()[before:]
    assert (said.exit_code, said.trailer.message) == (fresh.exit_code, fresh.trailer.message), (
        said.log.decode()
    )
    assert len(waited) == 1 + before, "pytest was imported once more than by a fresh one"
    assert len(set(waited)) == 1, "in the same process"


def test_it_begins_anew_for_a_name_that_was_looked_for_in_vain(place: Place) -> None:
    with place.harness() as harness:
        [waiting] = place.imports()
        harness.send(place.feed({"usercustomize/x.txt": "", "test_it.py": WHO}, pytest_args=("-v",)))
        said = harness.rest()
    assert (said.exit_code, place.ran_in(), place.imports()) == (0, waiting, [waiting, waiting])


def test_it_is_gone_before_anything_is_installed(place: Place) -> None:
    step = InstallStep("it", (), ("install",))
    pip = f"""
import os
waiting = open({str(place.home / "imported")!r}).read().split()[0]
open("waits", "w").write(str(os.path.exists(f"/proc/{{waiting}}/exe")))
"""
    with place.harness() as harness:
        [waiting] = place.imports()
        harness.send(place.feed({"pip.py": pip, "test_it.py": WHO}, project_steps=(step,)))
        said = harness.rest()
    assert (said.exit_code, (Path(place.spec.workspace) / "waits").read_text()) == (0, "False"), (
        said.log.decode()
    )
    assert place.imports() == [waiting, place.ran_in()]
    assert place.ran_in() != waiting


def test_who_killed_it_wins_nothing(place: Place) -> None:
    with place.harness() as harness:
        [waiting] = place.imports()
        os.kill(waiting, signal.SIGKILL)
        eventually(lambda: not is_running(waiting), what="its end")
        harness.send(place.feed({"test_it.py": WHO}))
        said = harness.rest()
    assert (said.exit_code, said.trailer.message) == (0, "1 passed.")
    assert place.ran_in() != waiting


def test_what_it_printed_meanwhile_stands_in_the_log_once(place: Place) -> None:
    plan = InstallPlan(environment={**InstallPlan().environment, "SPEAK": "1"})
    with place.harness(plan.environment) as harness:
        harness.send(place.feed({"test_it.py": WHO}, install=plan))
        said = harness.rest()
    assert (said.exit_code, said.log.count(b"imported\n")) == (0, 1)


@pytest.mark.parametrize("environment", [{"PYTHONHASHSEED": "1"}, {"LANG": "de_DE.UTF-8"}, {"CI": "no"}])
def test_in_another_environment_it_starts_as_always(place: Place, environment: dict[str, str]) -> None:
    plan = InstallPlan(environment={**InstallPlan().environment, **environment})
    said = place.run({"test_it.py": WHO}, install=plan)
    assert said.exit_code == 0
    waiting, fresh = place.imports()
    assert waiting != fresh == place.ran_in()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("zz_hook.pth", "import sys; sys.hook = 'there'"),
        ("sitecustomize.py", "import sys; sys.hook = 'there'"),
    ],
)
def test_where_packages_run_code_before_pytest_nothing_is_imported_ahead(
    place: Place, name: str, text: str
) -> None:
    packages = next((place.python.parent.parent / "lib").glob("*/site-packages"))
    (packages / name).write_text(text)
    tree = "import sys\ndef test_a(): assert sys.hook == 'there'\n" + WHO.replace("test_a", "test_b")
    try:
        with open_harness([sys.executable, *PYTHON_ARGUMENTS], place.env) as harness:
            harness.send(prelude(place.spec.install.environment, ahead=True, workspace=place.spec.workspace))
            eventually(lambda: "_ci_reporter.py" in place.traces() and "!_ci_ahead.pth" not in place.traces())
            harness.send(place.feed({"test_it.py": tree}))
            said = harness.rest()
    finally:
        (packages / name).unlink()
    assert said.exit_code == 0, said.log.decode()
    assert place.imports() == [place.ran_in()]


def test_without_a_pytest_nothing_waits(place: Place, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    place.python = tmp_path / "bare" / "bin" / "python"
    tree: Tree = {"pip.py": "raise SystemExit(9)", "test_it.py": WHO}
    with open_harness([sys.executable, *PYTHON_ARGUMENTS], place.env) as harness:
        harness.send(prelude(place.spec.install.environment, ahead=True, workspace=place.spec.workspace))
        harness.send(place.feed(tree))
        said = harness.rest()
    assert said.trailer.outcome is Outcome.INSTALL_FAILED
    assert place.traces() == ["_ci_reporter.py"]


# -- it does not stay ------------------------------------------------------------------------------------------------


def test_with_the_input_it_ends(place: Place) -> None:
    with place.harness() as harness:
        [waiting] = place.imports()
        said = harness.rest()
    assert (said.exit_code, said.trailer.outcome, said.events) == (100, Outcome.NOT_STARTED, [])
    eventually(lambda: not is_running(waiting), what="its end")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_both_end(place: Place, number: signal.Signals) -> None:
    with place.harness() as harness:
        [waiting] = place.imports()
        harness.process.send_signal(number)
        harness.process.wait(30)  # its input is still open: it is the signal that ends it
        said = harness.rest()
    assert (said.exit_code, said.trailer.outcome, said.events, said.log) == (105, Outcome.STOPPED, [], b"")
    eventually(lambda: not is_running(waiting), what="its end")


def test_told_to_stop_the_tests_sum_up(place: Place) -> None:
    tree = "import time\ndef test_ok(): pass\ndef test_slow(): print('sleeping', flush=True); time.sleep(60)"
    with place.harness() as harness:
        harness.send(place.feed({"test_it.py": tree}, pytest_args=("-s",)))
        harness.wait_for_log(b"sleeping")
        harness.process.send_signal(signal.SIGINT)
        said = harness.rest()
    assert (said.exit_code, said.trailer.outcome, len(place.imports())) == (105, Outcome.STOPPED, 1)
    assert b"1 passed" in said.log


def test_a_tree_that_cannot_be_written_is_charged_where_packages_of_the_job_have_run(place: Place) -> None:
    tree: Tree = {"n" * 300 + ".py": ""}
    assert place.run(tree, ahead=False).events == []
    assert place.run(tree).events == ["begun"]
