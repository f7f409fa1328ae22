"""HttpJobSource: the jobs of an agent, asked of the server, and reported to it. The core cannot tell the difference.

A call that cannot be made raises Unavailable, and the core tries again as it does with a busy database; containers and
pumps go on meanwhile. A claim that is ours no more is False or None, as a fence that is stale.
"""

import asyncio
import errno
import tempfile
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from ci_agent.documents import attempt_of, skew, stop_of
from ci_agent.link import ServerLink
from ci_agent.log_shipping import LogShipping, is_another_log
from ci_common.clock import utcnow
from ci_common.errors import CIError, InvalidArchive, InvalidOffset, StaleClaim, Unauthorized
from ci_common.job_terms import JobStatus, JobVerdict, Reason
from ci_common.models import Attempt, Fence, ImageUse, LogSeal, StopIntent
from ci_common.stores import Archive, LogStore, LogWriter
from ci_controller.lease import Superseded
from ci_controller.operations import AttemptKey
from ci_controller.retention import Prunable

log = structlog.get_logger(__name__)

_MOST_TEXT: Final = 1000  # characters that the server takes of what is said to people
_CONTAINERS_AT_ONCE: Final = 500  # that the server answers for in one request
_PIECE: Final = 1024 * 1024
_BEATS: Final = 5  # of a lease: none of them waits longer than until the next one
OpenZip = Callable[[Path], AbstractContextManager[Archive]]


