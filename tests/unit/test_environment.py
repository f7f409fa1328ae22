"""environment: how each kind of plan is divided, and what the key depends on."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_controller.environment import Environment, environment_for
from ci_controller.install_plan import plan_for
from tests.support.harness import MemoryArchive

BUILD = "[build-system]\nrequires = ['hatchling']\nbuild-backend = 'hatchling.build'\n"
STATIC = BUILD + "[project]\nname = 'my_pkg'\nversion = '1'\ndependencies = ['idna']\n"
EXTRAS = "[project.optional-dependencies]\ntest = ['My.Pkg[more]', 'pytest']\nmore = ['attrs']\n"
GROUPS = "[dependency-groups]\ndev = ['pytest']\n"
POETRY = "[tool.poetry]\nname = 'x'\n[tool.poetry.dependencies]\nidna = '*'\n"
POETRY_BACKEND = "[build-system]\nrequires = ['poetry-core']\nbuild-backend = 'poetry.core.masonry.api'\n"
PYTEST = "pip install pytest"


def environment(
    files: dict[str, str], *, image: str = "sha256:runner", owner: str = "ada", git: bool = False
) -> Environment:
    there = {"tests/test_a.py": "", **({".git/HEAD": ""} if git else {}), **files}
    archive = MemoryArchive(there)
    return environment_for(archive, plan_for(archive), runner_image_id=image, owner=owner)


def divided(files: dict[str, str]) -> tuple[list[str], list[str], tuple[str, ...]]:
    found = environment(files)
    return (
        [" ".join(step.uv) for step in found.steps],
        [" ".join(step.uv) for step in found.project_steps],
        found.dependency_files,
    )


@pytest.mark.parametrize(
    ("files", "image", "job", "deciding"),
    [
        pytest.param({}, [PYTEST], [], (), id="nothing but pytest"),
        pytest.param(
            {"requirements.txt": "x"}, ["pip install -r requirements.txt", PYTEST], [], ("requirements.txt",),
            id="requirements",
        ),
        pytest.param(
            {"requirements.txt": "-c pins/c.txt", "requirements-test.txt": "y", "pins/c.txt": "x==1"},
            ["pip install -r requirements.txt -r requirements-test.txt", PYTEST],
            [],
            ("pins/c.txt", "requirements-test.txt", "requirements.txt"),
            id="requirements with includes",
        ),
        pytest.param(
            {"requirements.txt": "-e .", "pyproject.toml": STATIC},
            [],
            ["pip install -r requirements.txt", "pip install -e ."],
            (),
            id="a local path, and everything behind it",
        ),
        pytest.param(
            {"requirements.txt": "x", "setup.py": ""},
            ["pip install -r requirements.txt"],
            ["pip install -e ."],
            ("requirements.txt",),
            id="requirements, then what only setup.py knows",
        ),
        pytest.param(
            {"requirements.txt": "x", "requirements-dev.txt": "-r nowhere.txt"},
            [],
            ["pip install -r requirements.txt -r requirements-dev.txt"],
            (),
            id="an include that is not there",
        ),
        pytest.param(
            {"pyproject.toml": STATIC + EXTRAS},
            ["pip install -r pyproject.toml --extra test", PYTEST],
            ["pip install -e .[test]"],
            ("pyproject.toml",),
            id="a package with an extra",
        ),
        pytest.param(
            {"pyproject.toml": STATIC + GROUPS},
            ["pip install -r pyproject.toml --group dev", PYTEST],
            ["pip install -e . --group dev"],
            ("pyproject.toml",),
            id="a package with a group",
        ),
        pytest.param(
            {"pyproject.toml": BUILD + "[project]\nname = 'x'\ndynamic = ['version']\n"},
            [PYTEST],
            ["pip install -e ."],
            (),
            id="a package that needs nothing",
        ),
        pytest.param(
            {"pyproject.toml": BUILD + "[project]\nname = 'x'\ndynamic = ['dependencies']\n"},
            [],
            ["pip install -e ."],
            (),
            id="dynamic dependencies",
        ),
        pytest.param({"pyproject.toml": BUILD}, [], ["pip install -e ."], (), id="stated elsewhere"),
        pytest.param(
            {"pyproject.toml": STATIC.replace("'idna'", "'lib @ file:///workspace/lib'")},
            [],
            ["pip install -e ."],
            (),
            id="a dependency in the tree",
        ),
        pytest.param(
            {"pyproject.toml": STATIC + "[tool.uv.sources]\nidna = {path = 'idna'}\n"},
            [],
            ["pip install -e ."],
            (),
            id="a source in the tree",
        ),
        pytest.param(
            {"pyproject.toml": STATIC + "[tool.uv.sources]\nidna = {git = 'https://example.org/x'}\n"},
            ["pip install -r pyproject.toml", PYTEST],
            ["pip install -e ."],
            ("pyproject.toml",),
            id="a source elsewhere",
        ),
        pytest.param(
            {"pyproject.toml": "[project]\nname='x'\ndependencies=['idna']\n" + GROUPS},
            ["pip install --group dev idna", PYTEST],
            [],
            ("pyproject.toml",),
            id="dependencies of what is no package",
        ),
        pytest.param(
            {"requirements.txt": "x", "pyproject.toml": "[tool.uv]\nfind-links = ['wheels']\n"},
            [],
            ["pip install -r requirements.txt"],
            (),
            id="settings of uv that name a directory",
        ),
        pytest.param(
            {"requirements.txt": "x", "pyproject.toml": "[[tool.uv.index]]\nurl = 'https://example.org'\n"},
            ["pip install -r requirements.txt", PYTEST],
            [],
            ("pyproject.toml", "requirements.txt"),
            id="settings of uv",
        ),
        pytest.param(
            {"requirements.txt": "x", "uv.toml": ""}, [], ["pip install -r requirements.txt"], (), id="uv.toml"
        ),
        pytest.param(
            {"pyproject.toml": STATIC, "uv.lock": "", ".python-version": "3.11"},
            ["sync --frozen --active --inexact --no-install-local", PYTEST],
            ["sync --frozen --active --inexact"],
            (".python-version", "pyproject.toml", "uv.lock"),
            id="uv.lock",
        ),
        pytest.param(
            {"pyproject.toml": "[project]\nname='x'\ndependencies=['idna']\n", "uv.lock": ""},
            ["sync --frozen --active --inexact --no-install-local", PYTEST],
            [],
            ("pyproject.toml", "uv.lock"),
            id="uv.lock of what is no package",
        ),
        pytest.param(
            {"pyproject.toml": STATIC, "uv.lock": "", "requirements-dev.txt": "x"},
            ["sync --frozen --active --inexact --no-install-local", "pip install -r requirements-dev.txt", PYTEST],
            ["sync --frozen --active --inexact", "pip install -r requirements-dev.txt"],
            ("pyproject.toml", "requirements-dev.txt", "uv.lock"),
            id="uv.lock, then requirements, which keep the last word",
        ),
        pytest.param(
            {"pylock.toml": "[[packages]]\nname = 'pathspec'\n"},
            ["pip install -r pylock.toml", PYTEST],
            [],
            ("pylock.toml",),
            id="pylock.toml",
        ),
        pytest.param(
            {"pylock.toml": "[[packages]]\nname = 'x'\ndirectory = {path = 'x'}\n"},
            [],
            ["pip install -r pylock.toml"],
            (),
            id="pylock.toml with a local package",
        ),
        pytest.param(
            {"pyproject.toml": POETRY + POETRY_BACKEND, "poetry.lock": ""},
            ["tool run poetry install --no-interaction --no-ansi --no-root", PYTEST],
            ["pip install --no-deps -e ."],
            ("poetry.lock", "pyproject.toml"),
            id="poetry",
        ),
        pytest.param(
            {"pyproject.toml": POETRY, "poetry.lock": "type = \"directory\"\n"},
            [],
            ["tool run poetry install --no-interaction --no-ansi"],
            (),
            id="poetry with a local package",
        ),
        pytest.param(
            {"pyproject.toml": POETRY + "lib = {path = 'lib'}\n"},
            [],
            ["tool run poetry install --no-interaction --no-ansi"],
            (),
            id="poetry with a local package and no lock",
        ),
    ],
)  # fmt: skip
def test_each_plan_is_divided(
    files: dict[str, str], image: list[str], job: list[str], deciding: tuple[str, ...]
) -> None:
    assert divided(files) == (image, job, deciding)


def test_pip_is_given_what_an_extra_comes_to() -> None:
    first = environment({"pyproject.toml": STATIC + EXTRAS}).steps[0]
    assert first.pip == ("install", "idna", "pytest", "attrs")


def test_a_file_too_large_to_read_is_left_to_the_job() -> None:
    archive = MemoryArchive({"a.py": "", "requirements.txt": "x"}, sizes={"requirements.txt": 2**40})
    found = environment_for(archive, plan_for(archive), runner_image_id="i", owner="o")
    assert (found.steps, len(found.project_steps)) == ((), 1)


PROJECT = {
    "requirements.txt": "-r more/base.txt\nidna\n",
    "more/base.txt": "-c ../pins.txt\nattrs\n",
    "pins.txt": "attrs==23.1\n",
    "pyproject.toml": STATIC + EXTRAS,
    "tests/test_b.py": "def test_b(): pass\n",
    "README.md": "hello",
}
DECIDING = ("requirements.txt", "more/base.txt", "pins.txt", "pyproject.toml")
PLAN = plan_for(MemoryArchive(PROJECT))  # once: it takes a process


def key_of(files: Mapping[str, str]) -> str:
    return environment_for(MemoryArchive(files), PLAN, runner_image_id="sha256:runner", owner="ada").key


KEY = key_of(PROJECT)


@given(st.permutations(list(PROJECT)))
def test_the_order_of_files_does_not_matter(order: list[str]) -> None:
    assert key_of({path: PROJECT[path] for path in order}) == KEY


@given(st.sampled_from(DECIDING), st.data())
def test_any_byte_of_a_deciding_file_matters(path: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(PROJECT[path])))
    for comment in ("#\n", "\n"):
        text = PROJECT[path]
        start = text.rfind("\n", 0, place) + 1  # a line of its own, so that the file stays what it is
        assert key_of({**PROJECT, path: text[:start] + comment + text[start:]}) != KEY


@given(st.sampled_from(sorted(PROJECT.keys() - set(DECIDING))), st.text(max_size=20))
def test_what_decides_nothing_does_not_matter(path: str, text: str) -> None:
    assert key_of({**PROJECT, path: text, "src/new.txt": text}) == KEY


def test_the_same_files_are_another_environment_for_another_user_and_on_another_image() -> None:
    others = environment(PROJECT, owner="bob"), environment(PROJECT, image="sha256:other")
    keys = {KEY, *(one.key for one in others)}
    assert len(keys) == 3
    assert all(len(key) == 64 for key in keys)


def test_what_the_installer_hears_from_its_environment_matters() -> None:
    assert environment(PROJECT, git=True).key != KEY  # with .git no version is pretended


def test_the_chosen_extras_matter() -> None:
    dev = PROJECT["pyproject.toml"].replace("test =", "dev =")
    assert environment({**PROJECT, "pyproject.toml": dev}).steps != environment(PROJECT).steps


def test_fields_of_the_key_do_not_run_into_one_another() -> None:
    one = environment({"requirements.txt": "-r a.txt", "a.txt": "x\n"})
    two = environment({"requirements.txt": "-r a.txt", "a.txt": "x"})
    assert one.key != two.key
    assert environment({}, image="ab", owner="c").key != environment({}, image="a", owner="bc").key


def test_steps_are_told_apart_in_each_tongue() -> None:
    archive = MemoryArchive({"a.py": "", "requirements.txt": "x"})
    plan = plan_for(archive)
    [step] = plan.steps
    ahead = step.ahead
    assert ahead is not None
    other = replace(step, ahead=replace(ahead, step=replace(step, pip=("install", "y"))))
    keys = {
        environment_for(archive, one, runner_image_id="i", owner="o").key
        for one in (plan, replace(plan, steps=(other,)))
    }
    assert len(keys) == 2
