"""A real server over a real database for one test: uvicorn on a free port in a thread, and the controller's moves.

The controller is not running; `Hands` makes its moves, with the repository's and the log store's own methods.
"""

import asyncio
import io
import socket
import threading
import time
import zipfile
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import uvicorn

from ci_common.api_keys import generate_api_key, hash_api_key, key_prefix
from ci_common.clock import utcnow
from ci_common.job_terms import Reason, new_id
from ci_common.models import DEFAULT_SCOPES, APIKey, Attempt, ControllerLease, Job, LogSeal, Scope, User
from ci_common.repository import JobRepository
from ci_common.verdict import verdict
from ci_persistence.factory import Stores, open_repository, open_stores
from ci_server.app import create_app
from ci_server.http_protocol import GuardedProtocol
from ci_server.settings import ServerSettings
from tests.support.plain_http import NO_TLS

# Tests ask as fast as they can; those of the limits set their own.
UNLIMITED: Mapping[str, Any] = {
    "max_requests_per_key": 0,
    "max_requests_per_agent": 0,
    "max_submissions_per_key": 0,
    "max_requests_per_address": 0,
    "max_failed_keys_per_address": 0,
}
PROJECT: Mapping[str, str] = {"tests/test_it.py": "def test_it(): pass\n", "requirements.txt": "pytest\n"}


def zipped(files: Mapping[str, str] = PROJECT) -> bytes:
    """Return an archive of these files, the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return buffer.getvalue()


def upload(data: bytes | None = None) -> dict[str, Any]:
    """Return the `files=` of an httpx request that submits an archive."""
    return {"file": ("project.zip", zipped() if data is None else data, "application/zip")}


@dataclass(frozen=True)
class Account:
    """A user with a key, in clear."""

    user: User
    key: APIKey
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}


@dataclass
class Hands:
    """What the controller would do, done by the test."""

    repository: JobRepository
    stores: Stores
    lease: ControllerLease | None = None

    async def arrive(self, note: str | None = None) -> None:
        """A controller is alive on this database."""
        self.lease = await self.repository.take_over("test", utcnow())
        await self.repository.heartbeat(self.lease, utcnow(), note)

    async def claim(self) -> Attempt:
        """The job that is first in the queue is claimed."""
        if self.lease is None:
            await self.arrive()
        assert self.lease is not None
        [attempt] = await self.repository.claim_jobs(self.lease, 1, utcnow())
        return attempt

    async def start(self) -> Attempt:
        """The job that is first in the queue is running."""
        attempt = await self.claim()
        await self.mark_started(attempt)
        return attempt

    async def mark_started(self, attempt: Attempt) -> None:
        fence = attempt.fence
        container = f"container-{fence.job_id}-{fence.attempt}"
        assert await self.repository.mark_started(fence, container, "sha256:image", utcnow())

    def write(self, attempt: Attempt, data: bytes) -> None:
        """More output stands in the attempt's log."""
        with self._writer(attempt) as writer:
            writer.write(writer.size(), data)

    def seal(self, attempt: Attempt) -> LogSeal:
        with self._writer(attempt) as writer:
            return writer.seal()

    async def finish(
        self, attempt: Attempt, reason: Reason | None = None, log: LogSeal | None = None
    ) -> None:
        """The log is sealed and the job has its verdict."""
        seal = log or self.seal(attempt)
        assert await self.repository.finish_attempt(
            attempt.fence, verdict(reason, "said so", 0 if reason is None else 1), seal, utcnow()
        )

    async def lose(self, attempt: Attempt) -> None:
        """The attempt is given up and its job queued again."""
        await self.repository.release_attempt(
            attempt.fence,
            reason=Reason.INFRA,
            message="the engine went away",
            max_attempts=3,
            not_before=None,
            now=utcnow(),
            log=self.seal(attempt),
        )

    @contextmanager
    def _writer(self, attempt: Attempt) -> Generator[Any, None, None]:
        writer = self.stores.logs.writer(attempt.fence.job_id, attempt.fence.attempt)
        try:
            yield writer
        finally:
            writer.close()


