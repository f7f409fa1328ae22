"""Which job wrote too much, and which one has to go when the engine's disk runs low. Pure: no I/O, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from ci_common.disk_space import Space, readable_bytes
from ci_common.models import JobVerdict, Reason
from ci_common.verdict import verdict
from ci_controller.container_runtime import DiskUse

# Below that nobody is to blame: a job's packages and an idle interpreter take less.
_BLAMED_BYTES: Final = 64 * 1024**2
_BLAMED_FILES: Final = 20_000
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


def over_limit(sizes: Mapping[str, int], limit: int) -> dict[str, str]:
    """Return of those containers (id → bytes in the writable layer) the ones above the limit, with the sentence."""
    return {
        container: f"It wrote {readable_bytes(size)}, its limit is {readable_bytes(limit)}."
        for container, size in sizes.items()
        if size > limit
    }


def low_places(spaces: Mapping[str, Space], floor: Floor, low: frozenset[str]) -> frozenset[str]:
    """Return the names of the file systems with less room than the floor; `low` were so when last looked at."""
    return frozenset(
        name for name, space in spaces.items() if (floor.raised() if name in low else floor).shortage(space)
    )


def pressure_note(low: frozenset[str], floor: Floor) -> str | None:
    """Return what `/ready` and waiting clients are told while nothing is claimed; no number in it that changes."""
    if not low:
        return None
    return (
        f"too little room on the disk of {', '.join(sorted(low))}: jobs start again once "
        f"{readable_bytes(floor.raised().free_bytes)} and {floor.raised().free_inodes_percent:.3g} % "
        "of the inodes are free"
    )


def choose_victim(space: Space, shortage: Shortage, uses: Mapping[str, DiskUse]) -> Victim | None:
    """Return the running container that took most of what is short, None where none of them took much."""
    by_bytes = shortage is Shortage.BYTES
    taken = {container: use.written_bytes if by_bytes else use.files or 0 for container, use in uses.items()}
    container = max(taken, key=lambda one: taken[one], default=None)
    if container is None or taken[container] < (_BLAMED_BYTES if by_bytes else _BLAMED_FILES):
        return None
    return Victim(container, _ran_low(space, shortage, taken[container]))


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
