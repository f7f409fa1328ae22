"""install_plan: one row per way in which projects say what their tests need."""

import pytest

from ci_common.errors import InvalidArchive
from ci_controller.install_plan import InstallPlan, install_plan, plan_for
from ci_controller.untrusted_metadata import read_metadata
from tests.support.harness import MemoryArchive


def planned(**files: str) -> InstallPlan:
    """Return the plan for a tree; `__` in a keyword stands for a dot, `_S_` for a slash, `_D_` for a dash."""
    named = {
        key.replace("_S_", "/").replace("_D_", "-").replace("__", "."): text.encode()
        for key, text in files.items()
    }
    return planned_for({"tests/test_a.py": b"", **named})


def planned_for(files: dict[str, bytes]) -> InstallPlan:
    metadata = read_metadata(files.get("pyproject.toml", b""), files.get("setup.cfg", b""))
    return install_plan(files, metadata)


def commands(plan: InstallPlan) -> list[str]:
    return [" ".join(step.uv) for step in plan.steps]


BUILD = "[build-system]\nrequires = ['hatchling']\nbuild-backend = 'hatchling.build'\n[project]\nname = 'x'\n"
EXTRAS = "[project.optional-dependencies]\n{} = ['pytest']\n"
GROUPS = "[dependency-groups]\n{} = ['pytest']\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, [], id="nothing at all"),
        pytest.param({"requirements__txt": "x"}, ["pip install -r requirements.txt"], id="requirements"),
        pytest.param(
            {"requirements__txt": "x", "requirements_D_test__txt": "y"},
            ["pip install -r requirements.txt -r requirements-test.txt"],
            id="requirements for tests",
        ),
        pytest.param(
            {"requirements__txt": "x", "requirements_D_test__txt": "y", "requirements_D_dev__txt": "z"},
            ["pip install -r requirements.txt -r requirements-test.txt"],
            id="dev only where there is no test",
        ),
        pytest.param(
            {"requirements__txt": "x", "requirements_S_dev__txt": "z"},
            ["pip install -r requirements.txt -r requirements/dev.txt"],
            id="requirements for developers",
        ),
        pytest.param(
            {"requirements__txt": "x", "setup__py": ""},
            ["pip install -r requirements.txt", "pip install -e ."],
            id="requirements and an installable project",
        ),
        pytest.param(
            {"requirements__txt": "x", "pyproject__toml": BUILD + EXTRAS.format("test")},
            ["pip install -r requirements.txt", "pip install -e .[test]"],
            id="requirements and extras",
        ),
        pytest.param(
            {"requirements__txt": "x", "pyproject__toml": "[tool.ruff]\n"},
            ["pip install -r requirements.txt"],
            id="pyproject with settings only",
        ),
        pytest.param({"pyproject__toml": BUILD}, ["pip install -e ."], id="project"),
        pytest.param(
            {"pyproject__toml": BUILD + EXTRAS.format("testing") + GROUPS.format("dev")},
            ["pip install -e .[testing]"],
            id="test extra before dev group",
        ),
        pytest.param(
            {"pyproject__toml": BUILD + GROUPS.format("tests")},
            ["pip install -e . --group tests"],
            id="dependency group",
        ),
        pytest.param(
            {"pyproject__toml": "[project]\nname='x'\ndependencies=['a>1','b']\n" + GROUPS.format("dev")},
            ["pip install --group dev a>1 b"],
            id="dependencies of what is no package",
        ),
        pytest.param({"pyproject__toml": GROUPS.format("docs")}, [], id="groups of no use"),
        pytest.param({"setup__cfg": "[metadata]\nname = x\n"}, ["pip install -e ."], id="setup.cfg"),
        pytest.param({"setup__cfg": "[flake8]\nmax-line-length = 1\n"}, [], id="settings in setup.cfg"),
        pytest.param({"setup__cfg": "[flake8\n"}, [], id="broken setup.cfg"),
        pytest.param(
            {"pyproject__toml": BUILD + GROUPS.format("test"), "uv__lock": ""},
            ["sync --frozen --active --inexact --group test"],
            id="uv.lock",
        ),
        pytest.param(
            {"pyproject__toml": BUILD, "pylock__toml": ""},
            ["pip install -r pylock.toml", "pip install -e ."],
            id="pylock.toml",
        ),
        pytest.param(
            {"pyproject__toml": "[tool.poetry]\nname='x'\n", "poetry__lock": ""},
            ["tool run poetry install --no-interaction --no-ansi"],
            id="poetry.lock",
        ),
        pytest.param(
            {"pyproject__toml": "[tool.poetry]\npackage-mode=false\n" + BUILD.partition("[project]")[0]},
            ["tool run poetry install --no-interaction --no-ansi"],
            id="poetry without a lock",
        ),
        pytest.param(
            {"pyproject__toml": BUILD + "[tool.poetry]\npackage-mode=false\n", "requirements__txt": "x"},
            ["pip install -r requirements.txt"],
            id="requirements of what poetry calls no package",
        ),
        pytest.param(
            {"test_D_requirements__txt": "x"}, ["pip install -r test-requirements.txt"], id="tests only"
        ),
    ],
)
def test_each_way_has_its_commands(files: dict[str, str], expected: list[str]) -> None:
    assert commands(planned(**files)) == expected


