"""The composition root: what an app is made of, and the typed aliases by which routes ask for it.

The one module of the server that knows the implementations of the repository and the stores.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Header, Path, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ci_common.clock import Clock, SystemClock
from ci_common.errors import JobNotFound, Unauthorized
from ci_common.keyed_locks import KeyedLocks
from ci_common.models import Job, Scope, User
from ci_common.repository import JobRepository
from ci_common.stores import ArchiveStore, ChangeHub, LogStore
from ci_persistence.factory import open_repository, open_stores
from ci_server.auth import Authenticator, Caller
from ci_server.blobs import Blobs
from ci_server.bodies import JsonBodies
from ci_server.event_stream import StreamSlots
from ci_server.listings import Listings
from ci_server.rate_limits import RateLimits
from ci_server.readiness import StorageLook
from ci_server.repeats import Repeats
from ci_server.request_context import client_address
from ci_server.settings import ServerSettings
from ci_server.shared_looks import SharedLooks
from ci_server.stream_end import Shutdown
from ci_server.submissions import Submissions
from ci_server.trees import Trees

LONGEST_JOB_ID: Final = 100
_SEALED_AT_ONCE: Final = 2
_MOST_OF_AN_AGENT: Final = 8  # at the same time: it has one of each kind, and what a restart left behind


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything a running app holds; closed when it ends."""

    settings: ServerSettings
    repository: JobRepository
    logs: LogStore
    archives: ArchiveStore
    storage: StorageLook
    hub: ChangeHub
    listings: Listings
    looks: SharedLooks
    authenticator: Authenticator
    submissions: Submissions
    repeats: Repeats
    blobs: Blobs
    trees: Trees
    bodies: JsonBodies
    slots: StreamSlots
    agent_waits: StreamSlots  # claims and questions for news, by key
    agent_beats: StreamSlots
    log_turns: KeyedLocks  # of agents' attempts, by job
    sealing: asyncio.Semaphore  # of their logs, each of which is read whole: threads are left for the rest
    shutdown: Shutdown
    rates: RateLimits
    clock: Clock


@contextlib.asynccontextmanager
async def open_resources(settings: ServerSettings) -> AsyncGenerator[Resources, None]:
    """The resources are open while in the block. No database needs to exist yet: it may come later."""
    clock = SystemClock()
    repository = open_repository(settings)
    stores = open_stores(settings)
    authenticator = Authenticator(repository, clock)
    bodies, rates = JsonBodies(settings), RateLimits(settings, clock)
    blobs = Blobs(repository, stores.archives.blobs, authenticator, settings, clock, bodies)
    async with contextlib.AsyncExitStack() as at_the_end:  # each of these, whatever becomes of the others
        at_the_end.push_async_callback(repository.close)
        at_the_end.push_async_callback(stores.hub.close)
        at_the_end.push_async_callback(authenticator.usage.settle)
        await stores.hub.start()
        yield Resources(
            settings=settings,
            repository=repository,
            logs=stores.logs,
            archives=stores.archives,
            storage=StorageLook(stores.archives, settings, clock),
            hub=stores.hub,
            listings=Listings(repository),
            looks=SharedLooks(repository, stores.logs, clock),
            authenticator=authenticator,
            submissions=Submissions(repository, stores.archives, authenticator, settings, clock),
            repeats=Repeats(repository, authenticator, bodies, rates, settings, clock),
            blobs=blobs,
            trees=Trees(stores.archives, blobs, settings, bodies),
            bodies=bodies,
            slots=StreamSlots(settings.max_streams_per_user),
            agent_waits=StreamSlots(_MOST_OF_AN_AGENT, "requests that wait"),
            agent_beats=StreamSlots(_MOST_OF_AN_AGENT, "heartbeats that are being answered"),
            log_turns=KeyedLocks(),
            sealing=asyncio.Semaphore(_SEALED_AT_ONCE),
            shutdown=Shutdown(),
            rates=rates,
            clock=clock,
        )


