"""Which job wrote too much, and which one has to go when the engine's disk runs low. Pure: no I/O, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from ci_common.disk_space import Space, readable_bytes
from ci_common.job_terms import JobVerdict, Reason
from ci_common.verdict import verdict
from ci_controller.container_runtime import DiskUse

# Below that nobody is to blame: a job's packages and an idle interpreter take less.
_BLAMED_BYTES: Final = 64 * 1024**2
_BLAMED_FILES: Final = 20_000
# Layers are sized again at once when the disk lost that much, and every so often whatever it says: a sparse file takes
# nothing, and what one job writes another may free.
_GROWN_BYTES: Final = 16 * 1024**2
_UNSIZED_SECONDS: Final = 5.0
_HYSTERESIS: Final = 1.1  # room has to come back by that much, so that claiming does not flicker

# What a job that ran into its limit can look like from inside: EFBIG and ENOSPC are ordinary exceptions there.
_SYMPTOMS: Final = frozenset(
    {
        Reason.TESTS_FAILED,
        Reason.COLLECTION_ERROR,
        Reason.INTERNAL_ERROR,
        Reason.INSTALL_FAILED,
        Reason.CRASHED,
    }
)


class Shortage(StrEnum):
    """What a file system has too little of."""

    BYTES = "bytes"
    INODES = "inodes"


@dataclass(frozen=True, slots=True)
class Floor:
    """How much room there has to be."""

    free_bytes: int
    free_inodes_percent: float

    def shortage(self, space: Space) -> Shortage | None:
        """Return what there is less of than that."""
        if space.free_bytes < self.free_bytes:
            return Shortage.BYTES
        return Shortage.INODES if space.free_inodes_percent < self.free_inodes_percent else None

    def raised(self) -> "Floor":
        """Return what there has to be before a shortage is over."""
        return Floor(int(self.free_bytes * _HYSTERESIS), self.free_inodes_percent * _HYSTERESIS)

    def halved(self) -> "Floor":
        """Return where new jobs are refused no longer only, but running ones are stopped."""
        return replace(
            self, free_bytes=self.free_bytes // 2, free_inodes_percent=self.free_inodes_percent / 2
        )


@dataclass(frozen=True, slots=True)
class Victim:
    """The job that has to go so that the others can go on."""

    container_id: str
    message: str


class Blame(StrEnum):
    """Why nobody is stopped although a disk is low."""

    NOBODY = "nobody"  # no job took much, or there is no need to stop one
    UNEXPLAINED = "unexplained"  # more is gone than the jobs are known to have taken
    STILL_UNEXPLAINED = "still unexplained"  # and that did not change for a while


_BLAME_NOTES: Final = {
    Blame.NOBODY: "",
    Blame.UNEXPLAINED: "; no running job is known to have taken that much, so none is stopped",
    Blame.STILL_UNEXPLAINED: "; no running job is known to have taken that much, so none is stopped:"
    " the operator has to make room",
}


def over_limit(sizes: Mapping[str, int], limit: int) -> dict[str, str]:
    """Return of those containers (id → bytes in the writable layer) the ones above the limit, with the sentence."""
    return {
        container: f"It wrote {readable_bytes(size)}, its limit is {readable_bytes(limit)}."
        for container, size in sizes.items()
        if size > limit
    }


def sizes_are_due(then: Space | None, now: Space | None, seconds: float) -> bool:
    """Tell whether layers may have grown much since they were sized, so many seconds ago, with that room on their disk.

    Sizing makes the engine look at every file of every running job; where the disk is not known there is no other way.
    """
    if then is None or now is None or seconds >= _UNSIZED_SECONDS:
        return True
    return then.free_bytes - now.free_bytes >= _GROWN_BYTES


def low_places(spaces: Mapping[str, Space], floor: Floor, low: frozenset[str]) -> frozenset[str]:
    """Return the names of the file systems with less room than the floor; `low` were so when last looked at."""
    return frozenset(
        name for name, space in spaces.items() if (floor.raised() if name in low else floor).shortage(space)
    )


def pressure_note(low: frozenset[str], floor: Floor, blame: Blame) -> str | None:
    """Return what `/ready` and waiting clients are told while nothing is claimed; no number in it that changes."""
    if not low:
        return None
    return (
        f"too little room on the disk of {', '.join(sorted(low))}: jobs start again once "
        f"{readable_bytes(floor.raised().free_bytes)} and {floor.raised().free_inodes_percent:.3g} % "
        f"of the inodes are free{_BLAME_NOTES[blame]}"
    )


def control_plane_note(low: frozenset[str]) -> str | None:
    """Return the same of where no jobs run: the servers refuse, by a limit of their own, what finds no room."""
    if not low:
        return None
    return f"too little room on the disk of {', '.join(sorted(low))}: make some, soon no job is accepted or claimed"


def choose_victim(space: Space, shortage: Shortage, uses: Mapping[str, DiskUse], lost: int) -> Victim | Blame:
    """Return the running container that took most of what is short, unless another may have taken more unseen.

    `lost` is what there is less than at the best moment while these containers ran. What nobody's use explains of
    it may be one job's that hides its writes, or somebody's outside: whoever took less than that is not blamed.
    """
    taken = {container: _taken(use, shortage) for container, use in uses.items()}
    container = max(taken, key=lambda one: taken[one], default=None)
    most = taken[container] if container else 0
    unexplained = lost - sum(taken.values())
    if unexplained > most:
        return Blame.UNEXPLAINED
    if container is None or most < (_BLAMED_BYTES if shortage is Shortage.BYTES else _BLAMED_FILES):
        return Blame.NOBODY
    return Victim(container, _ran_low(space, shortage, most))


def for_the_operator(shortage: Shortage, uses: Mapping[str, DiskUse], lost: int) -> dict[str, object]:
    """Return what helps to find out where the room went: what was lost, and what each container is known to have
    taken, the largest first; under the names of log fields."""
    taken = {container: _taken(use, shortage) for container, use in uses.items()}
    largest_first = sorted(taken.items(), key=lambda one: -one[1])
    return {"short": str(shortage), "lost": lost, "known": dict(largest_first)}


def _taken(use: DiskUse, shortage: Shortage) -> int:
    return use.written_bytes if shortage is Shortage.BYTES else use.files or 0


def _ran_low(space: Space, shortage: Shortage, taken: int) -> str:
    if shortage is Shortage.BYTES:
        left, most = readable_bytes(space.free_bytes), f"written most: {readable_bytes(taken)}"
    else:
        left, most = f"{space.free_inodes} inodes", f"made most files: {taken}"
    return f"The Docker disk ran low: {left} free; this job had {most}."


def explained(outcome: JobVerdict, size: int, limit: int) -> JobVerdict:
    """Return the verdict of a job that failed with that much in its writable layer: a job that ran into its
    limit sees failing writes, and what they make fail is not the cause."""
    if outcome.reason not in _SYMPTOMS or not (message := over_limit({"": size}, limit).get("")):
        return outcome
    return verdict(Reason.DISK_LIMIT, message)
