"""How a controller comes to lead where several may be started: it waits until the one that leads is gone.

What it sees only says when to try. That it leads is decided by one write that fails if the leader was heard of since,
or if another one that waits was quicker.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from ci_common.clock import Clock
from ci_common.errors import (
    CIError,
    DatabaseBusy,
    DatabaseCorrupt,
    RunnerElsewhere,
    SchemaMissing,
    SchemaTooNew,
)
from ci_common.models import ControllerLease, ControllerState
from ci_common.presence import Presence
from ci_common.repository import JobRepository
from ci_common.stores import ChangeHub, Subscription
from ci_controller.vigil import LOOK_EVERY, Vigil

log = structlog.get_logger(__name__)

_QUIET: Final = 0.1  # seconds between two looks: every commit of a busy installation wakes who waits
_FINAL: Final = (DatabaseCorrupt, RunnerElsewhere, SchemaTooNew)  # no waiting helps
_PASSING: Final = (DatabaseBusy, SchemaMissing)  # waiting does, from the start


class Succession:
    """Waits for the end of one leader after the other."""

    def __init__(
        self,
        repository: JobRepository,
        presence: Presence,
        changes: ChangeHub,
        clock: Clock,
        *,
        runs_on: str | None = None,
        runs_jobs: bool = True,
    ) -> None:
        self._repository = repository
        self._presence = presence
        self._changes = changes
        self._clock = clock
        self._runs_on = runs_on
        self._runs_jobs = runs_jobs
        self._vigil = Vigil()
        self._waits_for: int | None = None  # the epoch, once that was said
        self._has_looked = False
        self._is_older = False  # the schema: an older release may lead, whose tables these are
        self._trouble: str | None = None  # that was said

    async def gain(self, holder: str, asking: Callable[[], None]) -> ControllerLease:
        """The holder is the controller, after however long it took; `asking` was called before the question whose
        answer that is.

        Raises RunnerElsewhere, SchemaTooNew, DatabaseCorrupt, and what keeps it from the first look.
        """
        with self._changes.database() as changes:
            while True:
                try:
                    if lease := await self._try(holder, asking):
                        return lease
                except CIError as error:
                    self._bear(error)
                await _next_look(changes)

    async def _try(self, holder: str, asking: Callable[[], None]) -> ControllerLease | None:
        state, has_session = await self._look()
        self._has_looked, self._trouble = True, None
        may_return = await self._may_return(state)
        now = self._clock.monotonic()
        why = self._vigil.is_over(state, has_session=has_session, now=now, may_return=may_return)
        if why is None:
            self._wait_for(state, lives=self._vigil.has_heard)
            return None
        try:
            if self._is_older:
                await self._repository.initialize()
            return await self._succeed(state, why, holder, asking, is_overdue=self._vigil.is_silent(now))
        except (
            DatabaseBusy
        ) as error:  # a leader that was stopped inside a transaction holds its row: no sign of life
            self._vigil.asked(self._clock.monotonic())
            self._tell(error)
            return None

    async def _may_return(self, state: ControllerState | None) -> bool:
        """Tell whether it was stopped and left jobs behind that go on if it is started again, and end with us."""
        if state is None or not state.is_released or state.runs_on in (None, self._runs_on):
            return False
        return self._is_older or bool(await self._repository.open_attempts())

    async def _look(self) -> tuple[ControllerState | None, bool]:
        """Return what is known of the leader, and whether it has a session."""
        await self._presence.stand_by()
        try:
            state, self._is_older = await self._repository.controller_state(), False
        except SchemaMissing:
            state, self._is_older = await self._presence.former_leader(), True
        return state, state is not None and await self._presence.is_led(state.epoch)

    async def _succeed(
        self,
        seen: ControllerState | None,
        why: str,
        holder: str,
        asking: Callable[[], None],
        *,
        is_overdue: bool,
    ) -> ControllerLease | None:
        """Overdue is a row that another heir, who is seen as the leader, should have written long ago: it may hang."""
        lease = None
        try:
            # First, or the next one that waits would see a leader without a session.
            is_seen = await self._presence.lead(seen.epoch + 1 if seen else 1)
            if is_seen or is_overdue:
                asking()
                now = self._clock.now()
                lease = await self._repository.succeed(
                    seen, holder, now, runs_on=self._runs_on, runs_jobs=self._runs_jobs
                )
            if lease and not is_seen:
                await self._presence.lead_after(lease.epoch)
        finally:
            if lease is None:
                await self._presence.close()
        if lease and seen:
            log.info("taking over", holder=seen.holder, epoch=lease.epoch, why=why)
        return lease

    def _wait_for(self, state: ControllerState | None, *, lives: bool) -> None:
        """Raises RunnerElsewhere, but only about one that was heard of: the word of a dead one would keep all out for
        ever, and so would the session of one that was stopped."""
        assert state is not None  # else nobody is waited for
        lives = lives and not state.is_released
        if lives and state.runs_on and self._runs_on and state.runs_on != self._runs_on:
            raise RunnerElsewhere(
                f"The controller {state.holder} runs jobs on another engine, whose containers this one could not "
                "take over: start it with --no-local-runner, or stop that one first."
            )
        if self._waits_for != state.epoch:
            self._waits_for = state.epoch
            log.info("waiting: another controller leads", leader=state.holder, epoch=state.epoch)

    def _bear(self, error: CIError) -> None:
        """The error passes, or it is raised: at first the operator is told, later a database may be away."""
        if isinstance(error, _FINAL) or not (self._has_looked or isinstance(error, _PASSING)):
            raise error
        self._vigil.forget()
        self._tell(error)

    def _tell(self, error: CIError) -> None:
        if self._trouble != error.detail:
            self._trouble = error.detail
            log.warning("cannot look for the leader", code=error.code, error=error.detail)


async def _next_look(changes: Subscription) -> None:
    """Something was written, or a while has passed; in no case too soon."""
    await asyncio.sleep(_QUIET)
    await changes.wait(LOOK_EVERY)
