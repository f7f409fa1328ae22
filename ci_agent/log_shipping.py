"""Logs on their way to the server: written to disk here first, sent in order by a thread of each, whole before the end.

A pump never waits for the network. What is sent follows from the file alone, so a cut, a server that restarts and an
agent that does cost nothing but time: the server says how much it has, and it goes on from there.
"""

import hashlib
import threading
from collections.abc import Collection, Iterable
from typing import Final

import structlog

from ci_agent.link import ServerLink
from ci_common.errors import ArchiveTooLarge, CIError, Conflict, InvalidOffset, RateLimited, StaleClaim
from ci_common.models import Fence, LogSeal
from ci_common.stores import LogStore, LogWriter

log = structlog.get_logger(__name__)

_PIECE: Final = 1024 * 1024
_GATHERING: Final = 0.1  # seconds between pieces that are not full: what comes in a burst travels together
_RETRY: Final = 1.0
_MOST_EVENTS: Final = 4 * 1024 * 1024


class _Shipment:
    """One attempt's log and events; used by its own thread and, at the end, by whoever reports that."""

    def __init__(self, link: ServerLink, logs: LogStore, fence: Fence) -> None:
        self._link = link
        self._logs = logs
        self._fence = fence
        self._sent = 0
        self._events = b""  # as they were sent last
        self._most: int | None = None  # bytes of the log that the server takes, once it said so
        self._sending = threading.Lock()
        self._changed = threading.Event()
        self._over = threading.Event()
        name = f"log-{fence.job_id[:8]}-{fence.attempt}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def wake(self) -> None:
        """There is more to send."""
        self._changed.set()

    def end(self) -> None:
        """Nothing more is sent."""
        self._over.set()
        self._changed.set()

    def deliver(self) -> None:
        """The server has all that stands here; raises what keeps it from that."""
        with self._sending:
            self._send_log()
            self._send_events()

    def kept(self, log: LogSeal) -> LogSeal:
        """Return the seal of what the server keeps of that log: all, or as much as it takes."""
        if self._most is None or log.size <= self._most:
            return log
        return LogSeal(self._most, self._digest(self._most), truncated=True)

    def begin_anew(self) -> None:
        """All of it will be sent again."""
        with self._sending:
            self._sent, self._events = 0, b""

    def _run(self) -> None:
        while not self._over.is_set():
            self._changed.wait()
            self._changed.clear()
            try:
                self.deliver()
            except StaleClaim:
                return  # the next look at what we hold says so to everybody
            except (CIError, OSError) as error:
                log.debug("log not sent", job=self._fence.job_id, error=str(error))
                self._over.wait(_patience(error))
                self._changed.set()
            self._over.wait(_GATHERING)

    def _send_log(self) -> None:
        """What stood there is sent: a piece that is not full is the last, or a log that grows would never end."""
        job_id, attempt = self._fence.job_id, self._fence.attempt
        while data := self._logs.read(job_id, attempt, self._sent, asked := self._next_piece()):
            if self._takes(data) and len(data) < asked:
                return

    def _takes(self, data: bytes) -> bool:
        """Tell whether the server took that piece; else what to send next is another one."""
        place = {"Content-Range": f"bytes {self._sent}-{self._sent + len(data) - 1}/*"}
        try:
            self._link.put(self._fence, "log", data, place)
        except InvalidOffset as error:  # it has less than we thought
            self._sent = int(error.extra["size"])
            return False
        except ArchiveTooLarge as error:  # our own limit is above the server's
            if self._most is not None or "limit" not in error.extra:
                raise
            self._most = int(error.extra["limit"])
            return False
        self._sent += len(data)
        return True

    def _next_piece(self) -> int:
        return _PIECE if self._most is None else max(0, min(_PIECE, self._most - self._sent))

    def _digest(self, size: int) -> str:
        job_id, attempt, digest = self._fence.job_id, self._fence.attempt, hashlib.sha256()
        for offset in range(0, size, _PIECE):
            digest.update(self._logs.read(job_id, attempt, offset, min(_PIECE, size - offset)))
        return digest.hexdigest()

    def _send_events(self) -> None:
        events = self._logs.read_events(self._fence.job_id, self._fence.attempt, _MOST_EVENTS)
        if events != self._events:
            self._link.put(self._fence, "events", events)
            self._events = events


def _patience(error: Exception) -> float:
    """Return the seconds until the next try: of a server that takes no more the ones it says, since whoever reports an
    end asks the same server."""
    return float(error.retry_after or _RETRY) if isinstance(error, RateLimited) else _RETRY


class _ShippedWriter(LogWriter):
    """Writes here, and has it sent."""

    def __init__(self, writer: LogWriter, shipment: _Shipment) -> None:
        self._writer = writer
        self._shipment = shipment

    def write(self, offset: int, data: bytes) -> None:
        self._writer.write(offset, data)
        self._shipment.wake()

    def read(self, offset: int, length: int) -> bytes:
        return self._writer.read(offset, length)

    def size(self) -> int:
        return self._writer.size()

    def write_events(self, lines: Iterable[bytes]) -> None:
        self._writer.write_events(lines)
        self._shipment.wake()

    def append_event(self, line: bytes) -> None:
        self._writer.append_event(line)
        self._shipment.wake()

    def seal(self, *, truncated: bool = False) -> LogSeal:
        return self._writer.seal(truncated=truncated)

    def close(self) -> None:
        self._writer.close()


class LogShipping:
    """The logs of all attempts that the agent holds."""

    def __init__(self, link: ServerLink, logs: LogStore) -> None:
        self._link = link
        self._logs = logs
        self._shipments: dict[Fence, _Shipment] = {}
        self._lock = threading.Lock()

    def writer(self, fence: Fence) -> LogWriter:
        """Return the writer of the attempt's log, which is sent while it grows."""
        writer = self._logs.writer(fence.job_id, fence.attempt)
        return _ShippedWriter(writer, self._shipment(fence))

    def deliver(self, fence: Fence) -> None:
        """The server has the attempt's log; raises what keeps it from that."""
        self._shipment(fence).deliver()

    def deliver_again(self, fence: Fence) -> None:
        """The same, where it has something else."""
        self._shipment(fence).begin_anew()
        self._shipment(fence).deliver()

    def kept(self, fence: Fence, log: LogSeal) -> LogSeal:
        """Return the seal of what the server has once the log was delivered: it may take less than we wrote."""
        return self._shipment(fence).kept(log)

    def keep(self, fences: Collection[Fence]) -> None:
        """Nothing is sent any more of other attempts than these."""
        with self._lock:
            for fence in self._shipments.keys() - set(fences):
                self._shipments.pop(fence).end()

    def spooled(self) -> set[str]:
        """Return the jobs of which there are logs on this disk, by id."""
        return {item.name for item in self._logs.items()}

    def forget(self, job_ids: Collection[str]) -> None:
        """The logs of those jobs are gone from this disk."""
        for name in job_ids:
            self._logs.delete(name)

    def _shipment(self, fence: Fence) -> _Shipment:
        with self._lock:
            if fence not in self._shipments:
                self._shipments[fence] = _Shipment(self._link, self._logs, fence)
            return self._shipments[fence]


def is_another_log(error: CIError) -> bool:
    """Tell whether the server refused a verdict because what it has of the log is not what we have."""
    return isinstance(error, Conflict) and not isinstance(error, StaleClaim)
