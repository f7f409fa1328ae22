"""What has to be installed before a project's tests can run: one pure function of the project's own files.

Nothing here touches a container: the harness carries the plan out, with uv where the image has it, else with pip.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Final, cast

from ci_common.errors import InvalidArchive
from ci_common.stores import Archive
from ci_controller.untrusted_metadata import Metadata, read_metadata

Paths = Collection[str]  # of every file of the tree

_METADATA_LIMIT: Final = 1024 * 1024  # bytes of a file that is read; larger ones count as absent
_METADATA: Final = (
    "requirements.txt", "pyproject.toml", "setup.py", "setup.cfg", "uv.lock", "pylock.toml", "poetry.lock"
)  # fmt: skip

# The names under which projects keep what their tests need. The second family holds more than that (linters,
# documentation), so it counts only where the first has no member at all.
_TEST_NAMES: Final = ("test", "tests", "testing")
_DEV_NAMES: Final = ("dev",)
_FILE_FORMS: Final = (
    "requirements-{}.txt",
    "requirements_{}.txt",
    "{}-requirements.txt",
    "requirements/{}.txt",
)

# A version for builds that ask git for one, where there is no git. High, because what the tests need may in turn
# need the project itself "at least" in some version.
_PRETENDED_VERSION: Final = "9999.0"

_ENVIRONMENT: Final = MappingProxyType(
    {
        "CI": "true",
        "PYTHONUNBUFFERED": "1",
        "TERM": "xterm-256color",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
    }
)


class BadProject(InvalidArchive):
    """The tree is sound, but holds nothing that could be tested; the message names the way out."""


@dataclass(frozen=True, slots=True)
class InstallStep:
    """One command, in both tongues: arguments of `uv`, and of `python -m pip` where the image has no uv."""

    title: str
    uv: tuple[str, ...]
    pip: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InstallPlan:
    """The steps in order, the environment of every process, and directories to append to `sys.path`."""

    steps: tuple[InstallStep, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: _ENVIRONMENT)
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Project:
    """The facts that the rows of the table decide by."""

    files: Paths
    pyproject: Mapping[str, Any]
    is_installable: bool
    is_poetry: bool  # what it needs is written in poetry's own way, or locked by it
    extras: tuple[str, ...]
    groups: tuple[str, ...]
    requirement_files: tuple[str, ...]


def plan_for(archive: Archive) -> InstallPlan:
    """Return the plan for an accepted archive; raises BadProject."""
    contents = (archive.read(name, _METADATA_LIMIT) or b"" for name in ("pyproject.toml", "setup.cfg"))
    return install_plan({entry.path for entry in archive.entries}, read_metadata(*contents))


def install_plan(files: Paths, metadata: Metadata) -> InstallPlan:
    """Return what to install for a tree: the first row of the table that fits; raises BadProject."""
    _refuse_what_cannot_be_tested(files)
    project = _project(files, metadata)
    row = next(row for row in _TABLE if row.fits(project))
    return InstallPlan(row.steps(project), _environment(files), _paths(project))


def _refuse_what_cannot_be_tested(files: Paths) -> None:
    if not any(path.endswith(".py") for path in files):
        raise BadProject(
            "There is no Python file in the upload: submit the root of a Python project.", rule="no_python"
        )
    tops = {path.partition("/")[0] for path in files}
    if len(tops) == 1 and any(f"{next(iter(tops))}/{name}" in files for name in _METADATA):
        top = next(iter(tops))
        raise BadProject(
            f"The project is inside the folder '{top}': upload what is in it, not the folder.",
            rule="project_in_folder",
        )


def _project(files: Paths, metadata: Metadata) -> _Project:
    pyproject = metadata.pyproject
    extras = tuple(_table(_table(pyproject, "project"), "optional-dependencies"))
    groups = tuple(_table(pyproject, "dependency-groups"))
    for names in (_TEST_NAMES, _DEV_NAMES):
        found_extras = tuple(name for name in names if name in extras)
        found_groups = tuple(name for name in names if name in groups)
        found_files = tuple(
            form.format(name) for name in names for form in _FILE_FORMS if form.format(name) in files
        )
        if found_extras or found_groups or found_files:
            break
    else:
        found_extras = found_groups = found_files = ()
    return _Project(
        files,
        pyproject,
        _is_installable(files, metadata),
        _is_poetry(files, pyproject),
        found_extras,
        found_groups,
        found_files,
    )


def _table(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _is_poetry(files: Paths, pyproject: Mapping[str, Any]) -> bool:
    in_its_own_way = "poetry" in _table(pyproject, "tool") and "project" not in pyproject
    return in_its_own_way or ("poetry.lock" in files and bool(pyproject))


def _is_installable(files: Paths, metadata: Metadata) -> bool:
    """Tell whether there is something to build. `[project]` alone is a list of dependencies, as for uv."""
    pyproject = metadata.pyproject
    if _table(_table(pyproject, "tool"), "poetry").get("package-mode") is False:
        return False
    if "setup.py" in files or "build-system" in pyproject or _table(pyproject, "project").get("dynamic"):
        return True
    return metadata.setup_cfg_has_name


# -- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """One way in which projects say what they need."""

    fits: Callable[[_Project], bool]
    steps: Callable[[_Project], tuple[InstallStep, ...]]


def _from_requirements(project: _Project) -> tuple[InstallStep, ...]:
    names = ("requirements.txt", *project.requirement_files)
    own = (_own_step(project),) if project.is_installable or project.extras or project.groups else ()
    return (_requirement_files_step(names), *own)


def _from_uv_lock(project: _Project) -> tuple[InstallStep, ...]:
    chosen = (*_options("--extra", project.extras), *_options("--group", project.groups))
    # --active: into the image's environment, not a .venv; --inexact: keep what is there.
    uv = ("sync", "--frozen", "--active", "--inexact", *chosen)
    return (InstallStep("uv.lock", uv, _own_step(project).pip), *_requirement_files(project))


def _from_pylock(project: _Project) -> tuple[InstallStep, ...]:
    own = (_own_step(project),) if project.is_installable else ()
    return (_requirement_files_step(("pylock.toml",)), *_requirement_files(project), *own)


def _from_poetry(project: _Project) -> tuple[InstallStep, ...]:
    extras = _options("--extras", project.extras)
    uv = ("tool", "run", "poetry", "install", "--no-interaction", "--no-ansi", *extras)
    title = "poetry.lock" if "poetry.lock" in project.files else "the project with poetry"
    return (InstallStep(title, uv, _own_step(project).pip), *_requirement_files(project))


def _from_project(project: _Project) -> tuple[InstallStep, ...]:
    return (*_requirement_files(project), _own_step(project))


_TABLE: Final = (
    _Row(lambda p: "requirements.txt" in p.files, _from_requirements),
    _Row(lambda p: "uv.lock" in p.files and "pyproject.toml" in p.files, _from_uv_lock),
    _Row(lambda p: "pylock.toml" in p.files, _from_pylock),
    _Row(lambda p: p.is_poetry, _from_poetry),
    _Row(lambda p: p.is_installable or bool(_dependencies(p)) or bool(p.groups), _from_project),
    _Row(lambda _: True, lambda p: _requirement_files(p)),  # the harness brings pytest
)


def _requirement_files(project: _Project) -> tuple[InstallStep, ...]:
    return (_requirement_files_step(project.requirement_files),) if project.requirement_files else ()


def _requirement_files_step(names: tuple[str, ...]) -> InstallStep:
    return _pip_step(", ".join(names), *_options("-r", names))


def _own_step(project: _Project) -> InstallStep:
    """Return the step for the project itself with what its tests need; only its dependencies if it is no package."""
    groups = _options("--group", project.groups)
    if project.is_installable:
        extras = f"[{','.join(project.extras)}]" if project.extras else ""
        title = "the project" + (f" with {_and(project.extras + project.groups)}" if extras or groups else "")
        return _pip_step(title, "-e", f".{extras}", *groups)
    return _pip_step("the dependencies in pyproject.toml", *groups, *_dependencies(project))


def _dependencies(project: _Project) -> tuple[str, ...]:
    table = _table(project.pyproject, "project")
    extras = _table(table, "optional-dependencies")
    found = [table.get("dependencies"), *(extras.get(name) for name in project.extras)]
    lists = [cast(list[object], value) for value in found if isinstance(value, list)]
    return tuple(item for items in lists for item in items if isinstance(item, str))


def _pip_step(title: str, *arguments: str) -> InstallStep:
    return InstallStep(title, ("pip", "install", *arguments), ("install", *arguments))


def _options(option: str, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for value in values for word in (option, value))


def _and(names: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(names))


def _environment(files: Paths) -> Mapping[str, str]:
    if any(PurePosixPath(path).parts[0] == ".git" for path in files) or "PKG-INFO" in files:
        return _ENVIRONMENT
    pretended = dict.fromkeys(("SETUPTOOLS_SCM_PRETEND_VERSION", "PDM_BUILD_SCM_VERSION"), _PRETENDED_VERSION)
    return MappingProxyType({**_ENVIRONMENT, **pretended})


def _paths(project: _Project) -> tuple[str, ...]:
    has_source = any(path.startswith("src/") and path.endswith(".py") for path in project.files)
    return ("src",) if has_source and not project.is_installable else ()
