"""`ci-controller`: flags over environment, logging, signals, exit codes."""

import asyncio
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import structlog
from pydantic import ValidationError

from ci_common import __version__
from ci_common.errors import CIError
from ci_controller.composition import open_controller
from ci_controller.controller import JobController
from ci_controller.settings import ControllerSettings

log = structlog.get_logger(__name__)

_USAGE: Final = 64
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
@click.option("--max-running-jobs", type=int, help="Jobs that run at the same time (CI_MAX_RUNNING_JOBS).")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="The least important messages that are logged (CI_LOG_LEVEL).",
)
@click.version_option(__version__, prog_name="ci-controller")
def main(**flags: Any) -> None:
    """Run queued jobs in containers until stopped; exactly one controller serves a database.

    Flags override environment variables. SIGTERM and Ctrl-C end it; jobs that run then go on, and the next
    controller adopts them. Exit codes: 0 stopped, 64 wrong settings, 73 a path cannot be used, 75 another
    controller runs or the database cannot be used now, 70 an error of the program.
    """
    settings = _settings({name: value for name, value in flags.items() if value is not None})
    _configure_logging(settings)
    try:
        asyncio.run(_serve(settings))
    except CIError as error:
        _fail(error.detail, error.exit_code)
    except OSError as error:
        _fail(f"{error.filename or settings.db_path}: {error.strerror or error}", _CANNOT)


def _settings(flags: dict[str, Any]) -> ControllerSettings:
    try:
        return ControllerSettings(**flags)
    except ValidationError as error:
        problems = (f"CI_{'_'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors())
        _fail("wrong settings: " + "; ".join(problems), _USAGE)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"ci-controller: {message}", err=True)
    sys.exit(code)


async def _serve(settings: ControllerSettings) -> None:
    async with open_controller(settings) as controller:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, controller)
        log.info(
            "serving",
            version=__version__,
            database=str(settings.db_path.absolute()),
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


def _configure_logging(settings: ControllerSettings) -> None:
    """Our own messages and those of libraries go to stderr in one format."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    final: list[structlog.types.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
    for chatty in ("asyncio", "docker", "urllib3", "aiosqlite"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
