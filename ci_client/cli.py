"""The `ci` command line: arguments, help and the one place where errors become exit codes.

Only what `--help` needs is imported here (a test says so); the commands import the rest when they run.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from ci_client.config import Flags
from ci_client.console import Console, ReaderGone
from ci_client.exit_codes import ClientExit, exit_code_of_error, exit_code_table
from ci_common import __version__
from ci_common.errors import CIError
from ci_common.job_terms import DEFAULT_POOL, MOST_ATTEMPTS, JobStatus, Priority

_EXAMPLES = """\
Examples:
  ci submit test                      test this directory, show the output live
  ci submit test -- -k parser -x      with arguments for pytest
  ci submit test --dry-run            what would be sent, and what not and why
  ci submit test --async              print the job id and return
  ci wait JOB_ID --all                follow a job from its beginning
  ci list --status running --json     for scripts
"""

_SETTINGS = """\
Settings, the first that is there counts:
  key      --api-key, --api-key-file, CI_API_KEY, api_key= in ~/.ci/config
  server   --server, CI_SERVER_URL, server= in ~/.ci/config, http://localhost:8000
  CI_CONFIG_FILE names another file than ~/.ci/config. --api-key is visible to
  everyone on this machine while the command runs; the others are not.

Completion, for bash (also zsh_source, fish_source):
  eval "$(_CI_COMPLETE=bash_source ci)"
"""

_F = TypeVar("_F", bound=Callable[..., Any])
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def _duration(text: str) -> float:
    """Return seconds of `90`, `90s`, `10m` or `1.5h`."""
    unit = _SECONDS.get(text[-1:], 0)
    try:
        seconds = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"{text!r} is no duration; say 90, 90s, 10m or 1.5h.")
    return seconds


class _Group(click.Group):
    """The top of the command; its help ends with examples, settings and the exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Return the commands in the order in which a person comes to need them."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[:1] == ["test"]:
            ctx.fail("No such command 'test'. Did you mean 'submit test'?")
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        for text in (_EXAMPLES, _SETTINGS):
            formatter.write("\n" + text)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in exit_code_table()])


def _connection_options(command: _F) -> _F:
    """The options of every command that talks to the server; the command gets them as `flags`."""
    server = click.option("--server", metavar="URL", help="The server's address.")
    key = click.option("--api-key", metavar="KEY", help="The API key (visible to others in `ps`).")
    file = click.option("--api-key-file", metavar="FILE", help="A file with the API key, - for stdin.")
    return server(key(file(command)))


_json_option = click.option("--json", "as_json", is_flag=True, help="JSON with stable keys, for scripts.")
_raw_option = click.option("--raw", is_flag=True, help="Pass the job's control sequences on to a terminal.")
_job_argument = click.argument("job_id")


@click.group("ci", cls=_Group, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="ci")
def ci() -> None:
    """Test Python projects in clean containers, on your own CI server."""


@ci.group("submit")
def submit() -> None:
    """Submit a project: `ci submit test` runs its tests."""


@submit.command("test", short_help="Run the project's tests in a clean container.")
@click.option("--async", "background", is_flag=True, help="Print the job id and return at once.")
@click.option(
    "--timeout", type=_duration, metavar="DURATION", help="End the job after this time (90, 90s, 10m, 1h)."
)
@click.option("--fresh", is_flag=True, help="Install everything anew, whatever is kept of earlier jobs.")
@click.option(
    "--priority",
    type=click.Choice([word.value for word in Priority]),
    default=Priority.NORMAL.value,
    help="The class to queue in; all jobs of a better one come first. An operator says who may use which.",
)
@click.option("--pool", default=DEFAULT_POOL, help="The pool of agents to run in.")
@click.option(
    "--max-attempts",
    type=click.IntRange(1, MOST_ATTEMPTS),
    help="How often infrastructure may lose the job once its tests began, instead of the operator's default.",
)
@click.option(
    "--queue-timeout",
    type=_duration,
    metavar="DURATION",
    help="Fail the job if it waits longer in the queue (90, 90s, 10m, 1h); the operator's limit holds as well.",
)
@click.option(
    "--wait-for-capacity", is_flag=True, help="Wait for room in a full queue instead of giving up (75)."
)
@click.option("--dry-run", is_flag=True, help="List what would be sent, and what not and why; send nothing.")
@click.option(
    "--include-ignored", is_flag=True, help="Send files that git ignores too (save the usual artefacts)."
)
@click.option(
    "-C",
    "--project",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    help="The project's root directory.",
)
@click.option("--verbose", is_flag=True, help="Say what is sent, and how.")
@_json_option
@_raw_option
@_connection_options
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- PYTEST_ARGS...]")
def submit_test(
    background: bool,
    timeout: float | None,
    fresh: bool,
    priority: str,
    max_attempts: int | None,
    queue_timeout: float | None,
    pool: str,
    wait_for_capacity: bool,
    dry_run: bool,
    include_ignored: bool,
    project: Path,
    verbose: bool,
    as_json: bool,
    raw: bool,
    pytest_args: tuple[str, ...],
    **flags: str | None,
) -> int:
    """Send the tree as it is, run its tests in a clean container, show the output live.

    What git would take is sent: tracked files and untracked ones that are not ignored; outside of git everything
    but the usual artefacts. A .ciignore file (syntax of .gitignore) keeps more back.

    Arguments after -- are pytest's: ci submit test -- -k parser -x
    """
    from ci_client.commands import following

    options = following.SubmitOptions(
        project,
        pytest_args,
        timeout,
        include_ignored,
        background,
        as_json,
        raw,
        wait_for_capacity,
        fresh,
        verbose,
        Priority(priority),
        max_attempts,
        queue_timeout,
        pool,
    )
    if dry_run:
        return following.dry_run(Console(), options)
    return following.submit(Console(), Flags(**flags), options)


