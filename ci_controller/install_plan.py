"""What has to be installed before a project's tests can run: one pure function of the project's own files.

Nothing here touches a container: the harness carries the plan out, with uv where the image has it, else with pip.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Final, cast

from ci_common.errors import InvalidArchive
from ci_common.stores import Archive
from ci_controller.requirement_files import is_remote, is_remote_requirement
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

_NOTHING_BY_PIP: Final = ("--version",)  # pip installs no lock of another tool: its own step does it all
_POETRY_BACKENDS: Final = ("poetry.core.masonry.api", "poetry.masonry.api")
_WHERE_PACKAGES_ARE: Final = frozenset(
    {"url", "git", "index-url", "extra-index-url", "default-index", "find-links"}
)
_EXTRAS_OF: Final = re.compile(r"\s*([\w.-]+)\s*\[([\w\s,.-]+)\]\s*")

ENVIRONMENT: Final = MappingProxyType(
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
    ahead: "Ahead | None" = None  # None: it needs the tree


@dataclass(frozen=True, slots=True)
class Ahead:
    """What of a step can be done before the tree is there, and from which of its files.

    The rest is done with the tree: mostly the whole step, which finds what it needs and installs the project.
    """

    files: tuple[str, ...]
    step: InstallStep | None  # None: nothing
    rest: InstallStep | None = None  # None: nothing is left


@dataclass(frozen=True, slots=True)
class InstallPlan:
    """The steps in order, the environment of every process, and directories to append to `sys.path`."""

    steps: tuple[InstallStep, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: ENVIRONMENT)
    paths: tuple[str, ...] = ()
    settings: (
        tuple[str, ...] | None
    ) = ()  # files that every command obeys; None: they speak of more of the tree


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
    return InstallPlan(row.steps(project), _environment(files), _paths(project), _settings(project))


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
    step = InstallStep("uv.lock", uv, _own_step(project).pip)
    early = InstallStep("uv.lock", (*uv, "--no-install-local"), _dependencies_step(project).pip)
    pinned = (name for name in (".python-version", ".python-versions") if name in project.files)
    rest = step if project.is_installable or _has_local_packages(project) else None
    ahead = Ahead(("pyproject.toml", "uv.lock", *pinned), early, rest)
    return (replace(step, ahead=ahead), *_requirement_files(project))


def _from_pylock(project: _Project) -> tuple[InstallStep, ...]:
    own = (_own_step(project),) if project.is_installable else ()
    return (_requirement_files_step(("pylock.toml",)), *_requirement_files(project), *own)


def _from_poetry(project: _Project) -> tuple[InstallStep, ...]:
    extras = _options("--extras", project.extras)
    uv = ("tool", "run", "poetry", "install", "--no-interaction", "--no-ansi", *extras)
    title = "poetry.lock" if "poetry.lock" in project.files else "the project with poetry"
    step = InstallStep(title, uv, _own_step(project).pip)
    return (replace(step, ahead=_ahead_of_poetry(project, step)), *_requirement_files(project))


def _ahead_of_poetry(project: _Project, step: InstallStep) -> Ahead | None:
    if _names_local_package(_needs_in_poetrys_way(project)):
        return None
    poetry = _table(_table(project.pyproject, "tool"), "poetry")
    early = replace(step, uv=(*step.uv, "--no-root"), pip=_dependencies_step(project).pip)
    files = (name for name in ("poetry.lock", "poetry.toml") if name in project.files)
    if poetry.get("package-mode") is False:
        rest = None
    elif _table(project.pyproject, "build-system").get("build-backend") in _POETRY_BACKENDS:
        # What poetry itself would do, without fetching poetry.
        rest = InstallStep("the project", ("pip", "install", "--no-deps", "-e", "."), step.pip)
    else:
        rest = step
    return Ahead(("pyproject.toml", *files), early, rest)


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
    step = _pip_step(", ".join(names), *_options("-r", names))
    return replace(step, ahead=Ahead(names, step))


def _own_step(project: _Project) -> InstallStep:
    """Return the step for the project itself with what its tests need; only its dependencies if it is no package."""
    groups = _options("--group", project.groups)
    if project.is_installable:
        extras = f"[{','.join(project.extras)}]" if project.extras else ""
        title = "the project" + (f" with {_and(project.extras + project.groups)}" if extras or groups else "")
        step = _pip_step(title, "-e", f".{extras}", *groups)
        return replace(step, ahead=_ahead_of_package(project, step))
    step = _pip_step("the dependencies in pyproject.toml", *groups, *_dependencies(project))
    return replace(step, ahead=Ahead(("pyproject.toml",), step) if _needs_no_tree(project) else None)


def _ahead_of_package(project: _Project, step: InstallStep) -> Ahead | None:
    if not _table(project.pyproject, "project") or not _needs_no_tree(project):
        return None
    if not (_dependencies(project) or project.groups):
        return Ahead((), None, step)
    return Ahead(("pyproject.toml",), _dependencies_step(project), step)


def _dependencies_step(project: _Project) -> InstallStep:
    """Return the step for what the project states as its needs, without the project."""
    chosen = (*_options("--extra", project.extras), *_options("--group", project.groups))
    uv = ("pip", "install", "-r", "pyproject.toml", *chosen)
    wanted = (*_options("--group", project.groups), *_dependencies(project))
    pip = ("install", *wanted) if wanted and _needs_no_tree(project) else _NOTHING_BY_PIP
    return InstallStep("the dependencies in pyproject.toml", uv, pip)


def _dependencies(project: _Project) -> tuple[str, ...]:
    """Return the requirements in `[project]`, with those of the chosen extras and of the extras these name."""
    table = _table(project.pyproject, "project")
    extras = {_folded(name): value for name, value in _table(table, "optional-dependencies").items()}
    waiting, seen = [*map(_folded, project.extras)], set[str]()
    found = list(_strings(table.get("dependencies")))
    own = _folded(str(table.get("name", "")))
    while waiting:
        if (extra := waiting.pop(0)) in seen:
            continue
        seen.add(extra)
        for text in _strings(extras.get(extra)):
            itself = _EXTRAS_OF.fullmatch(text)
            if itself and _folded(itself[1]) == own:
                waiting += [_folded(name) for name in itself[2].split(",")]
            else:
                found.append(text)
    return tuple(dict.fromkeys(found))


# -- what needs the tree -----------------------------------------------------------------------------------------


def _settings(project: _Project) -> tuple[str, ...] | None:
    uv = _table(_table(project.pyproject, "tool"), "uv")
    if "uv.toml" in project.files or _speaks_of_files(uv):
        return None
    return ("pyproject.toml",) if uv else ()


def _needs_no_tree(project: _Project) -> bool:
    """Tell whether what the project needs is all stated in pyproject.toml, and all of it comes from elsewhere."""
    dynamic = _strings(_table(project.pyproject, "project").get("dynamic"))
    if "dependencies" in dynamic or "optional-dependencies" in dynamic:
        return False
    tools = _table(project.pyproject, "tool")
    grouped = [
        text for value in _table(project.pyproject, "dependency-groups").values() for text in _strings(value)
    ]
    return (
        all(is_remote_requirement(text) for text in (*_dependencies(project), *grouped))
        and not _names_local_package(_table(tools, "uv").get("sources"))
        and not _names_local_package(_needs_in_poetrys_way(project))
    )


def _needs_in_poetrys_way(project: _Project) -> list[object]:
    poetry = _table(_table(project.pyproject, "tool"), "poetry")
    return [poetry.get(name) for name in ("dependencies", "dev-dependencies", "group")]


def _has_local_packages(project: _Project) -> bool:
    """Tell whether `uv sync` has anything to build from the tree."""
    uv = _table(_table(project.pyproject, "tool"), "uv")
    is_package = "build-system" in project.pyproject or uv.get("package") is True
    return is_package or "workspace" in uv or _names_local_package(uv.get("sources"))


def _names_local_package(value: object) -> bool:
    """Tell whether a table of sources has one that is a path or a member of the workspace."""
    return any(key in {"path", "workspace", "file"} for key, _ in _pairs(value))


def _speaks_of_files(settings: object) -> bool:
    return any(
        (key in _WHERE_PACKAGES_ARE and not is_remote(text)) or "file:" in text
        for key, text in _pairs(settings)
        if isinstance(text, str)
    )


def _pairs(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield every key below with what is there; what lists hold counts under the list's key."""
    waiting = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += cast(dict[str, object], value).items()
        elif isinstance(value, list):
            waiting += [(key, one) for one in cast(list[object], value)]


def _strings(value: object) -> tuple[str, ...]:
    return (
        tuple(item for item in cast(list[object], value) if isinstance(item, str))
        if isinstance(value, list)
        else ()
    )


def _folded(name: str) -> str:
    """Return a package's or an extra's name as it is compared."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _pip_step(title: str, *arguments: str) -> InstallStep:
    return InstallStep(title, ("pip", "install", *arguments), ("install", *arguments))


def _options(option: str, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for value in values for word in (option, value))


def _and(names: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(names))


def _environment(files: Paths) -> Mapping[str, str]:
    if any(PurePosixPath(path).parts[0] == ".git" for path in files) or "PKG-INFO" in files:
        return ENVIRONMENT
    pretended = dict.fromkeys(("SETUPTOOLS_SCM_PRETEND_VERSION", "PDM_BUILD_SCM_VERSION"), _PRETENDED_VERSION)
    return MappingProxyType({**ENVIRONMENT, **pretended})


def _paths(project: _Project) -> tuple[str, ...]:
    has_source = any(path.startswith("src/") and path.endswith(".py") for path in project.files)
    return ("src",) if has_source and not project.is_installable else ()
