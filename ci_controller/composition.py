"""Where the controller's parts are chosen and put together: repository, stores, engine, loop."""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from typing import Final

import structlog

from ci_common.clock import SystemClock
from ci_common.errors import ControllerRunning, DatabaseBusy, EngineUnavailable, SchemaMissing
from ci_common.models import ControllerState
from ci_common.repository import JobRepository
from ci_controller.container_manager import ContainerManager
from ci_controller.controller import JobController
from ci_controller.disk_watch import DATA, DATABASE
from ci_controller.docker_payload import RUNTIME_FIX
from ci_controller.settings import ControllerSettings
from ci_controller.singleton import lock_file, refuse_if_alive
from ci_controller.succession import Succession
from ci_persistence.ballast import Ballast
from ci_persistence.factory import Stores, open_presence, open_repository, open_stores

log = structlog.get_logger(__name__)

_OTHER_THREADS: Final = 4  # for what belongs to no slot: pruning, migrating
_BUSY_TRIES: Final = 6  # each waits as long as the database itself does
_ENGINE_SECONDS: Final = 5.0  # then there is no telling


@asynccontextmanager
async def open_controller(settings: ControllerSettings) -> AsyncGenerator[JobController]:
    """The controller is ready to run: a file is ours and current, and nobody else serves it; for its turn at a server's
    database it waits when it runs.

    Raises ControllerRunning, SchemaTooNew, DatabaseCorrupt, DatabaseBusy, OSError for paths that cannot be used.
    """
    asyncio.get_running_loop().set_default_executor(_threads_for(settings.max_running_jobs))
    async with AsyncExitStack() as stack:
        repository = open_repository(settings)
        stack.push_async_callback(repository.close)
        if settings.server_url is None:
            await _be_the_only_one(stack.enter_context(lock_file(settings.lock_path)), repository)
        stores = open_stores(settings)
        await stores.hub.start()
        stack.push_async_callback(stores.hub.close)
        manager = ContainerManager(
            settings.container_prefix,
            job_log_bytes=settings.log_limit,
            network=settings.network_options,
            job_runtime=settings.job_runtime,
        )
        stack.push_async_callback(manager.close)
        if settings.local_runner:
            await _say_if_the_runtime_is_missing(manager)
        yield JobController(
            repository,
            manager,
            settings.reconcile_interval,
            logs=stores.logs,
            archives=stores.archives,
            changes=stores.hub,
            policy=settings.policy,
            places={DATABASE: settings.db_path.parent, DATA: settings.data_path},
            reserve=Ballast(settings.db_path),
            agent_lease=timedelta(seconds=settings.agent_lease),
            local_runner=settings.local_runner,
            succession=await _succession(settings, repository, stores, manager, stack),
        )


async def _be_the_only_one(is_free: bool, repository: JobRepository) -> None:
    """No other controller serves the file, whose schema is current."""
    if not is_free:
        await refuse_if_alive(lambda: _state_of_the_other(repository), SystemClock())
    await _initialize(repository)


async def _succession(
    settings: ControllerSettings,
    repository: JobRepository,
    stores: Stores,
    manager: ContainerManager,
    stack: AsyncExitStack,
) -> Succession | None:
    """Return how this controller comes to lead among others; None where it is the only one."""
    if (presence := open_presence(settings)) is None:
        return None
    stack.push_async_callback(presence.close)
    runs_on = await _engine_of(manager) if settings.local_runner else None
    local = settings.local_runner
    return Succession(repository, presence, stores.hub, SystemClock(), runs_on=runs_on, runs_jobs=local)


async def _engine_of(manager: ContainerManager) -> str | None:
    """Return the identity of the engine that has our containers; None where it does not say it now."""
    try:
        return await asyncio.wait_for(manager.engine_id(), _ENGINE_SECONDS)
    except (EngineUnavailable, TimeoutError):
        log.warning("the engine does not say which one it is; another host's could be taken for it")
        return None


async def _say_if_the_runtime_is_missing(manager: ContainerManager) -> None:
    """The log says so at the start; the engine refuses each container later, and jobs wait."""
    if manager.job_runtime is None:
        return
    with suppress(EngineUnavailable):  # said elsewhere, again and again
        if manager.job_runtime not in (await manager.info()).runtimes:
            log.error("the engine has no such runtime", runtime=manager.job_runtime, fix=RUNTIME_FIX)


def _threads_for(slots: int) -> ThreadPoolExecutor:
    """Return the threads in which archives are read and logs sealed: no slot waits for what another one does.

    asyncio's own number of them follows the cores of the machine.
    """
    return ThreadPoolExecutor(2 * slots + _OTHER_THREADS, "files")


async def _state_of_the_other(repository: JobRepository) -> ControllerState | None:
    """Return the heartbeat of whoever has the lock; its schema is its own business as long as it is there."""
    try:
        return await repository.controller_state()
    except SchemaMissing as error:
        raise ControllerRunning(
            "Another controller is starting on this database, or an older release of it runs; "
            "exactly one may run."
        ) from error


async def _initialize(repository: JobRepository) -> None:
    for _ in range(_BUSY_TRIES):
        try:
            await repository.initialize()
        except DatabaseBusy as error:
            log.warning("waiting for the database", error=error.detail)
            await asyncio.sleep(1)
        else:
            return
    await repository.initialize()
