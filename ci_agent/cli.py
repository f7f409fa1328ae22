"""`ci-agent`: flags over environment, logging, signals, exit codes."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import structlog

from ci_agent.composition import Agent, open_agent
from ci_agent.settings import AgentSettings
from ci_common import __version__
from ci_common.errors import CIError, ControllerRunning
from ci_common.service_log import configure_logging
from ci_common.settings import read_settings

log = structlog.get_logger(__name__)

_CANNOT: Final = 73  # sysexits: an output file cannot be created
_PATIENCE: Final = 4.0  # seconds from the signal to the end


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--server", "server_url", metavar="URL", help="The server's address (CI_SERVER_URL).")
@click.option(
    "--key-file",
    "agent_key_file",
    type=click.Path(path_type=Path),
    help="A file with the agent's API key (CI_AGENT_KEY_FILE).",
)
@click.option("--name", "agent_name", help="What people know it by (CI_AGENT_NAME).")
@click.option("--pool", "agent_pool", help="The pool whose jobs it runs (CI_AGENT_POOL).")
@click.option(
    "--data-dir", "agent_data_dir", type=click.Path(path_type=Path), help="Its spool (CI_AGENT_DATA_DIR)."
)
@click.option("--max-running-jobs", type=int, help="Jobs that run at the same time (CI_MAX_RUNNING_JOBS).")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="The least important messages that are logged (CI_LOG_LEVEL).",
)
@click.version_option(__version__, prog_name="ci-agent")
def main(**flags: Any) -> None:
    """Run the jobs of a pool on this host for a server elsewhere.

    Flags override environment variables. SIGTERM: no more jobs are claimed, and it ends when the last one has; a second
    one, SIGINT and SIGQUIT end it at once: jobs that run then go on, and are adopted if it is back within its lease.
    Exit codes: 0 ended or removed, 64 wrong settings, 73 a path cannot be used, 75 another agent registered with this
    key, 77 the key is not good for this, 70 an error of the program.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = read_settings(AgentSettings, **given)
        configure_logging(settings.log_level, settings.log_format)
        asyncio.run(_serve(settings))
    except CIError as error:
        _fail(error.detail, error.exit_code)
    except OSError as error:
        _fail(f"{error.filename or 'the data directory'}: {error.strerror or error}", _CANNOT)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"ci-agent: {message}", err=True)
    sys.exit(code)


async def _serve(settings: AgentSettings) -> None:
    async with open_agent(settings) as agent:
        _heed(signal.SIGTERM, agent.drain)
        for number in (signal.SIGINT, signal.SIGQUIT):
            _heed(number, lambda: _stop(agent))
        log.info("starting", version=__version__, server=settings.server_url, pool=settings.agent_pool)
        try:
            await agent.run()
        except ControllerRunning as error:
            if not agent.is_removed:
                detail = "Another agent registered with this key; this one has stopped: each needs a key of its own."
                raise ControllerRunning(detail) from error
            log.warning("removed by an operator; its containers go")
            await agent.clear()
    log.info("stopped")


def _heed(number: signal.Signals, act: Callable[[], None]) -> None:
    asyncio.get_running_loop().add_signal_handler(number, act)


def _stop(agent: Agent) -> None:
    """The agent is told to stop, and the process ends soon even if threads hang in calls to the engine."""
    agent.stop()
    last_resort = threading.Timer(_PATIENCE, os._exit, (0,))
    last_resort.daemon = True
    last_resort.start()
