"""The order in which a queue will be claimed, foretold: the rule of `claim_jobs` as arithmetic. Pure, no SQL."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby


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

    def turn(self, ahead: int) -> tuple[int, int, int, str, str]:
        """Return what orders the claim of the job with so many of the user's own ahead of it in the class.

        Claiming raises what a user holds and takes the turn; of two who then hold as many, the one who held
        more from the start was not claimed from for longer.
        """
        return (self.held + ahead, -self.held, self.last_claim, self.since, self.user_id)


def claims_before(user_id: str, rank: int, ahead: int, queues: Sequence[UserQueue]) -> int:
    """Return how many jobs are claimed before that one if no job ends and none is added meanwhile.

    It is the one of that user in the class of that rank with so many of the user's own ahead of it there; the
    queues are those of all users up to that class, or more. What others may not run now does not come before
    it; its own user's limit does not count, or it had no place.
    """
    before, held, last_claims = 0, dict[str, int](), dict[str, int]()
    latest = sum(queue.last_claim for queue in queues)  # no claim so far is later
    for one, group in groupby(sorted(queues, key=lambda queue: queue.rank), key=lambda queue: queue.rank):
        later = [_as_it_will_be(queue, held, last_claims) for queue in group]
        users = [queue if queue.user_id == user_id else _within_its_limit(queue) for queue in later]
        if one == rank:
            return before + _before_in_class(user_id, ahead, users)
        held |= {queue.user_id: queue.held + queue.queued for queue in users}
        last_claims |= _last_claims(users, latest + before + 1)
        before += sum(queue.queued for queue in users)
    raise AssertionError("the job itself is in one of the queues")


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


def _before_in_class(user_id: str, ahead: int, users: Sequence[UserQueue]) -> int:
    mine = next(queue for queue in users if queue.user_id == user_id)
    turn = mine.turn(ahead)
    before = ahead
    for other in users:
        level = mine.held + ahead - other.held  # the other's claims below it come first, one at it may
        if other is not mine and level >= 0:
            before += min(other.queued, level + (other.turn(level) < turn))
    return before
