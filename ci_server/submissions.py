"""From an authenticated upload to a queued job: the one way behind all submit routes."""

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Collection

import structlog
from fastapi import Request

from ci_common.clock import Clock
from ci_common.crash_points import crash_point
from ci_common.errors import InvalidRequest, MissingBlobs
from ci_common.job_terms import DEFAULT_POOL, JobOptions, Priority, new_id
from ci_common.models import Idempotency, Job, QueueLimits
from ci_common.repository import JobRepository
from ci_common.stores import ArchiveStore
from ci_server.auth import Authenticator, Caller
from ci_server.disk import require_room
from ci_server.settings import ServerSettings
from ci_server.trees import TreeSubmission
from ci_server.uploads import Submission, is_small, receive_submission

ReadTree = Callable[[Request, Caller], Awaitable[TreeSubmission]]
_TRIES = 3  # at a tree of which a prune takes contents meanwhile
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")

_log = structlog.stdlib.get_logger("ci_server.submissions")


class Submissions:
    """Accepts jobs."""

    def __init__(
        self,
        repository: JobRepository,
        archives: ArchiveStore,
        authenticator: Authenticator,
        settings: ServerSettings,
        clock: Clock,
    ) -> None:
        self._repository = repository
        self._archives = archives
        self._authenticator = authenticator
        self._settings = settings
        self._limits = QueueLimits(settings.max_queued_per_user, settings.max_queued)
        self._clock = clock

    async def submit_job(self, request: Request, caller: Caller, idempotency_key: str | None) -> Job:
        """The upload is durable and its job is queued, and is returned; the row is the commit point.

        A repetition under the same idempotency key returns the first one's job and leaves nothing of its own.
        """
        check_idempotency_key(idempotency_key)
        if not is_small(request) and not await self._is_repetition(caller.user.id, idempotency_key):
            await self.check_room(caller)  # before sending everything; creating the job tells it of little
        await require_room(request, self._settings)
        submission = await receive_submission(request, self._archives, self._settings, caller.user.id)
        crash_point("after_archive_saved")
        job = await self._create_job(caller, submission, idempotency_key)
        crash_point("after_job_created")
        request.state.job_id = job.id  # for the access log
        return job

    async def submit_tree(
        self, request: Request, caller: Caller, idempotency_key: str | None, read: ReadTree
    ) -> Job:
        """The same of a tree whose contents came apart; raises MissingBlobs where some did not, and nothing is left."""
        check_idempotency_key(idempotency_key)
        if not await self._is_repetition(caller.user.id, idempotency_key):
            await self.check_room(caller)
        await require_room(request, self._settings)
        tree = await read(request, caller)
        job = await self._earlier(caller, tree, idempotency_key)
        if job is None:
            job = await self._submitted(caller, tree, idempotency_key)
        crash_point("after_job_created")
        request.state.job_id = job.id
        return job

    async def _submitted(self, caller: Caller, tree: TreeSubmission, idempotency_key: str | None) -> Job:
        for tries_left in reversed(range(_TRIES)):
            archive, packs = await tree.save()
            crash_point("after_archive_saved")
            try:
                submission = Submission(archive, tree.options)
                return await self._create_job(caller, submission, idempotency_key, packs)
            except MissingBlobs:  # a prune came between: the next look says what of the files is missing
                if not tries_left:
                    raise
        raise AssertionError("the last try ends by a job or an error")

    async def _earlier(self, caller: Caller, tree: TreeSubmission, idempotency_key: str | None) -> Job | None:
        """Return the job of the same submission, whose contents may be gone by now."""
        promise = _promise(idempotency_key, tree.sha256, tree.options)
        if promise is None:
            return None
        found = await self._repository.find_idempotent(caller.user.id, promise.key)
        return found[0] if found and found[1] == promise.fingerprint else None

    async def check_room(self, caller: Caller) -> None:
        """The queue has room for one more job of the caller now; raises TooManyRequests or QueueFull."""
        await self._repository.check_room(caller.user.id, self._limits)

    async def _create_job(
        self,
        caller: Caller,
        submission: Submission,
        idempotency_key: str | None,
        packs: Collection[str] = (),
    ) -> Job:
        archive = submission.archive
        job = Job(
            id=new_id(),
            user_id=caller.user.id,
            created_at=self._clock.now(),
            archive_ref=archive.ref,
            options=submission.options,
        )
        try:
            # The upload may have taken long: who was locked out meanwhile starts nothing.
            await self._authenticator.recheck(caller)
            promise = _promise(idempotency_key, archive.sha256, submission.options)
            created = await self._repository.create_job(job, promise, self._limits, packs)
        except Exception:
            # A failed transaction is a whole one: there is no row. A *cancelled* one may still commit, so
            # its archive stays, for the pruning of what no row names.
            await self._discard(archive.ref)
            raise
        if created.id != job.id:
            await self._discard(archive.ref)
        else:
            _log.info("job_submitted", job_id=job.id, user_id=job.user_id, bytes=archive.size)
        return created

    async def _discard(self, ref: str) -> None:
        try:
            await asyncio.to_thread(self._archives.delete, ref)
        except OSError:
            _log.exception("archive_not_deleted", ref=ref)  # pruning gets it later

    async def _is_repetition(self, user_id: str, idempotency_key: str | None) -> bool:
        """Tell whether it has its place already; only `create_job` decides what it gets."""
        if idempotency_key is None:
            return False
        return await self._repository.find_idempotent(user_id, idempotency_key) is not None


def check_idempotency_key(key: str | None) -> None:
    """The key, if there is one, has the documented form; raises InvalidRequest."""
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 printable ASCII characters without spaces.")


def _promise(key: str | None, sha256: str, options: JobOptions) -> Idempotency | None:
    if key is None:
        return None
    same = [sha256, options.pytest_args, options.timeout_seconds]
    if options.fresh:  # only then: a retry may find the promise of an earlier release
        same.append("fresh")
    if options.priority is not Priority.NORMAL:
        same.append(options.priority.value)
    if options.max_attempts is not None:
        same.append(f"max_attempts={options.max_attempts}")
    if options.queue_timeout_seconds is not None:
        same.append(f"queue_timeout={options.queue_timeout_seconds!r}")
    if options.pool != DEFAULT_POOL:
        same.append(("pool", options.pool))
    return Idempotency(key, hashlib.sha256(json.dumps(same).encode()).hexdigest())
