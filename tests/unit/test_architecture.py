"""Who may import whom: the rules of docs/architecture.md, read from the imports themselves."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from sys import stdlib_module_names

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES: tuple[str, ...] = (
    "ci_common",
    "ci_persistence",
    "ci_server",
    "ci_controller",
    "ci_client",
    "ci_admin",
    "ci_agent",
)

# Which of our packages each may import at all.
ALLOWED: Mapping[str, frozenset[str]] = {
    "ci_common": frozenset(),
    "ci_persistence": frozenset({"ci_common"}),
    "ci_server": frozenset({"ci_common", "ci_persistence"}),
    "ci_controller": frozenset({"ci_common", "ci_persistence"}),
    "ci_client": frozenset({"ci_common"}),
    "ci_admin": frozenset({"ci_common", "ci_persistence", "ci_controller"}),
    "ci_agent": frozenset({"ci_common", "ci_persistence", "ci_controller", "ci_client"}),
}

# The composition modules: the only ones that choose an implementation of the repository and the stores.
COMPOSITION = {
    "ci_server": frozenset({"ci_server.dependencies"}),
    "ci_controller": frozenset({"ci_controller.composition"}),
    "ci_agent": frozenset({"ci_agent.composition"}),
}
# What the admin command uses of the controller: its checks, and the engine they are made with.
CONTROLLER_FOR_ADMIN = frozenset(
    {
        "ci_controller.doctor",
        "ci_controller.container_manager",
        "ci_controller.settings",
        "ci_controller.pruner",
        "ci_controller.retention",
        "ci_controller.singleton",
    }
)

# What the agent uses of the persistence, in its composition: files, and the judge of archives; no database.
PERSISTENCE_FOR_AGENT = frozenset(
    {"ci_persistence.archive_rules", "ci_persistence.archive_validator", "ci_persistence.log_store"}
)
HTTP_FOR_AGENT = frozenset(
    {"ci_client._http", "ci_client.blobs"}
)  # how to talk to a server, and nothing more

# What it uses of the persistence: the factory, backups, and the one fact about SQLite that `doctor` warns of.
PERSISTENCE_FOR_ADMIN = frozenset(
    {
        "ci_persistence.backup",
        "ci_persistence.factory",
        "ci_persistence.moving",
        "ci_persistence.restore",
        "ci_persistence.sqlite_connection",
    }
)

# Libraries that one package knows, or (a dot in the name) one module.
HOMES: Mapping[str, str] = {
    "docker": "ci_controller.docker_engine",  # whose only users are the manager and its streams
    "aiosqlite": "ci_persistence",
    "psycopg": "ci_persistence",
    "fastapi": "ci_server",
    "starlette": "ci_server",
    "certifi": "ci_client._connections",
    "obstore": "ci_persistence.s3_objects",
}
LINUX_ONLY = frozenset({"asyncinotify", "docker", "fcntl", "grp", "pwd", "resource", "termios", "tty"})


@dataclass(frozen=True)
class Import:
    """What one import statement brings in; `lazily`: only when a function runs."""

    importer: str
    target: str
    line: int
    lazily: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def _modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports_of(module: str) -> Iterator[Import]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    yield from _walk(module, tree, lazily=False)


def _walk(module: str, node: ast.AST, *, lazily: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, child.lineno, lazily)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{module}:{child.lineno}: relative imports hide who imports whom"
            assert child.module is not None
            for alias in child.names:
                deeper = f"{child.module}.{alias.name}"
                yield Import(module, deeper if deeper in MODULES else child.module, child.lineno, lazily)
        else:
            inside = lazily or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _walk(module, child, lazily=inside)


@cache
def _imports() -> Sequence[Import]:
    """Return every import of ours; not when pytest collects, which each of its workers does."""
    return [found for module in MODULES for found in _imports_of(module)]


def _package(module: str) -> str:
    return module.partition(".")[0]


def _offences(*, of: str, where: set[str] | frozenset[str]) -> list[str]:
    return [str(one) for one in _imports() if _package(one.importer) == of and _package(one.target) in where]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_the_packages_it_may(package: str) -> None:
    foreign = set(PACKAGES) - ALLOWED[package] - {package}

    assert _offences(of=package, where=foreign) == []


def test_every_package_is_looked_at() -> None:
    here = {path.parent.name for path in ROOT.glob("ci_*/__init__.py")}

    assert here == set(PACKAGES)


@pytest.mark.parametrize("package", sorted(COMPOSITION))
def test_only_composition_modules_choose_the_persistence(package: str) -> None:
    offences = [
        str(one)
        for one in _imports()
        if _package(one.importer) == package
        and _package(one.target) == "ci_persistence"
        and one.importer not in COMPOSITION[package]
    ]

    assert offences == []


def test_admin_opens_the_database_through_the_factory_only() -> None:
    offences = [
        str(one)
        for one in _imports()
        if _package(one.importer) == "ci_admin"
        and _package(one.target) == "ci_persistence"
        and one.target not in PERSISTENCE_FOR_ADMIN
    ]

    assert offences == []


def test_admin_uses_only_checks_and_engine_of_the_controller() -> None:
    offences = [
        str(one)
        for one in _imports()
        if _package(one.importer) == "ci_admin"
        and _package(one.target) == "ci_controller"
        and one.target not in CONTROLLER_FOR_ADMIN
    ]

    assert offences == []


def test_an_agent_knows_no_database_and_of_the_client_only_http() -> None:
    offences = [
        str(one)
        for one in _imports()
        if _package(one.importer) == "ci_agent"
        and _package(one.target) in ("ci_persistence", "ci_client")
        and one.target not in PERSISTENCE_FOR_AGENT | HTTP_FOR_AGENT
    ]

    assert offences == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_is_known_in_one_place(library: str) -> None:
    home = HOMES[library]
    knowing = {one.importer for one in _imports() if _package(one.target) == library}
    outside = {module for module in knowing if module != home and not module.startswith(f"{home}.")}

    assert outside == set()


def test_only_the_container_manager_is_built_on_the_engine() -> None:
    knowing = {one.importer for one in _imports() if one.target == "ci_controller.docker_engine"}

    assert knowing <= {
        "ci_controller.container_manager",
        "ci_controller.docker_input",
        "ci_controller.docker_streams",
        "ci_controller.job_network",
    }


# What the shared package may import beside the standard library, and where.
LIBRARIES_OF_COMMON = {
    "ci_common.settings": frozenset({"pydantic", "pydantic_settings"}),
    "ci_common.service_log": frozenset({"structlog"}),
}


def test_common_needs_only_the_standard_library() -> None:
    ours = {*stdlib_module_names, "ci_common"}
    offences = [
        str(one)
        for one in _imports()
        if _package(one.importer) == "ci_common"
        and _package(one.target) not in ours
        and _package(one.target) not in LIBRARIES_OF_COMMON.get(one.importer, ())
    ]

    assert offences == []


def test_the_client_runs_on_every_platform() -> None:
    reached = _reachable("ci_client")
    offences = [
        str(one)
        for one in _imports()
        if one.importer in reached and not one.lazily and _package(one.target) in LINUX_ONLY
    ]

    assert offences == []


def test_only_the_daemons_have_a_service_log() -> None:
    users = {_package(one.importer) for one in _imports() if one.target == "ci_common.service_log"}

    assert users <= {"ci_server", "ci_controller", "ci_agent"}
    assert "ci_common.service_log" not in _reachable("ci_client")


def _reachable(package: str) -> set[str]:
    """Return the modules of ours that importing any module of the package brings in."""
    waiting = [module for module in MODULES if _package(module) == package]
    reached: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += [one.target for one in _imports() if one.importer == module and one.target in MODULES]
    return reached


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for one in _imports():
        if one.target in MODULES and not one.lazily:
            graph[one.importer].add(one.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")