class HttpJobSource:
    """What the agent holds, under its registration."""

    def __init__(
        self,
        link: ServerLink,
        logs: LogStore,
        open_zip: OpenZip,
        directory: Path,
        lease: timedelta,
        *,
        disk_free: Callable[[], int | None],
        left: Callable[[], None],
    ) -> None:
        self.instance_id = link.agent_id  # another agent on the same engine has containers of its own
        self.epoch = link.epoch
        self.lease = lease
        self.is_removed = False  # its key opens nothing any more
        self._link = link
        self._shipping = LogShipping(link, logs)
        self._open_zip = open_zip
        self._directory = directory
        self._disk_free = disk_free
        self._left = left
        self._draining = False
        self._is_idle = False
        self._claimable = 0
        self._held: frozenset[str] = frozenset()

    def close(self) -> None:
        """Nothing is sent any more."""
        self._shipping.keep(())

    def drain(self) -> None:
        """Nothing more is claimed; `left` is called once nothing is held, and no container of what was is there.

        That may be now, whether or not the server can be reached.
        """
        self._draining = True
        if self._is_idle:
            self._left()

    async def heartbeat(self, note: str | None, now: datetime) -> bool:  # noqa: ARG002 - the server has its own clock
        said = {"note": _cut(note), "disk_free": self._disk_free()}
        try:
            await asyncio.to_thread(self._beat, said)
        except StaleClaim:
            return False
        except Unauthorized:
            self.is_removed = True
            return False
        return True

    async def count_claimable(self, now: datetime) -> int:  # noqa: ARG002 - as `held` was told
        return 0 if self._draining else self._claimable

    async def claim(self, slots: int, now: datetime) -> list[Attempt]:  # noqa: ARG002
        self._is_idle = False  # even if the answer is lost
        answer = await asyncio.to_thread(self._link.claim, slots)
        return [attempt_of(one, timedelta(0)) for one in answer["jobs"]] if answer else []

    async def held(self) -> list[Attempt]:
        try:
            answer = await asyncio.to_thread(self._link.ask, "attempts")
        except StaleClaim as error:
            raise Superseded("the agent was registered anew, or removed") from error
        shift = skew(answer["now"], utcnow())
        attempts = [attempt_of(one, shift) for one in answer["attempts"]]
        self._claimable = int(answer["claimable"])
        self._held = frozenset(attempt.job.id for attempt in attempts)
        self._shipping.keep([attempt.fence for attempt in attempts])
        return attempts

    async def ended(self, containers: Collection[str]) -> Mapping[str, AttemptKey]:
        found = await asyncio.to_thread(self._ended, containers) if containers else dict[str, AttemptKey]()
        self._is_idle = not self._held and not found
        if self._draining and self._is_idle:
            self._left()
        return found

    async def started(
        self,
        fence: Fence,
        container_id: str,
        image_id: str,
        cached: bool | None,
        now: datetime,  # noqa: ARG002
    ) -> bool:
        said = {"container_id": container_id, "image_id": image_id, "image_cached": cached}
        return await self._reported(fence, "start", said)

    async def image_uses(self) -> Mapping[str, ImageUse]:
        answer = await asyncio.to_thread(self._link.ask, "images")
        return {
            name: ImageUse(datetime.fromisoformat(one["last_at"]), one["is_open"])
            for name, one in answer["images"].items()
        }

    async def begun(self, fence: Fence, now: datetime) -> bool:  # noqa: ARG002
        return await self._reported(fence, "begin", {})

    async def record_stop(
        self, fence: Fence, reason: Reason, message: str | None, now: datetime
    ) -> StopIntent | None:
        said = {"reason": reason.value, "message": _cut(message)}
        try:
            answer = await asyncio.to_thread(self._link.report, fence, "stop", said)
        except StaleClaim:
            return None
        return stop_of(answer, now - datetime.fromisoformat(answer["at"]))

    async def finish(
        self,
        fence: Fence,
        verdict: JobVerdict,
        log: LogSeal | None,
        now: datetime,  # noqa: ARG002
    ) -> bool:
        said = {
            "reason": verdict.reason.value if verdict.reason else None,
            "exit_code": verdict.exit_code,
            "message": _cut(verdict.message),
        }
        try:
            await asyncio.to_thread(self._end, fence, "complete", said, log)
        except StaleClaim:
            return False
        return True

    async def release(
        self,
        fence: Fence,
        reason: Reason,
        message: str,
        log: LogSeal | None,
        not_before: datetime | None,
        now: datetime,
    ) -> JobStatus | None:
        wait = max(0.0, (not_before - now).total_seconds()) if not_before else 0.0
        said = {"reason": reason.value, "message": _cut(message), "wait": wait}
        try:
            answer = await asyncio.to_thread(self._end, fence, "release", said, log)
        except StaleClaim:
            return None
        return JobStatus(answer["status"])

    @contextmanager
    def open_archive(self, attempt: Attempt) -> Generator[Archive]:
        """Yield the attempt's tree, fetched to this disk and judged as every archive is."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._directory, suffix=".zip") as file:
            with self._link.archive(attempt.fence) as pieces:
                for piece in pieces:
                    file.write(piece)
            file.flush()
            with self._opened(Path(file.name)) as archive:
                yield archive

    def log_writer(self, fence: Fence) -> LogWriter:
        return self._shipping.writer(fence)

    async def keep_house(self, now: datetime, lenience: timedelta) -> list[str]:  # noqa: ARG002
        """Nothing: the queue and its database are the control plane's."""
        return []

    async def prune(self, now: datetime, *, under_pressure: bool = False) -> list[Prunable]:  # noqa: ARG002
        """The logs of what is not held any more are gone from this disk: the server has them, or wants them no more."""
        # Beside the loop, which may claim meanwhile: nothing of what came after the question is judged by its answer.
        spooled = await asyncio.to_thread(self._shipping.spooled)
        answer = await asyncio.to_thread(self._link.ask, "attempts")
        gone = spooled - {one["id"] for one in answer["attempts"]} - self._held
        await asyncio.to_thread(self._shipping.forget, gone)
        for job_id in gone:
            log.info("spool removed", job=job_id)
        return []

    @contextmanager
    def _opened(self, path: Path) -> Generator[Archive]:
        """Yield the archive. The server found nothing wrong with it: what we find is ours, or came on the way, and its
        owner is not to be blamed."""
        with ExitStack() as stack:
            try:
                archive = stack.enter_context(self._open_zip(path))
                _read_through(archive)
            except InvalidArchive as error:
                raise OSError(errno.EINVAL, f"the agent refuses it: {error.detail.rstrip('.')}") from error
            yield archive

    def _beat(self, said: Mapping[str, Any]) -> None:
        patience = (
            self.lease.total_seconds() / _BEATS
        )  # a connection may be dead and not say so: the next is another
        try:
            self._link.tell("heartbeat", said, patience)
        except StaleClaim:  # it may have waited for the removal itself: then the key is gone by now
            self._link.tell("heartbeat", said, patience)

    def _ended(self, containers: Collection[str]) -> Mapping[str, AttemptKey]:
        names, found = sorted(containers), dict[str, AttemptKey]()
        for start in range(0, len(names), _CONTAINERS_AT_ONCE):
            asked = {"containers": names[start : start + _CONTAINERS_AT_ONCE]}
            for name, one in self._link.tell("ended", asked)["ended"].items():
                found[name] = AttemptKey(one["job_id"], one["attempt"])
        return found

    async def _reported(self, fence: Fence, what: str, said: Mapping[str, Any]) -> bool:
        try:
            await asyncio.to_thread(self._link.report, fence, what, said)
        except StaleClaim:
            return False
        return True

    def _end(self, fence: Fence, what: str, said: Mapping[str, Any], log: LogSeal | None) -> Any:
        """Return the server's answer to the attempt's end, which comes behind all of its log."""
        if log is None:
            return self._link.report(fence, what, said)
        self._shipping.deliver(fence)
        kept = self._shipping.kept(fence, log)
        sealed = {
            **said,
            "log_size": kept.size,
            "log_sha256": kept.sha256,
            "log_truncated": kept.truncated,
        }
        try:
            return self._link.report(fence, what, sealed)
        except InvalidOffset:
            pass  # the server lost some of it
        except CIError as error:
            if not is_another_log(error):
                raise
        self._shipping.deliver_again(fence)
        return self._link.report(fence, what, sealed)


def _read_through(archive: Archive) -> None:
    """Every byte is what was declared, now: what is found later is taken for the owner's. Raises InvalidArchive."""
    for entry in archive.entries:
        with archive.open(entry) as reader:
            while reader.read(_PIECE):
                pass


def _cut(text: str | None) -> str | None:
    """Return what the server takes of it: a refusal would be for ever."""
    return text and text[:_MOST_TEXT].replace("\0", "\N{REPLACEMENT CHARACTER}")
