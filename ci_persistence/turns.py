"""Whose turn it is: the rule of `claim_jobs`, and what follows from it for a job further behind. Pure, no SQL."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple


class Head(NamedTuple):
    """The first queued job of a user, and what orders it among the user's own."""

    rank: int  # of the class; the lowest is claimed first
    created_at: str
    job_id: str


@dataclass(frozen=True, slots=True)
class Contender:
    """A user with a job that may be claimed, and what decides on the user's turns."""

    user_id: str
    head: Head
    held: int  # jobs that are claimed or running
    last_claim: int
    max_running: int | None

    @property
    def has_room(self) -> bool:
        return self.max_running is None or self.held < self.max_running

    @property
    def order(self) -> tuple[int, int, int, str, str]:
        """Return what the next claim is decided by: the least of all comes first."""
        return (self.head.rank, self.held, self.last_claim, self.head.created_at, self.head.job_id)


@dataclass(frozen=True, slots=True)
class Turn:
    """The next claim: of which user, and which job."""

    user_id: str
    job_id: str


def turns(
    contenders: Iterable[Contender],
    limit: int,
    latest: int,
    following: Callable[[str, int], Iterator[Head]],
) -> list[Turn]:
    """Return the next claims in their order, at most so many; `latest` is the last claim of all.

    `following` is asked for so many of a user's jobs behind the first, once, and only if a second one may be next.
    """
    waiting = [(one.order, one) for one in contenders if one.has_room]
    heapq.heapify(waiting)
    behind: dict[str, Iterator[Head]] = {}
    due = set[
        str
    ]()  # users who stand there with a job that is taken: the next one comes no earlier than it would
    chosen: list[Turn] = []
    while waiting and len(chosen) < limit:
        _, one = heapq.heappop(waiting)
        if one.user_id in due:
            due.remove(one.user_id)
            if one.user_id not in behind:
                behind[one.user_id] = following(one.user_id, limit - len(chosen))
            head = next(behind[one.user_id], None)
            again = None if head is None else replace(one, head=head)
        else:
            chosen.append(Turn(one.user_id, one.head.job_id))
            due.add(one.user_id)
            again = replace(one, held=one.held + 1, last_claim=latest + len(chosen))
        if again is not None and again.has_room:
            heapq.heappush(waiting, (again.order, again))
    return chosen


# -- foretold --------------------------------------------------------------------------------------------


Standing = tuple[int, int, str, str]


@dataclass(frozen=True, slots=True)
class UserQueue:
    """The queued jobs of one user in one class, and what decides on the user's turns there."""

    user_id: str
    rank: int  # of the class; the lowest is claimed first
    held: int  # jobs that are claimed or running
    last_claim: int
    queued: int
    since: str
    max_running: int | None = None

    def turn(self, ahead: int) -> tuple[int, Standing]:
        """Return what orders the claim of the job with so many of the user's own ahead of it in the class."""
        return (self.held + ahead, self.standing)

    @property
    def standing(self) -> Standing:
        """Return what decides between users who would hold as many.

        Claiming raises what a user holds and takes the turn; of two who then hold as many, the one who held
        more from the start was not claimed from for longer.
        """
        return (-self.held, self.last_claim, self.since, self.user_id)


class Foresight:
    """In which order one user's jobs are claimed if no job ends and none is added meanwhile.

    The queues are those of all users, up to the last class that is asked for or more. What others may not run now does
    not come before a job; its own user's limit does not count, or it had no place.
    """

    def __init__(self, user_id: str, queues: Sequence[UserQueue]) -> None:
        self._classes: dict[int, _Class] = {}
        before, held, last_claims = 0, dict[str, int](), dict[str, int]()
        latest = sum(queue.last_claim for queue in queues)  # no claim so far is later
        for rank, group in groupby(
            sorted(queues, key=lambda queue: queue.rank), key=lambda queue: queue.rank
        ):
            later = [_as_it_will_be(queue, held, last_claims) for queue in group]
            users = [queue if queue.user_id == user_id else _within_its_limit(queue) for queue in later]
            self._classes[rank] = _Class.of(user_id, before, users)
            held |= {queue.user_id: queue.held + queue.queued for queue in users}
            last_claims |= _last_claims(users, latest + before + 1)
            before += sum(queue.queued for queue in users)

    def claims_before(self, rank: int, ahead: int) -> int:
        """Return how many jobs are claimed before the one with so many of the user's own ahead of it in that class."""
        return self._classes[rank].claims_before(ahead)


@dataclass(frozen=True, slots=True)
class _Class:
    """The queues of one class when all better ones have been claimed; asked for each of a user's jobs."""

    before: int  # jobs of better classes
    held: int  # by the user
    others: tuple[tuple[int, int, bool], ...]  # of each other user: held, queued, and whether a tie is theirs

    @classmethod
    def of(cls, user_id: str, before: int, users: Sequence[UserQueue]) -> "_Class":
        mine = next((queue for queue in users if queue.user_id == user_id), None)
        if mine is None:
            return cls(before, 0, ())  # never asked for
        standing = mine.standing
        others = [(one.held, one.queued, one.standing < standing) for one in users if one is not mine]
        return cls(before, mine.held, tuple(others))

    def claims_before(self, ahead: int) -> int:
        before = self.before + ahead
        for held, queued, comes_first in self.others:
            level = self.held + ahead - held  # the other's claims below it come first, one at it may
            if level >= 0:
                before += min(queued, level + comes_first)
        return before


def _as_it_will_be(queue: UserQueue, held: dict[str, int], last_claims: dict[str, int]) -> UserQueue:
    """Return the queue when all better classes have been claimed."""
    user = queue.user_id
    return replace(queue, held=held.get(user, queue.held), last_claim=last_claims.get(user, queue.last_claim))


def _within_its_limit(queue: UserQueue) -> UserQueue:
    """Return the queue without what its user may not have under way beside what is there."""
    if queue.max_running is None:
        return queue
    return replace(queue, queued=min(queue.queued, max(queue.max_running - queue.held, 0)))


def _last_claims(users: Iterable[UserQueue], later: int) -> dict[str, int]:
    """Return when each was claimed from last, once the class is empty; no turn before that is as late as `later`."""
    claimed = [queue for queue in users if queue.queued]
    order = sorted(claimed, key=lambda queue: queue.turn(queue.queued - 1))
    return {queue.user_id: later + place for place, queue in enumerate(order)}
