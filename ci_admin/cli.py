"""The `ci-admin` command: its groups, and the one place where an error becomes a sentence and an exit code."""

import sys
from io import TextIOWrapper
from pathlib import Path

import click

from ci_admin.agent_commands import agent
from ci_admin.audit_command import audit
from ci_admin.backup_commands import backup, restore
from ci_admin.key_commands import key
from ci_admin.move_command import migrate
from ci_admin.network_commands import network
from ci_admin.pool_commands import pool
from ci_admin.prune_command import prune, stats
from ci_admin.queue_commands import queue
from ci_admin.session import database_option, with_database
from ci_admin.user_commands import user
from ci_common import __version__
from ci_common.errors import CIError
from ci_common.terminal import one_line

USAGE_ERROR = 64
INTERRUPTED = 130

_EPILOG = """\b
Exit codes: 0 done, 64 called wrongly, 65 conflict, 66 no such user or key, 69 no Docker engine or a failed
check, 75 database or port busy, 130 Ctrl-C."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(__version__, prog_name="ci-admin")
def cli() -> None:
    """Run the CI system: its users, their API keys, its health.

    \b
    ci-admin up                                                controller and server for one person
    ci-admin user create --name "Ada" --email ada@example.com
    ci-admin key create --email ada@example.com --name laptop --expires 90d
    ci-admin doctor                                            what is missing on this machine
    """


cli.add_command(user)
cli.add_command(key)
cli.add_command(queue)
cli.add_command(agent)
cli.add_command(pool)
cli.add_command(network)
cli.add_command(audit)
cli.add_command(prune)
cli.add_command(stats)
cli.add_command(backup)
cli.add_command(restore)
cli.add_command(migrate)


@cli.command(short_help="Check everything this machine needs.")
@click.option("--probe", is_flag=True, help="Instead, try every known way out of a container like a job's.")
@with_database
def doctor(db_path: Path | None, as_json: bool, probe: bool) -> int:
    """Check everything this machine needs, one line each with the way out; exit code 69 if something failed."""
    from ci_admin.doctor import examine

    return examine(db_path, as_json=as_json, probe=probe)


@cli.command(short_help="Run controller and server in the foreground.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen at."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@database_option("ci/ci_jobs.db in $XDG_DATA_HOME or ~/.local/share")
def up(port: int, host: str, db_path: Path | None) -> int:
    """Run controller and server in the foreground, for one person on one box; Ctrl-C stops both.

    The first time it also makes a user, an API key and ~/.ci/config, so that `ci submit test` works in the
    next terminal. Without --db-path or CI_DATABASE_URL the state is in ~/.local/share/ci/, whatever folder
    this is.
    """
    from ci_admin.up import run

    return run(host, port, db_path)


def main() -> None:
    """Run `ci-admin`; errors are one sentence on stderr and the exit code of their kind."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that knows no ✓ gets a ?, not a traceback
            stream.reconfigure(errors="replace")
    sys.exit(_run())


def _run() -> int:
    try:
        code: object = cli.main(standalone_mode=False, prog_name="ci-admin")
    except click.UsageError as error:
        error.show()
        return USAGE_ERROR
    except click.Abort:
        click.echo("ci-admin: interrupted", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except CIError as error:
        click.echo(f"ci-admin: {one_line(error.detail)}", err=True)
        return error.exit_code
    return code if isinstance(code, int) else 0
