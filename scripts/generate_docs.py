"""Writes the tables of the documentation that have one source in the code; `--check` only says what is stale.

A table stands in a Markdown file between `<!-- generated: NAME -->` and `<!-- /generated -->`; NAME is a key
of TABLES. Text outside these marks is nobody's but the authors'.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import click
from pydantic.fields import FieldInfo

from ci_admin.cli import cli as ci_admin
from ci_agent.cli import main as ci_agent
from ci_agent.settings import AgentSettings
from ci_client.cli import ci
from ci_common.errors import CIError, InternalError, errors_by_code
from ci_common.settings import CISettings, StorageSettings
from ci_common.verdict import ENDINGS, Ending
from ci_controller.cli import main as ci_controller
from ci_controller.settings import ControllerSettings, RunnerSettings
from ci_server.app import create_app
from ci_server.cli import main as ci_server
from ci_server.settings import ServerSettings
from scripts.fault_catalogue import faults_table

ROOT = Path(__file__).resolve().parent.parent
COMMANDS: dict[str, click.Command] = {
    "ci": ci,
    "ci-admin": ci_admin,
    "ci-agent": ci_agent,
    "ci-controller": ci_controller,
    "ci-server": ci_server,
}
SETTINGS: dict[str, type[CISettings]] = {
    "storage": StorageSettings,
    "controller": ControllerSettings,
    "server": ServerSettings,
    "agent": AgentSettings,
}
_BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
_METHODS = ("get", "post", "put", "patch", "delete")
_NONE = "-"


def documents() -> list[Path]:
    """Return every Markdown file that may hold a generated table."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def renewed(text: str) -> str:
    """Return the text with every generated table as the code has it now."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found['name']]()}\n\n{found[3]}", text)


def generated_in(text: str) -> set[str]:
    """Return the names of the tables that a text has a place for."""
    return {found["name"] for found in _BLOCK.finditer(text)}


# -- endings and errors --------------------------------------------------------------------------------------


def endings_table() -> str:
    """Return how jobs end."""
    rows = [(end.what, f"`{end.status}`", _code(end.reason), _exit_code(end)) for end in ENDINGS]
    return _table(("what happened", "status", "reason", "exit code of `ci`"), rows)


def errors_table() -> str:
    """Return every error code of the API."""
    rows = [
        (f"`{code}`", str(error.http_status), str(error.exit_code), _meaning(error))
        for code, error in sorted(errors_by_code().items())
    ]
    return _table(("code", "HTTP", "exit code of `ci`", "meaning"), rows)


def _meaning(error: type[CIError]) -> str:
    said = InternalError if error is CIError else error  # the base shares its code
    return _first_line(said.__doc__ or "")


def _exit_code(end: Ending) -> str:
    return "pytest's" if end.exit_code is None else str(end.exit_code)


# -- settings --------------------------------------------------------------------------------------------------


def settings_of(model: type[CISettings]) -> dict[str, FieldInfo]:
    """Return the settings that a process has beyond the storage's (an agent: beyond the controller's), by environment
    variable."""
    shared = {} if model is StorageSettings else StorageSettings.model_fields
    if model is AgentSettings:
        shared = {**shared, **RunnerSettings.model_fields}
    return {f"CI_{name.upper()}": field for name, field in model.model_fields.items() if name not in shared}


def settings_table(model: type[CISettings]) -> str:
    """Return the settings of one process."""
    rows = [
        (f"`{name}`", _default(field), field.description or _NONE)
        for name, field in settings_of(model).items()
    ]
    return _table(("variable", "default", "meaning"), rows)


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if field.default_factory is not None or value is None:
        return _NONE
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, int) and value >= 1024**2 and value % 1024**2 == 0:
        return f"{value} ({value // 1024**2} MiB)"
    return "empty" if value in {"", ()} else f"`{value}`"


def _duration(value: timedelta) -> str:
    seconds = int(value.total_seconds())
    size, unit = next(
        (size, unit) for size, unit in ((3600, "h"), (60, "m"), (1, "s")) if seconds % size == 0
    )
    return f"`{seconds // size}{unit}`"


# -- routes ----------------------------------------------------------------------------------------------------


def routes() -> list[tuple[str, str, str]]:
    """Return method, path and summary of every route."""
    paths: dict[str, dict[str, Any]] = create_app().openapi()["paths"]
    return [
        (method.upper(), path, str(operations[method].get("summary", "")))
        for path, operations in paths.items()
        for method in _METHODS
        if method in operations
    ]


def routes_table() -> str:
    """Return every route of the server."""
    return _table(
        ("route", "what it does"), [(f"`{method} {path}`", what) for method, path, what in routes()]
    )


# -- commands --------------------------------------------------------------------------------------------------


def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command that does something, under the words one types for it."""
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            if not child.hidden:
                yield from leaves(child, f"{path} {name}")
    else:
        yield path, command


def options_of(command: click.Command) -> Iterator[click.Option]:
    """Yield the options of a command that are shown to people."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield parameter


def commands_table(name: str) -> str:
    """Return every command of one program with its options."""
    return _table(
        ("command", "what it does", "options"),
        [
            (f"`{' '.join([path, *_arguments(command)])}`", _summary(command), _options(command))
            for path, command in leaves(COMMANDS[name], name)
        ],
    )


def _arguments(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            yield parameter.make_metavar(context)


def _summary(command: click.Command) -> str:
    return _first_line((command.help or "").replace("\b", ""))


def _options(command: click.Command) -> str:
    lines = [
        f"`{', '.join((*option.opts, *option.secondary_opts))}` {option.help or ''}".strip()
        for option in options_of(command)
    ]
    return "<br>".join(lines) or _NONE


# -- Markdown ----------------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(_row(line) for line in lines)


def _row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _code(value: object) -> str:
    return _NONE if value is None else f"`{value}`"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


TABLES: dict[str, Callable[[], str]] = {
    "endings": endings_table,
    "faults": faults_table,
    "errors": errors_table,
    "routes": routes_table,
    "storage-settings": lambda: settings_table(StorageSettings),
    "controller-settings": lambda: settings_table(ControllerSettings),
    "agent-settings": lambda: settings_table(AgentSettings),
    "server-settings": lambda: settings_table(ServerSettings),
    "ci-commands": lambda: commands_table("ci"),
    "ci-admin-commands": lambda: commands_table("ci-admin"),
    "ci-controller-commands": lambda: commands_table("ci-controller"),
    "ci-agent-commands": lambda: commands_table("ci-agent"),
    "ci-server-commands": lambda: commands_table("ci-server"),
}


def main() -> int:
    """Bring the tables up to date, or (`--check`) return 1 when one is stale."""
    parser = argparse.ArgumentParser(description=cast(str, __doc__).partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing, exit with 1 if a table is stale"
    )
    check: bool = parser.parse_args().check
    stale: list[Path] = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        current = renewed(text)
        if current != text:
            stale.append(path)
            if not check:
                path.write_text(current, encoding="utf-8")
    for path in stale:
        verdict = "has stale tables; run `make format`" if check else "rewritten"
        print(f"{path.relative_to(ROOT)} {verdict}", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
