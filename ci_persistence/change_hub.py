"""One inotify instance per process that wakes whoever waits for the database or for logs. Hints only, never truth."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ci_common.stores import ChangeHub, Subscription
from ci_persistence.commit_watch import CommitWatch

if TYPE_CHECKING:
    from asyncinotify import Event, Inotify, Watch

_log = logging.getLogger(__name__)

# A commit writes the log file first (that is what inotify sees) and becomes visible after its fsync (which
# inotify does not see). So after the last event we look again for a while, at growing distances.
_LOOK_AGAIN = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256)
_QUIET = 0.005  # seconds between two wake-ups for the database: a burst of commits is one hint


class _Subscription(Subscription):
    """One waiter. Its alarm runs on from one wait to the next, so that a line need not set a thousand of them anew."""

    def __init__(self) -> None:
        self.only_log = False
        self._log = self._other = False  # what has changed since the last wait
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._patience_ends = 0.0

    def wake(self) -> None:
        self._other = True
        self._resume()

    def wake_for_log(self) -> None:
        """Whoever waits returns, and is told that only a log changed."""
        self._log = True
        self._resume()

    async def wait(self, seconds: float) -> bool:
        if not (self._log or self._other):
            await self._news(seconds)
        changed, self.only_log = self._log or self._other, self._log and not self._other
        self._log = self._other = False
        return changed

    def close(self) -> None:
        """The alarm is off."""
        if self._alarm is not None:
            self._alarm.cancel()

    async def _news(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._patience_ends = loop.time() + seconds
        if self._alarm is None or self._alarm.when() > self._patience_ends:
            self.close()
            self._alarm = loop.call_later(seconds, self._ring)
        self._waiter = loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _ring(self) -> None:
        self._alarm = None
        if self._waiter is None:
            return
        loop = asyncio.get_running_loop()
        left = self._patience_ends - loop.time()
        if left > 0:
            self._alarm = loop.call_later(left, self._ring)
        else:
            self._resume()

    def _resume(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class InotifyChangeHub(ChangeHub):
    """Watches the database's directory, the directory of logs, and that of each job somebody follows."""

    def __init__(self, db_path: Path, logs_path: Path) -> None:
        self._db_path = db_path.absolute()
        self._logs_path = logs_path.absolute()
        self._commits = CommitWatch(self._db_path)
        self._database_touched = asyncio.Event()
        self._all: set[_Subscription] = set()
        self._by_job: dict[str, set[_Subscription]] = {}
        self._inotify: Inotify | None = None
        self._watches: dict[Path, Watch] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def database(self) -> AbstractContextManager[Subscription]:
        return self._subscribed()

    def log(self, job_id: str) -> AbstractContextManager[Subscription]:
        return self._subscribed_to_log(job_id)

    async def start(self) -> None:
        self._inotify = _open_inotify()
        if self._inotify is None:
            return
        self._watch_what_appeared()
        self._commits.changed()  # from here on only news count
        self._tasks = [asyncio.create_task(self._read_events()), asyncio.create_task(self._follow_commits())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        if self._inotify is not None:
            self._inotify.close()
        self._inotify = None
        self._watches.clear()
        self._commits.forget()

    # -- subscriptions -----------------------------------------------------------------------------------

    @contextmanager
    def _subscribed(self) -> Generator[_Subscription]:
        subscription = _Subscription()
        self._all.add(subscription)
        if self._db_path.parent not in self._watches:
            self._watch_what_appeared()  # nothing tells when it appears: who comes later looks
        try:
            yield subscription
        finally:
            subscription.close()
            self._all.discard(subscription)

    @contextmanager
    def _subscribed_to_log(self, job_id: str) -> Generator[_Subscription]:
        with self._subscribed() as subscription:
            followers = self._by_job.setdefault(job_id, set())
            followers.add(subscription)
            self._watch(self._logs_path / job_id)
            try:
                yield subscription
            finally:
                followers.discard(subscription)
                if not followers:
                    del self._by_job[job_id]
                    self._unwatch(self._logs_path / job_id)

    def _wake_all(self) -> None:
        for subscription in self._all:
            subscription.wake()

    def _wake_job(self, job_id: str) -> None:
        for subscription in self._by_job.get(job_id, ()):
            subscription.wake_for_log()

    # -- watches -----------------------------------------------------------------------------------------

    def _watch(self, path: Path) -> None:
        """The directory is watched, if it exists; otherwise this is tried again when its parent changes."""
        if self._inotify is None or path in self._watches:
            return
        from asyncinotify import Mask

        try:
            self._watches[path] = self._inotify.add_watch(  # pyright: ignore[reportUnknownMemberType]
                path, Mask.MODIFY | Mask.CREATE | Mask.MOVED_TO | Mask.ONLYDIR
            )
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("cannot watch %s, its readers will poll: %s", path, error)

    def _unwatch(self, path: Path) -> None:
        watch = self._watches.pop(path, None)
        if watch is None or self._inotify is None:
            return
        with contextlib.suppress(OSError):  # the directory was deleted, and the watch with it
            self._inotify.rm_watch(watch)

    def _watch_what_appeared(self) -> None:
        """Every directory of interest that exists is watched; asked again whenever one may have come."""
        self._watch(self._db_path.parent)
        self._watch(self._logs_path.parent)  # the first writer makes the directory of logs
        self._watch(self._logs_path)
        for job_id in self._by_job:
            self._watch(self._logs_path / job_id)

    # -- events ------------------------------------------------------------------------------------------

    async def _read_events(self) -> None:
        assert self._inotify is not None
        async for event in self._inotify:
            self._dispatch(event)

    def _dispatch(self, event: "Event") -> None:
        from asyncinotify import Mask

        if Mask.Q_OVERFLOW in event.mask:
            self._database_touched.set()
            self._watch_what_appeared()
            self._wake_all()
            return
        watch = event.watch
        if watch is None:
            return  # of a watch that was removed meanwhile
        if Mask.IGNORED in event.mask:
            self._forget(watch)
        elif watch.path / str(event.name) == self._logs_path:
            self._watch_what_appeared()
            self._wake_all()  # what was written before the watch stood is to be read too
        elif watch.path == self._db_path.parent:
            self._database_event(event)
        elif watch.path == self._logs_path:
            self._log_directory_event(event)
        elif watch.path.parent == self._logs_path:
            self._wake_job(watch.path.name)

    def _forget(self, watch: "Watch") -> None:
        if self._watches.get(watch.path) is watch:
            del self._watches[watch.path]
            self._watch_what_appeared()

    def _database_event(self, event: "Event") -> None:
        from asyncinotify import Mask

        name = str(event.name)
        if name == self._db_path.name and (Mask.CREATE in event.mask or Mask.MOVED_TO in event.mask):
            self._commits.forget()
        if name in (self._db_path.name, self._db_path.name + "-wal"):
            self._database_touched.set()

    def _log_directory_event(self, event: "Event") -> None:
        job_id = str(event.name)
        if job_id in self._by_job:
            self._watch(self._logs_path / job_id)
            self._wake_job(job_id)  # what was written before the watch stood

    async def _follow_commits(self) -> None:
        while True:
            await self._database_touched.wait()
            if not self._all:  # who comes later looks for himself first
                self._database_touched.clear()
                continue
            for pause in _LOOK_AGAIN:
                self._database_touched.clear()
                await self._look()
                if await self._touched_within(pause):
                    break
            else:
                await self._look()

    async def _look(self) -> None:
        if self._commits.changed():
            self._watch_what_appeared()
            self._wake_all()
            await asyncio.sleep(_QUIET)

    async def _touched_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._database_touched.wait()
        except TimeoutError:
            return False


def _open_inotify() -> "Inotify | None":
    if sys.platform != "linux":
        return None
    from asyncinotify import Inotify

    try:
        return Inotify(cache_size=64)
    except OSError as error:  # the limit of instances per user
        _log.warning("cannot watch for changes, waiting readers will poll: %s", error)
        return None