@ci.command("wait")
@_job_argument
@click.option("--all", "everything", is_flag=True, help="Show the output from its beginning.")
@_json_option
@_raw_option
@_connection_options
def wait(job_id: str, everything: bool, as_json: bool, raw: bool, **flags: str | None) -> int:
    """Follow a job until its verdict; only new output unless --all."""
    from ci_client.commands import following

    return following.wait(Console(), Flags(**flags), job_id, everything=everything, json=as_json, raw=raw)


@ci.command("list")
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in JobStatus]),
    help="Only jobs in this state; may be repeated.",
)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, the newest.")
@_json_option
@_connection_options
def list_jobs(statuses: tuple[str, ...], limit: int | None, as_json: bool, **flags: str | None) -> int:
    """List your jobs, newest first; times are UTC."""
    from ci_client.commands import jobs

    return jobs.list_jobs(Console(), Flags(**flags), statuses=statuses, limit=limit, json=as_json)


@ci.command("queue")
@_json_option
@_connection_options
def queue(as_json: bool, **flags: str | None) -> int:
    """List your queued jobs: place, rough wait, and why."""
    from ci_client.commands import jobs

    return jobs.queue(Console(), Flags(**flags), json=as_json)


@ci.command("status")
@_job_argument
@click.option("--timing", is_flag=True, help="Show where its time went instead.")
@_json_option
@_connection_options
def status(job_id: str, timing: bool, as_json: bool, **flags: str | None) -> int:
    """Show a job as it stands."""
    from ci_client.commands import jobs

    if timing:
        return jobs.timing(Console(), Flags(**flags), job_id, json=as_json)
    return jobs.status(Console(), Flags(**flags), job_id, json=as_json)


@ci.command("logs")
@_job_argument
@_raw_option
@_connection_options
def logs(job_id: str, raw: bool, **flags: str | None) -> int:
    """Print a job's output so far."""
    from ci_client.commands import jobs

    return jobs.logs(Console(), Flags(**flags), job_id, raw=raw)


@ci.command("cancel")
@_job_argument
@_connection_options
def cancel(job_id: str, **flags: str | None) -> int:
    """Ask for a job's end."""
    from ci_client.commands import jobs

    return jobs.cancel(Console(), Flags(**flags), job_id)


def main() -> NoReturn:
    """Run the command; the process ends with the documented exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # pyright: ignore
    _leave(run(sys.argv[1:]))


def _leave(code: int) -> NoReturn:
    """The process ends at once; what an interpreter tidies up first is only memory, and takes time."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)  # Python itself says what became of the output
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; what went wrong has been said on stderr."""
    try:
        code = ci.main(arguments, prog_name="ci", standalone_mode=False)
        return code if isinstance(code, int) else ClientExit.OK
    except CIError as error:
        _report(arguments, error.code, error.detail, {"retry_after": error.retry_after, **error.extra})
        return exit_code_of_error(error)
    except click.UsageError as error:
        _report_usage(arguments, error)
        return ClientExit.USAGE
    except (click.Abort, KeyboardInterrupt):
        return ClientExit.INTERRUPTED
    except ReaderGone:
        return ClientExit.BROKEN_PIPE
    except Exception:  # noqa: BLE001 - said, and not with Python's own 1, which is that of failed tests
        import traceback

        traceback.print_exc()
        return ClientExit.INTERNAL


def _report(arguments: list[str], code: str, message: str, extra: dict[str, Any]) -> None:
    if _wants_json(arguments):
        known = {name: value for name, value in extra.items() if value is not None}
        click.echo(json.dumps({"error": {"code": code, "message": message, **known}}), err=True)
        return
    request = f" (request {extra['request_id']})" if extra.get("request_id") else ""
    Console().note(f"error: {message}{request}", "red")


def _report_usage(arguments: list[str], error: click.UsageError) -> None:
    if _wants_json(arguments):
        _report(arguments, "usage", error.format_message(), {})
        return
    error.show()
    of_submit = error.ctx is not None and error.ctx.command is submit_test
    if of_submit and isinstance(error, click.NoSuchOption) and not error.possibilities:
        hint = f"An option of pytest comes after --, as in: ci submit test -- {error.option_name}"
        click.echo(hint, err=True)


def _wants_json(arguments: list[str]) -> bool:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return "--json" in arguments[:end]
