"""Where the agent's parts are chosen and put together: link, spool, engine, loop."""

import asyncio
import shutil
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import structlog

from ci_agent.job_source import HttpJobSource
from ci_agent.link import ServerLink
from ci_agent.news import NewsHub
from ci_agent.settings import AgentSettings
from ci_common import __version__
from ci_common.errors import CIError, Conflict, Forbidden, InvalidRequest, Unauthorized
from ci_common.stores import Archive
from ci_controller.container_manager import ContainerManager
from ci_controller.controller import Runner
from ci_controller.disk_watch import DATA
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_validator import open_archive
from ci_persistence.log_store import FileLogStore

log = structlog.get_logger(__name__)

_RETRY: Final = 1.0
_OTHER_THREADS: Final = 8  # for what belongs to no slot: heartbeats, claims, listings
_HOPELESS: Final = (Unauthorized, Forbidden, InvalidRequest, Conflict)  # a person has to do something


class _GivenUp(Exception):
    """Told to stop before the server was ever reached."""


class Agent:
    """A runner whose jobs come from a server."""

    def __init__(self, settings: AgentSettings, link: ServerLink, manager: ContainerManager) -> None:
        self._settings = settings
        self._link = link
        self._manager = manager
        self._hub = NewsHub(link)
        self._source: HttpJobSource | None = None
        self._over = False
        self._stopped = asyncio.Event()
        directory = settings.agent_data_dir
        self._runner = Runner(
            self._enlist,
            manager,
            settings.reconcile_interval,
            changes=self._hub,
            policy=settings.policy,
            places={DATA: directory},
        )

    async def run(self) -> None:
        """Jobs are run until told to stop; raises ControllerRunning when somebody else registered with the key."""
        await self._hub.start()
        try:
            await self._runner.run()
        except _GivenUp:
            log.info("stopped before the server was reached")
        finally:
            await self._hub.close()
            if self._source is not None:
                self._source.close()
        await self._leave()

    def drain(self) -> None:
        """`run()` returns once what is held has ended, and the agent is then registered no more."""
        if self._source is None or self._over:
            self.stop()
            return
        log.info("draining: what runs goes on to its end")
        self._over = True
        self._source.drain()

    def stop(self) -> None:
        """`run()` returns soon; containers run on, and are adopted by whoever registers with the key in time."""
        self._stopped.set()
        self._runner.stop()

    @property
    def is_removed(self) -> bool:
        """Whether an operator has removed the agent."""
        return self._source is not None and self._source.is_removed

    async def clear(self) -> None:
        """No container of the agent is left: what it held is somebody else's by now."""
        for container in await self._manager.list(self._link.agent_id):
            await self._manager.remove(container.id)

    async def _enlist(self) -> HttpJobSource:
        lease = await self._registered()
        self._source = HttpJobSource(
            self._link,
            FileLogStore(self._settings.agent_data_dir / "logs"),
            self._open_zip,
            self._settings.agent_data_dir / "archives",
            timedelta(seconds=lease),
            disk_free=self._disk_free,
            left=self._runner.stop,
        )
        return self._source

    async def _registered(self) -> float:
        """The server knows the agent; returns its lease. However long the server is away, unless told to stop."""
        while not self._stopped.is_set():
            try:
                return await asyncio.to_thread(self._link.register, self._settings.profile(__version__))
            except _HOPELESS:
                raise
            except CIError as error:
                log.warning("waiting for the server", server=self._link.server_url, error=error.detail)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), _RETRY)
        raise _GivenUp

    async def _leave(self) -> None:
        if self._over:
            with suppress(CIError):  # its lease will tell
                await asyncio.to_thread(self._link.tell, "deregister", {})

    def _open_zip(self, path: Path) -> AbstractContextManager[Archive]:
        known = self._settings
        limits = ArchiveLimits(known.archive_max_entries, known.archive_max_ratio, known.archive_max_bytes)
        return open_archive(path, limits)

    def _disk_free(self) -> int | None:
        try:
            return shutil.disk_usage(self._settings.docker_root or self._settings.agent_data_dir).free
        except OSError:
            return None


@asynccontextmanager
async def open_agent(settings: AgentSettings) -> AsyncGenerator[Agent]:
    """The agent is ready to run; raises Unauthorized without a key, OSError for paths that cannot be used."""
    settings.agent_data_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    threads = ThreadPoolExecutor(4 * settings.max_running_jobs + _OTHER_THREADS, "files")
    asyncio.get_running_loop().set_default_executor(threads)
    async with AsyncExitStack() as stack:
        link = ServerLink(settings.server_url, settings.key)
        stack.callback(link.close)
        manager = ContainerManager(
            settings.container_prefix,
            job_log_bytes=settings.log_limit,
            network=settings.network_options_in(settings.agent_data_dir),
            job_runtime=settings.job_runtime,
        )
        stack.push_async_callback(manager.close)
        yield Agent(settings, link, manager)
