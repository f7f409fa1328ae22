"""DiskWatch: looks at disks and at what jobs write to them, in tasks of its own, and says what has to happen.

Two ways, because each is blind to something: the size of a job's layer knows nothing of unlinked files and of
inodes, the room that is left knows nothing of whose fault it is. The decisions are `disk_guard`'s.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import structlog

from ci_common.clock import Clock, SystemClock
from ci_common.disk_space import Space, space_of
from ci_common.errors import CIError
from ci_controller.container_runtime import ContainerError, ContainerGone, ContainerRuntime
from ci_controller.disk_guard import (
    Blame,
    Floor,
    Shortage,
    Victim,
    choose_victim,
    control_plane_note,
    for_the_operator,
    low_places,
    over_limit,
    pressure_note,
    sizes_are_due,
)
from ci_controller.lost_room import LostRoom
from ci_controller.policy import Policy

log = structlog.get_logger(__name__)

ENGINE: Final = "Docker"
DATABASE: Final = "the database"
DATA: Final = "the data directory"

_LOOK_INTERVAL: Final = 0.5
# Sizes cost the engine some 4 µs per file: 6 containers of 20 000 files took it 0.5 to 0.7 s [measured]. So they are
# asked for when the disk says that there may be news (`sizes_are_due`), the pause follows from what the last look took,
# and looking takes a tenth of the time at most.
_SIZES_INTERVAL: Final = 1.0
_SIZES_SHARE: Final = 10
# What cannot be explained is looked at for ten seconds before the operator is told: a job that just ended still
# holds room but runs no more, and is gone by then.
LOOKS_BEFORE_TELLING: Final = 20
_EMERGENCY_BYTES: Final = 8 * 1024**2  # where the ballast is thrown off


class Reserve(Protocol):
    """Room that can be given back: `ci_persistence.ballast.Ballast`."""

    def take_on(self) -> None: ...
    def throw_off(self) -> bool: ...


class DiskWatch:
    """`over_disk` and `low_disk` are for the next plan; `wake` asks for one when they changed."""

    def __init__(
        self,
        runtime: ContainerRuntime,
        instance_id: str,
        policy: Policy,
        places: Mapping[str, Path],
        wake: Callable[[], None],
        reserve: Reserve | None = None,
        measure: Callable[[Path], Space] = space_of,
        clock: Clock | None = None,
    ) -> None:
        self._runtime = runtime
        self._instance_id = instance_id
        self._limit = policy.disk_bytes
        self._floor = Floor(policy.disk_min_free, policy.disk_min_free_inodes)
        self._places = dict(places)
        self._engine_root = policy.docker_root
        self._knows_engine = False
        self._wake = wake
        self._reserve = reserve
        self._space_of = measure
        self._clock = clock or SystemClock()
        self._engine_space: Space | None = None  # when it was last looked at
        self._sized: tuple[Space | None, float] | None = None  # that room, and when, before layers were sized
        self._low: frozenset[str] = frozenset()
        self._over: Mapping[str, str] = MappingProxyType({})
        self._victims: Mapping[str, str] = MappingProxyType({})
        self._lost_room = LostRoom()
        self._blame = Blame.NOBODY
        self._unexplained_looks = 0

    @property
    def over_disk(self) -> Mapping[str, str]:
        """Return the containers that have to go, each with the sentence for its owner."""
        return {**self._victims, **self._over}

    @property
    def low_disk(self) -> str | None:
        """Return why nothing is to be claimed, None where there is room."""
        return pressure_note(self._low, self._floor, self._blame)

    @property
    def low_without_jobs(self) -> str | None:
        """Return what the operator is told where no jobs run, None where there is room."""
        return control_plane_note(self._low)

    @property
    def engine_is_low(self) -> bool:
        """Tell whether the engine's disk has too little room."""
        return ENGINE in self._low

    async def run(self) -> None:
        """Both ways of looking go on until this is cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(_for_ever(self.look_for_growth, _SIZES_INTERVAL, share=_SIZES_SHARE))
            both.create_task(_for_ever(self.look_at_room, _LOOK_INTERVAL, share=0))

    async def run_without_jobs(self) -> None:
        """The disks that are no engine's are looked at until this is cancelled."""
        self._knows_engine = True  # there need not be one
        await _for_ever(self.look_at_room, _LOOK_INTERVAL, share=0)

    async def look_for_growth(self) -> None:
        """As `look_at_sizes`, unless the disk tells that no layer has grown by much since."""
        room, now = self._engine_space, self._clock.monotonic()
        then, at = self._sized or (None, -math.inf)
        if sizes_are_due(then, room, now - at):
            await self.look_at_sizes()
            self._sized = room, now

    async def look_at_sizes(self) -> None:
        """Whose layer is above the limit is known; raises EngineUnavailable."""
        sizes = await self._runtime.layer_sizes(self._instance_id)
        self._lost_room.listed(sizes)
        over = over_limit(sizes, self._limit)
        news = over.keys() - self._over.keys()
        self._over = over
        if news:
            self._wake()

    async def look_at_room(self) -> None:
        """What is low is known, and on the engine's disk who has to go for that; raises EngineUnavailable."""
        await self._find_engine_root()
        spaces = await asyncio.to_thread(self._measure)
        low = low_places(spaces, self._floor, self._low)
        if low != self._low:
            self._low = low
            self._wake()
        await asyncio.to_thread(self._see_to_reserve, spaces.get(DATABASE))
        self._engine_space = spaces.get(ENGINE)
        await self._see_to_victim(self._engine_space)

    async def _find_engine_root(self) -> None:
        if self._knows_engine:
            return
        try:
            root = Path(self._engine_root or await self._runtime.storage_root())
        except CIError as error:  # the other disks are watched meanwhile
            log.debug("the engine's disk is not known yet", error=str(error))
            return
        self._knows_engine = True
        if await asyncio.to_thread(root.exists):
            self._places[ENGINE] = root
        else:
            log.warning("the engine's disk cannot be watched: set CI_DOCKER_ROOT", missing=str(root))

    def _measure(self) -> dict[str, Space]:
        spaces: dict[str, Space] = {}
        for name, path in self._places.items():
            try:
                spaces[name] = self._space_of(path)
            except OSError as error:
                log.warning("a disk cannot be looked at", disk=name, error=str(error))
        return spaces

    def _see_to_reserve(self, space: Space | None) -> None:
        """What is kept for bad times is given up in bad times, and kept again when there is room."""
        if self._reserve is None or space is None:
            return
        try:
            if space.free_bytes < _EMERGENCY_BYTES:
                if self._reserve.throw_off():
                    log.warning("the database's disk is full: its ballast was thrown off")
            elif DATABASE not in self._low:
                self._reserve.take_on()
        except OSError as error:
            log.warning("the database has no ballast", error=str(error))

    async def _see_to_victim(self, space: Space | None) -> None:
        """One at a time: whoever is to go is gone, with its files, before another one is chosen."""
        if space is not None:
            self._lost_room.look(space)
        shortage = self._floor.halved().shortage(space) if space else None
        if space is None or shortage is None:
            self._victims = {}
            self._set_blame(Blame.NOBODY)
            return
        present = {container.id for container in await self._runtime.list(self._instance_id)}
        if present & self.over_disk.keys():
            return
        await self._choose(space, shortage)

    async def _choose(self, space: Space, shortage: Shortage) -> None:
        uses, lost = await self._runtime.disk_uses(self._instance_id), self._lost_room.lost(shortage)
        chosen = choose_victim(space, shortage, uses, lost)
        if isinstance(chosen, Victim):
            self._victims = {chosen.container_id: chosen.message}
            self._set_blame(Blame.NOBODY)
            log.warning("the Docker disk is low", stopping=chosen.container_id[:12], why=chosen.message)
            self._wake()
            return
        self._victims = {}
        self._set_blame(chosen)
        if self._unexplained_looks == LOOKS_BEFORE_TELLING:
            log.error(
                "the Docker disk is low, and no job is known to have taken that much: make room",
                **for_the_operator(shortage, uses, lost),
            )

    def _set_blame(self, blame: Blame) -> None:
        """The note says it, and after a while what is to be done; whoever reads the note is told of a new one."""
        self._unexplained_looks = self._unexplained_looks + 1 if blame is Blame.UNEXPLAINED else 0
        if self._unexplained_looks >= LOOKS_BEFORE_TELLING:
            blame = Blame.STILL_UNEXPLAINED
        if blame is not self._blame:
            self._blame = blame
            self._wake()


async def _for_ever(look: Callable[[], Awaitable[None]], pause: float, *, share: int) -> None:
    """Look again and again, with a pause of at least `share` times what the look took."""
    loop, trouble = asyncio.get_running_loop(), None
    while True:
        began = loop.time()
        try:
            await look()
            trouble = None
        except (CIError, ContainerGone, ContainerError, OSError) as error:
            if trouble != str(error):  # once, not twice a second
                log.warning("disks cannot be watched", error=str(error))
            trouble = str(error)
        except Exception:
            log.exception("disks cannot be watched: a programming error")
        await asyncio.sleep(max(pause, share * (loop.time() - began)))
