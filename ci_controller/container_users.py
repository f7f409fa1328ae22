"""Which user a container runs as: one that no other container of its engine has.

What Linux counts per user and not per container (instances of inotify, descriptors on their way through sockets,
queued signals, pages of pipes, keys) would else be one account of all jobs and of whoever has that number on the
host: one job could use it up for all the others.
"""

import secrets
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from ci_common.errors import EngineUnavailable
from ci_controller import labels

# Nobody's by systemd's table of numbers (https://systemd.io/UIDS-GIDS/; those just below are its greeters' since
# version 258), and below 65536, which is how many a remapped or rootless engine has. `runner/setup.sh` names them too.
USERS: Final = range(60706, 61184)
GROUP: Final = 1000  # of all of them: what an image lets this group write, a job may write

NONE_FREE: Final = (
    f"all {len(USERS)} users that containers run as have one already: remove containers that nobody needs "
    f"(`docker ps -a --filter label={labels.UID}`)"
)

Choose = Callable[[Sequence[int]], int]


def free_user(taken: Collection[int], choose: Choose = secrets.choice) -> int:
    """Return a user that is not taken; raises EngineUnavailable when all are.

    By chance, so that two controllers that look at the same moment hardly ever take the same one.
    """
    free = [user for user in USERS if user not in taken]
    if not free:
        raise EngineUnavailable(NONE_FREE)
    return choose(free)


def users_of(found: Iterable[Mapping[str, str]]) -> set[int]:
    """Return the users that containers with those labels have; what is no number is nobody's of ours."""
    values = (of_container.get(labels.UID, "") for of_container in found)
    return {int(value) for value in values if value.isdecimal()}


class ContainerUsers:
    """Gives every container that is about to be made a user of its own; for threads at once.

    `taken` asks the engine for the users of the containers that exist.
    """

    def __init__(self, taken: Callable[[], Collection[int]]) -> None:
        self._taken = taken
        self._reserved: set[int] = set()
        self._choosing = threading.Lock()

    @contextmanager
    def reserved(self) -> Generator[int]:
        """While the context is open nobody else gets that user; by its end the container exists and says so itself.

        Raises EngineUnavailable.
        """
        # The engine is asked under the lock: an answer from before somebody's container came to be must not be used
        # after that somebody's reservation has ended.
        with self._choosing:
            user = free_user(self._reserved | set(self._taken()))
            self._reserved.add(user)
        try:
            yield user
        finally:
            with self._choosing:
                self._reserved.discard(user)