def test_pip_does_the_same_where_there_is_no_uv() -> None:
    plan = planned(requirements__txt="x", pyproject__toml=BUILD + GROUPS.format("dev"))
    assert [" ".join(step.pip) for step in plan.steps] == [
        "install -r requirements.txt",
        "install -e . --group dev",
    ]


def test_a_lock_of_uv_becomes_an_ordinary_install_for_pip() -> None:
    plan = planned(pyproject__toml=BUILD, uv__lock="")
    assert [" ".join(step.pip) for step in plan.steps] == ["install -e ."]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"src_S_pkg__py": ""}, ("src",)),
        ({"src_S_pkg__py": "", "requirements__txt": "x"}, ("src",)),
        ({"src_S_pkg__py": "", "setup__py": ""}, ()),
        ({"src_S_data__txt": ""}, ()),
    ],
)
def test_src_is_on_the_path_only_where_it_is_not_installed(
    files: dict[str, str], expected: tuple[str, ...]
) -> None:
    assert planned(**files).paths == expected


def test_titles_are_for_people() -> None:
    plan = planned(requirements__txt="x", pyproject__toml=BUILD + EXTRAS.format("test"))
    assert [step.title for step in plan.steps] == ["requirements.txt", "the project with test"]


@pytest.mark.parametrize(("path", "pretends"), [("a.py", True), (".git/HEAD", False), ("PKG-INFO", False)])
def test_a_version_is_pretended_only_where_nothing_tells_one(path: str, pretends: bool) -> None:
    plan = planned_for({"a.py": b"", path: b""})
    assert ("SETUPTOOLS_SCM_PRETEND_VERSION" in plan.environment) is pretends


def test_the_environment_says_that_this_is_ci_and_changes_no_programs_width_or_colour() -> None:
    environment = planned().environment
    assert environment["CI"] == "true"
    assert not {"COLUMNS", "FORCE_COLOR", "NO_COLOR"} & set(environment)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"README.md": b""}, "no Python file"),
        ({}, "no Python file"),
        ({"proj/setup.py": b"", "proj/a.py": b""}, "inside the folder 'proj'"),
        ({"a.py": b"", "pyproject.toml": b"[project"}, "pyproject.toml is not valid TOML"),
        ({"a.py": b"", "pyproject.toml": b"\xff"}, "pyproject.toml is not valid TOML"),
    ],
)
def test_what_cannot_be_tested_gets_one_sentence(files: dict[str, bytes], sentence: str) -> None:
    with pytest.raises(InvalidArchive, match=sentence):
        planned_for(files)


def test_only_the_deciding_files_of_an_archive_are_read() -> None:
    archive = MemoryArchive({"a.py": "x", "pyproject.toml": BUILD, "big.bin": b"1"}, sizes={"big.bin": 2**40})
    assert commands(plan_for(archive)) == ["pip install -e ."]


@pytest.mark.parametrize(
    "text", ["project = 3", "[project]\noptional-dependencies = 1", "[project]\ndependencies = [1]"]
)
def test_nonsense_in_pyproject_is_left_to_the_tools_to_report(text: str) -> None:
    assert commands(planned(pyproject__toml=text)) == []