@dataclass
class Site:
    """A database with its data directory, people and a controller's hands; servers are opened on it."""

    settings: ServerSettings
    repository: JobRepository
    stores: Stores
    hands: Hands
    _people: dict[str, Account] = field(default_factory=dict[str, Account])

    async def account(self, name: str = "ada", scopes: frozenset[Scope] = DEFAULT_SCOPES) -> Account:
        """Return the account of that name, made at its first mention."""
        if name not in self._people:
            user = User(new_id(), name, f"{name}@example.org", utcnow())
            await self.repository.create_user(user)
            self._people[name] = await self.issue_key(user, scopes)
        return self._people[name]

    async def issue_key(
        self, user: User, scopes: frozenset[Scope] = DEFAULT_SCOPES, lifetime: timedelta | None = None
    ) -> Account:
        """Return another key of that user."""
        secret = generate_api_key()
        key = APIKey(
            id=new_id(),
            user_id=user.id,
            name="test",
            key_hash=hash_api_key(secret),
            created_at=utcnow(),
            prefix=key_prefix(secret),
            scopes=scopes,
            expires_at=None if lifetime is None else utcnow() + lifetime,
        )
        await self.repository.create_api_key(key)
        return Account(user, key, secret)

    async def queue_job(self, account: Account, **changes: Any) -> Job:
        """A job of that account is queued, put there without a server."""
        job = Job(new_id(), account.user.id, utcnow(), f"{new_id().replace('-', '')}.zip", **changes)
        return await self.repository.create_job(job)

    async def finished_job(self, account: Account, output: bytes) -> Job:
        """A job of that account passed, with that output. The queue must be empty."""
        job = await self.queue_job(account)
        attempt = await self.hands.start()
        self.hands.write(attempt, output)
        await self.hands.finish(attempt)
        done = await self.repository.get_job(job.id)
        assert done is not None
        return done


def make_settings(root: Path, **changes: Any) -> ServerSettings:
    """Return settings of a server whose state is below `root`, whatever the environment says."""
    paths: dict[str, Any] = {"db_path": root / "ci.db", "data_dir": root / "data"}
    given: dict[str, Any] = {**paths, "min_free_bytes": 0, **UNLIMITED, **changes}
    return ServerSettings(**given)


@asynccontextmanager
async def open_site(root: Path, *, initialize: bool = True, **changes: Any) -> AsyncGenerator[Site, None]:
    """A database and its stores are open, for the test's own use."""
    settings = make_settings(root, **changes)
    repository = open_repository(settings)
    stores = open_stores(settings)
    try:
        if initialize:
            await repository.initialize()
        yield Site(settings, repository, stores, Hands(repository, stores))
    finally:
        await repository.close()


@contextmanager
def serving(settings: ServerSettings) -> Generator[str, None, None]:
    """A server answers at the yielded URL. Its streams are cut when the block ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    config = uvicorn.Config(
        create_app(settings),
        http=GuardedProtocol,
        ws="none",
        log_level="warning",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the server ended before it began"
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive(), "the server does not end"


def client(url: str, account: Account | None = None, **options: Any) -> httpx.AsyncClient:
    """Return an HTTP client, with the account's key if there is one."""
    headers = account.headers if account else {}
    return httpx.AsyncClient(
        base_url=url, headers=headers, timeout=20, trust_env=False, verify=NO_TLS, **options
    )


@dataclass(frozen=True)
class Received:
    """One event as it came over the wire."""

    id: str
    data: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.data["type"])


@asynccontextmanager
async def stream(
    http: httpx.AsyncClient, path: str, *, method: str = "GET", **options: Any
) -> AsyncGenerator[AsyncGenerator[Received, None], None]:
    """The job's events, as they come."""
    async with httpx_sse.aconnect_sse(http, method, path, **options) as source:
        assert source.response.status_code == 200, await source.response.aread()

        async def events() -> AsyncGenerator[Received, None]:
            async for event in source.aiter_sse():
                if event.data:
                    yield Received(event.id, event.json())

        received = events()
        try:
            yield received
        finally:
            await received.aclose()


async def read_to_end(http: httpx.AsyncClient, path: str, **options: Any) -> list[Received]:
    """Return all events of a stream that ends by itself."""
    async with stream(http, path, **options) as events, asyncio.timeout(20):
        return [event async for event in events]


async def eventually(check: Any, *, seconds: float = 60.0) -> Any:
    """Return the first true-ish result of the coroutine function `check`."""
    async with asyncio.timeout(seconds):
        while not (value := await check()):  # noqa: ASYNC110 - set by a thread that knows no event of ours
            await asyncio.sleep(0.01)
        return value
