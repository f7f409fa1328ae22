"""`ci-admin up`: the whole system in one terminal for one person. It only composes; the daemons are processes."""

import asyncio
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import click

from ci_admin.first_run import ClientSetup, set_up_client
from ci_admin.location import personal_database
from ci_admin.next_steps import greeting
from ci_admin.processes import Children, Ended
from ci_admin.runner_image import ensure_runner_image
from ci_common.client_config import config_path
from ci_common.clock import utcnow
from ci_common.errors import Unavailable
from ci_common.settings import StorageSettings, read_settings
from ci_controller.settings import ControllerSettings
from ci_persistence.factory import open_repository

_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 15.0  # after which the reason for not being ready is shown; the wait goes on
_FAILED = 70
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy to ourselves


def run(host: str, port: int, db_path: Path | None) -> int:
    """Return when the system is stopped: 0 if it was asked to, else the exit code of the daemon that ended."""
    settings = settings_of_all(db_path)
    with _listen(host, port) as listener:
        ensure_runner_image(settings.runner_image)
        settings.db_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return asyncio.run(_up(settings, listener, _url(host, port)))


def settings_of_all(db_path: Path | None) -> ControllerSettings:
    """Return the settings, with the database that was named, by `--db-path` or CI_DATABASE_URL, or the person's own."""
    if os.environ.get("CI_DATABASE_URL"):
        return read_settings(ControllerSettings, **({} if db_path is None else {"db_path": db_path}))
    return read_settings(ControllerSettings, db_path=(db_path or personal_database()).absolute())


def environment_of(settings: StorageSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the daemons' environment: they use that database and no other."""
    environment = {"CI_LOG_FORMAT": "console", **environ}
    if settings.server_url is None:
        environment.pop("CI_DATABASE_URL", None)  # it named the same file
        environment["CI_DB_PATH"] = str(settings.db_path.absolute())
    return environment


async def _up(settings: StorageSettings, listener: socket.socket, url: str) -> int:
    setup = await _set_up(settings, url)
    stop = _stop_signal()
    children = Children(click.echo)
    try:
        ended = await _run_daemons(children, settings, listener, url, setup, stop)
    finally:
        await children.stop()
    if ended is None:
        click.echo("\nStopped. Jobs that were running are picked up again by the next `ci-admin up`.")
        return 0
    click.echo(
        f"ci-admin: the {ended.name} ended (exit code {ended.exit_code}), so all is stopped.", err=True
    )
    return ended.exit_code or _FAILED


async def _run_daemons(
    children: Children,
    settings: StorageSettings,
    listener: socket.socket,
    url: str,
    setup: ClientSetup,
    stop: asyncio.Event,
) -> Ended | None:
    """Return the daemon that ended by itself, None when we were asked to stop."""
    environment = environment_of(settings, os.environ)
    server = [_beside_python("ci-server"), "--fd", str(listener.fileno())]
    await children.start("controller", [_beside_python("ci-controller")], environment)
    await children.start("server", server, environment, pass_fds=[listener.fileno()])
    async with asyncio.TaskGroup() as tasks:
        welcome = tasks.create_task(_greet_when_ready(url, settings, setup))
        stopped = tasks.create_task(stop.wait())
        ended = tasks.create_task(children.first_end())
        await asyncio.wait([stopped, ended], return_when=asyncio.FIRST_COMPLETED)
        for task in (welcome, stopped, ended):
            task.cancel()
    return None if ended.cancelled() else ended.result()


def _stop_signal() -> asyncio.Event:
    """Return an event that is set when the person, the terminal or a supervisor wants an end."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:  # as `nohup` wants it
            continue
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise Unavailable(
            f"{host} port {port} cannot be used: {_plain(error)}. Try another --port."
        ) from error


def _plain(error: OSError) -> str:
    return str(error.strerror).partition(" (while")[0]


def _url(host: str, port: int) -> str:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
    reachable = everywhere.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


async def _set_up(settings: StorageSettings, url: str) -> ClientSetup:
    repository = open_repository(settings)
    try:
        await repository.initialize()
        return await set_up_client(repository, config_path(), url, utcnow())
    finally:
        await repository.close()


async def _greet_when_ready(url: str, settings: StorageSettings, setup: ClientSetup) -> None:
    loop = asyncio.get_running_loop()
    impatient_at: float | None = loop.time() + _PATIENCE_SECONDS
    while problem := await asyncio.to_thread(_not_ready_because, url):
        if impatient_at is not None and loop.time() > impatient_at:
            click.echo(f"ci-admin: not ready yet: {problem}", err=True)
            impatient_at = None
        await asyncio.sleep(_POLL_SECONDS)
    click.echo(greeting(url, settings, setup))


def _not_ready_because(url: str) -> str | None:
    try:
        with _DIRECTLY.open(f"{url}/ready", timeout=2):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return _reasons(error.read()) or str(error)
    except OSError as error:
        return str(error)


def _reasons(document: bytes) -> str:
    """Return what a server that is not ready says it lacks."""
    try:
        return "; ".join(json.loads(document)["reasons"])
    except (ValueError, KeyError, TypeError):
        return document.decode(errors="replace").strip()


def _beside_python(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
