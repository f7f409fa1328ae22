"""How much room a disk lost while the containers there are have run: what their use of it has to explain. No I/O."""

from collections.abc import Iterable

from ci_common.disk_space import Space
from ci_controller.disk_guard import Shortage


class LostRoom:
    """Remembers of each running container the most room there was since it began."""

    def __init__(self) -> None:
        self._recent: Space | None = None  # the most since the containers were last listed
        self._last: Space | None = None
        self._most: dict[str, Space] = {}

    def look(self, space: Space) -> None:
        """The room there is now counts for every container that was running when they were last listed."""
        self._most = {container: _most(room, space) for container, room in self._most.items()}
        self._recent = _most(self._recent or space, space)
        self._last = space

    def listed(self, containers: Iterable[str]) -> None:
        """Those run and no others. A new one may have begun, and written, just after the list before this one."""
        if self._recent is not None:
            self._most = {container: self._most.get(container, self._recent) for container in containers}
        self._recent = self._last

    def lost(self, shortage: Shortage) -> int:
        """Return how many bytes or inodes less there are than at the best moment of any container that runs."""
        if self._last is None:
            return 0
        if shortage is Shortage.BYTES:
            return max((room.free_bytes for room in self._most.values()), default=0) - self._last.free_bytes
        return max((room.free_inodes for room in self._most.values()), default=0) - self._last.free_inodes


def _most(one: Space, other: Space) -> Space:
    return Space(max(one.free_bytes, other.free_bytes), max(one.free_inodes, other.free_inodes), other.inodes)