def resources_of(request: Request) -> Resources:
    """Return what the app of this request holds."""
    resources = request.app.state.resources
    assert isinstance(resources, Resources), "the app's lifespan has begun"
    return resources


async def _resources(request: Request) -> Resources:  # what is not async goes through a thread
    return resources_of(request)


Server = Annotated[Resources, Depends(_resources)]

_bearer = HTTPBearer(
    scheme_name="API key",
    bearerFormat="ci_<id>_<secret>_<checksum>",
    description="An API key, made by an operator with `ci-admin key create`.",
    auto_error=False,  # the error is ours, in our shape
)


async def _known(
    request: Request,
    server: Server,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Caller:
    token = credentials.credentials if credentials else None
    caller = await _authenticated(server, client_address(request.scope), token)
    request.state.user_id = caller.user.id  # for the access log
    return caller


# For the routes of agents alone, who speak for many jobs at once: everybody else's requests are counted.
KnownCaller = Annotated[Caller, Depends(_known)]


async def _counted(caller: KnownCaller, server: Server) -> Caller:
    server.rates.request_by(caller.key.id)
    return caller


async def _authenticated(server: Resources, address: str, token: str | None) -> Caller:
    """Return whose key it is; an address from which too many wrong ones came is refused without a look."""
    server.rates.guess_from(address, token or "")
    try:
        caller = await server.authenticator.authenticate(token)
    except Unauthorized:
        server.rates.key_was(address, token or "", good=False)
        raise
    server.rates.key_was(address, token or "", good=True)
    return caller


AnyCaller = Annotated[Caller, Depends(_counted)]


def _scoped(scope: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    async def check(caller: AnyCaller) -> Caller:
        caller.require(scope)
        return caller

    return check


MaySubmit = Annotated[Caller, Depends(_scoped(Scope.SUBMIT))]
Reader = Annotated[Caller, Depends(_scoped(Scope.READ))]
Operator = Annotated[Caller, Depends(_scoped(Scope.ADMIN))]


async def _submitter(caller: MaySubmit, server: Server) -> Caller:
    server.rates.submission_by(caller.key.id)
    return caller


Submitter = Annotated[Caller, Depends(_submitter)]


async def _current_user(caller: Reader) -> User:
    return caller.user


CurrentUser = Annotated[User, Depends(_current_user)]

IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Any text of your choice: submissions under the same one are one job, so retries are safe.",
        examples=["5f0c1c9b-2b0d-4a5e-8a3f-0d9c7b6a5e4d"],
    ),
]
JobId = Annotated[str, Path(description="As the submit routes return it.", max_length=LONGEST_JOB_ID)]


async def owned_job(request: Request, job_id: JobId, user: CurrentUser, server: Server) -> Job:
    """Return that job of the user's; raises JobNotFound."""
    job = await server.repository.get_job(job_id, user.id)
    if job is None:
        raise unknown_job(job_id)
    request.state.job_id = job.id
    return job


OwnedJob = Annotated[Job, Depends(owned_job)]


def unknown_job(job_id: str) -> JobNotFound:
    """Return the one answer for a job that never was and for somebody else's."""
    return JobNotFound(f"There is no job {job_id} among yours.")


async def reader_of(request: Request, server: Resources) -> Caller:
    """Return the caller as `Reader` is, where FastAPI does not resolve it; raises the same."""
    return await _caller_of(request, server, Scope.READ)


async def submitter_of(request: Request, server: Resources) -> Caller:
    """Return the caller as `Submitter` is, where FastAPI does not resolve it; raises the same."""
    return await _submitter(await _caller_of(request, server, Scope.SUBMIT), server)


async def _caller_of(request: Request, server: Resources, scope: Scope) -> Caller:
    known = await _known(request, server, await _bearer(request))
    return await _scoped(scope)(await _counted(known, server))
