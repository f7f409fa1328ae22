"""WaitingPool: a few containers of the images used lately, started ahead of need. A job takes one and never gives
it back.

What it keeps, an attempt's row does not have: when this process dies, or lets one go, the next plan removes it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from ci_common.clock import Clock
from ci_common.crash_points import crash_point
from ci_common.errors import CIError
from ci_controller.container_runtime import ContainerError, ContainerGone
from ci_controller.host_memory import available_memory
from ci_controller.lease import Superseded
from ci_controller.observed_state import Observed
from ci_controller.operations import Operation
from ci_controller.policy import Policy
from ci_controller.waiting import WaitingContainer, WaitingContainers
from ci_controller.waiting_demand import Assignment, Waiting, decide, situation_of, wanted

log = structlog.get_logger(__name__)

_REMEMBERED: Final = 256  # assignments; more in half an hour say nothing new
_PAUSE_AFTER_FAILURE: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Kept:
    container: WaitingContainer
    since: float


class WaitingPool:
    """Hands out containers; `tend` sees to it that some are ready when one is asked for."""

    def __init__(
        self,
        containers: WaitingContainers,
        policy: Policy,
        clock: Clock,
        changed: Callable[[], None],
        memory: Callable[[], int | None] = available_memory,
    ) -> None:
        self._containers = containers
        self._policy = policy
        self._clock = clock
        self._changed = changed  # called when one more waits, or one was let go: the next plan does the rest
        self._memory = memory
        self._kept: list[_Kept] = []  # the oldest first
        self._assigned: deque[Assignment] = deque(maxlen=_REMEMBERED)
        self._making: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        self._runner_image: str | None = None

    def names(self) -> frozenset[str]:
        """Return the names of containers that no row has and that nobody may remove."""
        return self._containers.names()

    @asynccontextmanager
    async def handed_out(self, image_id: str, owner: str) -> AsyncGenerator[WaitingContainer]:
        """A container of that image is the caller's alone, who leaves behind a row that has it, or nothing to keep.

        One that waited, or else a new one. When the context is left its input is closed.
        """
        self.expect(image_id, owner)
        container = await self._taken(image_id) or await self._containers.make(image_id)
        try:
            yield container
        finally:
            self._containers.let_go(container)

    def expect(self, image_id: str, owner: str) -> None:
        """That image counts as one that a job of its owner's is likely to ask for: one just did, or an environment
        was just built."""
        self._assigned.append(Assignment(image_id, self._clock.monotonic(), owner))

    async def _taken(self, image_id: str) -> WaitingContainer | None:
        """Return one that waits and lives; what died meanwhile is let go."""
        while kept := next((one for one in self._kept if one.container.image_id == image_id), None):
            self._kept.remove(kept)
            try:
                is_alive = await self._containers.is_alive(kept.container)
                crash_point("after_taken")
            except BaseException:
                self._containers.let_go(kept.container)
                raise
            if is_alive:
                return kept.container
            self._containers.let_go(kept.container)
        return None

    # -- tending -------------------------------------------------------------------------------------------

    def tend(self, observed: Observed, operations: Iterable[Operation], now: datetime) -> None:
        """What should not wait any more was let go, and at most one more is being made; it never waits itself."""
        if observed.image_id != self._runner_image:
            self._runner_image = observed.image_id
            self._assigned.clear()
        monotonic = self._clock.monotonic()
        images = wanted(self._assigned, self._runner_image, self._policy.warm_containers, monotonic)
        situation = situation_of(observed, operations, self._policy, self._memory(), now)
        waiting = [Waiting(one.container.id, one.container.image_id, one.since) for one in self._kept]
        decision = decide(waiting, images, situation, self._policy.warm_age, monotonic)
        if situation.trouble and self._making:
            self._making.cancel()  # it may have come through what was wrong
        for container_id, why in decision.dropped:
            self._drop(container_id, why)
        if decision.made_of and not self._making and monotonic >= self._retry_at:
            made = self._make(decision.made_of)
            self._making = asyncio.create_task(made, name=f"make one of {decision.made_of} that waits")

    def _drop(self, container_id: str, why: str) -> None:
        kept = next(one for one in self._kept if one.container.id == container_id)
        self._kept.remove(kept)
        self._containers.let_go(kept.container)
        log.info("a container waits no longer", container=kept.container.name, why=why)
        self._changed()

    async def _make(self, image_id: str) -> None:
        try:
            container = await self._containers.make(image_id)
            self._kept.append(_Kept(container, self._clock.monotonic()))
            crash_point("after_waiting")
        except (Superseded, CIError, ContainerError, ContainerGone, OSError) as error:
            log.warning("no container could be made to wait", image=image_id, error=str(error))
            self._retry_at = self._clock.monotonic() + _PAUSE_AFTER_FAILURE
        except Exception:
            log.exception("no container could be made to wait: a programming error")
            self._retry_at = self._clock.monotonic() + _PAUSE_AFTER_FAILURE
        finally:
            self._making = None
            self._changed()

    # -- the end -------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Nothing of ours waits any more; what is left on the engine goes with the next plan, ours or a successor's."""
        if self._making:
            self._making.cancel()
        while self._kept:
            self._containers.let_go(self._kept.pop().container)

    async def close(self, grace: float) -> None:
        """Nothing of ours waits any more, and within the grace it was removed from the engine."""
        try:
            async with asyncio.timeout(grace):
                if self._making:
                    await asyncio.wait({self._making})
                removals = (self._containers.remove(one.container) for one in self._kept)
                ended = await asyncio.gather(*removals, return_exceptions=True)
            left = [str(one) for one in ended if one is not None]
        except TimeoutError:
            left = ["the engine was too slow"]
        finally:
            making = self._making
            self.forget()
            if making:
                await asyncio.gather(making, return_exceptions=True)
        if left:
            log.warning("containers that waited are left to the next controller", errors=left)
