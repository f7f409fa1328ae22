"""What is kept and for how long: pure rules from a listing to what goes and why. No I/O, no clock.

Archives, logs and the rows of jobs each have an age, a number and (the first two) a size they may reach; whatever
exceeds one of them goes, the oldest first. The newest few of each stay whatever the other three say. Contents of
files, which can be sent again, have an age and sizes. Of the audit trail, cancels have an age and a number for each
person; what changed users, keys or the installation stays for ever.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, Literal

from ci_common.blobs import PackUse
from ci_common.models import AuditedCancel, FinishedJob

Kind = Literal["archive", "log", "job", "upload", "blobs", "cancel"]

ABANDONED_AFTER: Final = timedelta(hours=1)  # longer than any server stands between an upload and its row
DEFAULT_ARCHIVE_BYTES: Final = 20 * 1024**3
DEFAULT_LOG_BYTES: Final = 20 * 1024**3
DEFAULT_BLOB_BYTES: Final = 20 * 1024**3
DEFAULT_BLOB_BYTES_PER_USER: Final = 10 * 1024**3


@dataclass(frozen=True, slots=True)
class Keep:
    """How much of one kind is kept."""

    age: timedelta  # since the job ended, or was cancelled
    count: int
    size: int | None = None  # bytes
    minimum: int = 0  # the newest so many stay, whatever the other three say


@dataclass(frozen=True, slots=True)
class KeepBlobs:
    """How much is kept of the contents of files that came apart from their trees."""

    age: timedelta = timedelta(days=14)  # since a job was last submitted that needs them
    size: int = DEFAULT_BLOB_BYTES
    size_per_user: int = DEFAULT_BLOB_BYTES_PER_USER


@dataclass(frozen=True, slots=True)
class Retention:
    """What the operator decided to keep of terminal jobs, and of cancels; nothing of any other job is ever pruned."""

    archives: Keep = Keep(timedelta(days=7), 10_000, DEFAULT_ARCHIVE_BYTES)
    logs: Keep = Keep(timedelta(days=30), 100_000, DEFAULT_LOG_BYTES, minimum=100)
    jobs: Keep = Keep(timedelta(days=90), 100_000, minimum=100)
    cancels: Keep = Keep(timedelta(days=365), 1000)  # in the audit trail, of each person
    blobs: KeepBlobs = KeepBlobs()

    def under_pressure(self) -> "Retention":
        """Return what is kept while a disk is nearly full: of archives, which nobody reads again, the minimum.

        Of contents, which can be sent again, what jobs need.
        """
        archives = replace(self.archives, age=timedelta(0), count=0)
        return replace(self, archives=archives, blobs=replace(self.blobs, age=timedelta(0)))


DEFAULT_RETENTION: Final = Retention()


@dataclass(frozen=True, slots=True)
class Stored:
    """One listing of what there is: terminal jobs, newest first, and what lies in the stores, in bytes."""

    jobs: Sequence[FinishedJob] = ()
    archives: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))  # by reference
    logs: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))  # by job


@dataclass(frozen=True, slots=True)
class Prunable:
    """One thing that goes, and why."""

    kind: Kind
    name: str  # of an upload its reference, of a cancel its number in the audit trail, else the job's id
    size: int  # bytes that its files take
    why: str


def choose(stored: Stored, retention: Retention, now: datetime) -> list[Prunable]:
    """Return what is to be pruned: archives, logs and, where neither is kept, jobs; the newest of each first."""
    archives = _Chosen("archive", {job.id: stored.archives.get(job.archive_ref, 0) for job in stored.jobs})
    logs = _Chosen("log", {job.id: stored.logs.get(job.id, 0) for job in stored.jobs})
    jobs = _Chosen("job", {})
    archives.choose([job for job in stored.jobs if not job.archive_pruned], retention.archives, now)
    logs.choose([job for job in stored.jobs if not job.log_pruned], retention.logs, now)
    jobs.choose(stored.jobs, retention.jobs, now)
    for job in stored.jobs:
        if (why := jobs.why.get(job.id)) is None:
            continue
        if job.id in archives.protected or job.id in logs.protected:
            del jobs.why[job.id]  # a row stays for as long as something of its job must
            continue
        if not job.archive_pruned:
            archives.why.setdefault(job.id, why)
        if not job.log_pruned:
            logs.why.setdefault(job.id, why)
    return [*archives.prunable(), *logs.prunable(), *jobs.prunable()]


def choose_cancels(cancels: Iterable[AuditedCancel], keep: Keep, now: datetime) -> list[Prunable]:
    """Return which rows of the audit trail go, of cancels from the latest on.

    Counted for each person, so that nobody pushes out what is written of somebody else.
    """
    places: Counter[str] = Counter()
    gone: list[Prunable] = []
    for one in cancels:
        if now - one.at > keep.age:
            gone.append(Prunable("cancel", str(one.id), 0, f"older than {describe(keep.age)}"))
        elif places[one.actor] >= keep.count:
            gone.append(Prunable("cancel", str(one.id), 0, f"more than {keep.count} of one person are kept"))
        places[one.actor] += 1
    return gone


def choose_packs(packs: Sequence[PackUse], keep: KeepBlobs, now: datetime) -> list[Prunable]:
    """Return the packs that go, of those listed with the one used last first.

    One that a job needs is chosen for its size only: its contents count as missing then, so that they come anew,
    and it goes itself when no job needs it any more. A young one may belong to a submission that is on its way.
    """
    filled = 0
    filled_of: defaultdict[str, int] = defaultdict(int)
    chosen: list[Prunable] = []
    for pack in packs:
        filled_of[pack.user_id] += pack.size
        if filled_of[pack.user_id] <= keep.size_per_user:  # beyond it, it goes, and takes nobody else's place
            filled += pack.size
        why = _why_pack(pack, filled, filled_of[pack.user_id], keep, now)
        if why and now - pack.created_at > ABANDONED_AFTER:
            chosen.append(Prunable("blobs", pack.name, pack.size, why))
    return chosen


def _why_pack(pack: PackUse, filled: int, filled_of_user: int, keep: KeepBlobs, now: datetime) -> str | None:
    if filled_of_user > keep.size_per_user:
        return f"those of one user take more than {keep.size_per_user} bytes"
    if filled > keep.size:
        return f"they take more than {keep.size} bytes"
    if not pack.needed and now - pack.used_at > keep.age:
        return f"unused for more than {describe(keep.age)}"
    return None


def abandoned(ages: Mapping[str, timedelta], in_use: Collection[str]) -> set[str]:
    """Return the uploads that no job came of: their rows would stand by now."""
    return {ref for ref, age in ages.items() if age > ABANDONED_AFTER and ref not in in_use}


class _Chosen:
    """What goes of one kind, and what the minimum protects."""

    def __init__(self, kind: Kind, sizes: Mapping[str, int]) -> None:
        self._kind: Kind = kind
        self._sizes = sizes
        self.why: dict[str, str] = {}
        self.protected: set[str] = set()

    def choose(self, jobs: Iterable[FinishedJob], keep: Keep, now: datetime) -> None:
        for place, (job, filled) in enumerate(self._filling(jobs)):
            if place < keep.minimum:
                self.protected.add(job.id)
            elif why := _why(job, place, filled, keep, now):
                self.why[job.id] = why

    def prunable(self) -> Iterator[Prunable]:
        for job_id, why in self.why.items():
            yield Prunable(self._kind, job_id, self._sizes.get(job_id, 0), why)

    def _filling(self, jobs: Iterable[FinishedJob]) -> Iterator[tuple[FinishedJob, int]]:
        filled = 0
        for job in jobs:
            filled += self._sizes.get(job.id, 0)
            yield job, filled


def _why(job: FinishedJob, place: int, filled: int, keep: Keep, now: datetime) -> str | None:
    if now - job.ended_at > keep.age:
        return f"ended more than {describe(keep.age)} ago"
    if place >= keep.count:
        return f"more than {keep.count} are kept"
    if keep.size is not None and filled > keep.size:
        return f"they take more than {keep.size} bytes"
    return None


def describe(age: timedelta) -> str:
    """Return a duration in the largest unit that fits: `7 d`, `90 min`."""
    seconds = age.total_seconds()
    for name, unit in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds // unit:g} {name}"
    return f"{seconds:g} s"
