"""`ci-server`: uvicorn with our protocol, so that every connection has deadlines; flags over environment."""

import os
import resource
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
import uvicorn

from ci_common import __version__
from ci_common.errors import CIError
from ci_common.service_log import configure_logging
from ci_common.settings import read_settings
from ci_server.http_protocol import GuardedProtocol
from ci_server.settings import ServerSettings, trusted_proxies
from ci_server.uvicorn_log import adopt_uvicorn

_BACKLOG = 2048  # connections that wait to be accepted


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port", type=int, default=8000, show_default=True, help="The port to listen at; 0: a free one."
)
@click.option("--fd", type=int, help="Listen at this inherited socket instead of --host and --port.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that serve."
)
@click.option(
    "--proxy",
    "proxies",
    multiple=True,
    metavar="ADDRESS",
    help="Believe X-Forwarded-For of this reverse proxy; may be repeated (CI_TRUSTED_PROXIES).",
)
@click.option(
    "--shutdown-timeout",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Seconds in which requests may end after SIGTERM.",
)
@click.option("--db-path", type=click.Path(path_type=Path), help="SQLite database file (CI_DB_PATH).")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Archives and logs (CI_DATA_DIR).")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="The least important messages that are logged (CI_LOG_LEVEL).",
)
@click.version_option(__version__, prog_name="ci-server")
def main(
    host: str,
    port: int,
    fd: int | None,
    workers: int,
    proxies: tuple[str, ...],
    shutdown_timeout: int,
    **flags: Any,
) -> None:
    """Serve the HTTP API until stopped; any number of these share one database.

    Flags override environment variables, which hold all other settings. SIGTERM and Ctrl-C end it: open streams
    end in good order and their readers go on elsewhere. Exit codes: 0 stopped, 64 wrong settings, 3 it cannot
    listen there or cannot start.
    """
    given = {**flags, "trusted_proxies": ",".join(proxies) or None}
    try:
        settings = _settings({name: str(value) for name, value in given.items() if value is not None})
    except CIError as error:
        click.echo(f"ci-server: {error.detail}", err=True)
        sys.exit(error.exit_code)
    configure_logging(settings.log_level, settings.log_format)
    adopt_uvicorn()
    _allow_many_connections()
    signal.signal(signal.SIGTERM, _end)  # which uvicorn raises again at its own end
    _serve(settings, host=host, port=port, fd=fd, workers=workers, timeout_graceful_shutdown=shutdown_timeout)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _settings(flags: dict[str, str]) -> ServerSettings:
    """Return the settings in force; flags are put into the environment, from where workers take theirs."""
    os.environ.update({f"CI_{name.upper()}": value for name, value in flags.items()})
    return read_settings(ServerSettings)


def _serve(settings: ServerSettings, **options: Any) -> None:
    proxies = sorted(trusted_proxies(settings))
    uvicorn.run(
        "ci_server.app:app",
        http=GuardedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),  # nobody is believed unless named
        forwarded_allow_ips=proxies,
        backlog=_BACKLOG,
        **options,
    )


def _allow_many_connections() -> None:
    """The process may open as many files as it is allowed to allow itself; the usual 1024 are too few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
