"""The order in which a queue will be claimed, foretold: the rule of `claim_jobs` as arithmetic. Pure, no SQL."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

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
