"""`ci-controller`: flags over environment, logging, signals, exit codes."""

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import structlog

from ci_common import __version__
from ci_common.errors import CIError
from ci_common.service_log import configure_logging
from ci_common.settings import read_settings
from ci_controller.composition import open_controller
from ci_controller.controller import JobController
from ci_controller.settings import ControllerSettings

log = structlog.get_logger(__name__)

_CANNOT: Final = 73  # sysexits: an output file cannot be created
_PATIENCE: Final = 4.0  # seconds from the signal to the end


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--db-path", type=click.Path(path_type=Path), help="SQLite database file (CI_DB_PATH).")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Archives and logs (CI_DATA_DIR).")
@click.option(
    "--interval",
    "reconcile_interval",
    type=float,
    help="Seconds between two passes at most (CI_RECONCILE_INTERVAL).",
)
@click.option("--prefix", "container_prefix", help="In front of container names (CI_CONTAINER_PREFIX).")
@click.option(
    "--local-runner/--no-local-runner",
    default=None,
    help="Whether jobs run here, or only on agents (CI_LOCAL_RUNNER).",
)
@click.option("--max-running-jobs", type=int, help="Jobs that run at the same time (CI_MAX_RUNNING_JOBS).")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="The least important messages that are logged (CI_LOG_LEVEL).",
)
@click.version_option(__version__, prog_name="ci-controller")
def main(**flags: Any) -> None:
    """Run queued jobs in containers until stopped; exactly one controller serves a database.

    Of several on one PostgreSQL one leads, and the others wait until it is gone; on a file a second one is refused.
    Flags override environment variables. SIGTERM and Ctrl-C end it; jobs that run then go on, and the next
    controller adopts them. Exit codes: 0 stopped, 64 wrong settings, 73 a path cannot be used, 75 another
    controller runs or took over or the database cannot be used now, 70 an error of the program.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = read_settings(ControllerSettings, **given)
        configure_logging(settings.log_level, settings.log_format)
        asyncio.run(_serve(settings))
    except CIError as error:
        _fail(error.detail, error.exit_code)
    except OSError as error:
        _fail(f"{error.filename or 'the database'}: {error.strerror or error}", _CANNOT)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"ci-controller: {message}", err=True)
    sys.exit(code)


async def _serve(settings: ControllerSettings) -> None:
    async with open_controller(settings) as controller:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, controller)
        log.info(
            "starting",
            version=__version__,
            database=settings.database_name,
            data=str(settings.data_path.absolute()),
            image=settings.runner_image,
            slots=settings.max_running_jobs,
        )
        await controller.run()
    log.info("stopped; running jobs go on")


def _stop(controller: JobController) -> None:
    """The controller is told to stop, and the process ends soon even if threads hang in calls to the engine."""
    controller.stop()
    last_resort = threading.Timer(_PATIENCE, _leave)
    last_resort.daemon = True
    last_resort.start()


def _leave() -> None:
    log.warning("the engine hangs; leaving as if killed, which loses nothing")
    os._exit(0)
