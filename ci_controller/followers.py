"""The pumps of the attempts that run here: started, asked what they saw, drained and sealed at the end.

Pumps work in threads of their own; everything here happens on the loop's thread, but for file access.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from ci_common.clock import Clock
from ci_common.crash_points import crash_point
from ci_common.errors import CIError
from ci_common.models import Attempt, LogSeal
from ci_common.stores import LogWriter
from ci_controller.container_runtime import ContainerRuntime, ExitState
from ci_controller.job_source import JobSource
from ci_controller.log_pump import LogPump, PumpEvent, PumpEventKind, PumpResult, drained, read_result
from ci_controller.operations import AttemptKey, key_of, log_fields
from ci_controller.policy import Policy
from ci_controller.verdict import proves_success

log = structlog.get_logger(__name__)

_READINGS: Final = 5  # of a finished container's output; more would not make it settle down


@dataclass(slots=True)
class _Follower:
    """One attempt's pump and the log it writes."""

    attempt: Attempt
    container_id: str
    writer: LogWriter
    pump: LogPump = field(init=False)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    spoke: asyncio.Event = field(
        default_factory=asyncio.Event
    )  # said that it is prepared, or will say nothing more
    prepared: bool = False
    over_limit: bool = False
    installed: bool = False
    begun: asyncio.Task[bool] | None = None  # records it in the attempt's row, if it can
    proof: PumpResult | None = None  # its last word is a success, and its log is whole

    @property
    def is_cut_off(self) -> bool:
        """Tell whether the pump ended before the container's last word."""
        return self.ended.is_set() and not (self.pump.result and self.pump.result.trailer)


class Followers:
    """At most one pump per attempt."""

    def __init__(
        self,
        jobs: JobSource,
        runtime: ContainerRuntime,
        clock: Clock,
        policy: Policy,
        wake: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._runtime = runtime
        self._clock = clock
        self._log_limit = policy.log_limit
        self._wake = wake
        self._patience = policy.output_patience.total_seconds()
        self._followers: dict[AttemptKey, _Follower] = {}

    def containers(self) -> frozenset[str]:
        """Return the containers whose output is being read, or was read to its last word."""
        return frozenset(one.container_id for one in self._followers.values() if not one.is_cut_off)

    def finished(self) -> frozenset[str]:
        """Return the containers whose output was read to its last word: to its end, unless that word is a success."""
        return frozenset(
            one.container_id
            for one in self._followers.values()
            if one.proof or (one.ended.is_set() and not one.is_cut_off)
        )

    def proof(self, attempt: Attempt) -> PumpResult | None:
        """Return what was read of an attempt whose last word is a success, whether or not its container has ended."""
        one = self._followers.get(key_of(attempt))
        return one.proof if one else None

    def installed(self) -> frozenset[str]:
        """Return the containers that said they have installed everything and wait to be taken off the network."""
        return frozenset(one.container_id for one in self._followers.values() if one.installed)

    async def prepared(self, attempt: Attempt) -> bool:
        """Return whether the container said that its environment stands; False: its output ended before, or is not
        read to its end. Only of an attempt that is followed."""
        one = self._followers[key_of(attempt)]
        await one.spoke.wait()
        return one.prepared and not one.ended.is_set()

    def over_limit(self) -> frozenset[AttemptKey]:
        """Return the attempts that wrote more than they may."""
        return frozenset(key for key, one in self._followers.items() if one.over_limit)

    async def follow(self, attempt: Attempt, container_id: str) -> None:
        """A pump reads the container's output; one that had ended is replaced, and reads from the start."""
        await self._drop(attempt)
        writer = await asyncio.to_thread(self._jobs.log_writer, attempt.fence)
        one = _Follower(attempt, container_id, writer)
        loop = asyncio.get_running_loop()

        def hand_over(event: PumpEvent) -> None:
            """From the pump's thread to the loop's; a pump is closed before its loop is."""
            loop.call_soon_threadsafe(self._heard, one, event)

        try:
            one.pump = LogPump(
                self._runtime,
                writer,
                container_id,
                log_limit=self._log_limit,
                on_event=hand_over,
                fields=log_fields(attempt),
            )
        except BaseException:
            writer.close()
            raise
        self._followers[key_of(attempt)] = one
        one.pump.start()

    async def drain(self, attempt: Attempt, container_id: str, exit_state: ExitState) -> PumpResult:
        """The log holds everything that a container that has exited ever wrote; returns what was found."""
        result = await self._end_of_pump(attempt)
        previous = None
        for _ in range(_READINGS):
            if result and drained(result, exit_state, previous):
                break
            previous, result = result, await self._read_again(attempt, container_id)
        assert result is not None, "at least one reading was made"
        if result.begun and attempt.begun_at is None:
            await self._record_begun(attempt)
        return result

    async def seal(self, attempt: Attempt, *, truncated: bool) -> LogSeal:
        """The log is on disk for good, and nobody writes to it any more."""
        await self._drop(attempt)
        return await asyncio.to_thread(self._seal, attempt, truncated)

    async def seal_at_its_word(self, attempt: Attempt) -> LogSeal:
        """As `seal`, of an attempt with a proof, whose container is about to end: that is waited for by `see_end`."""
        one = self._followers[key_of(attempt)]
        if one.begun and not await one.begun:
            await self._record_begun(attempt)
        return await asyncio.to_thread(self._seal, attempt, False)

    async def see_end(self, attempt: Attempt) -> None:
        """The container's output has ended, or does not for long; nobody follows it any more."""
        try:
            await self._ends(self._followers[key_of(attempt)])
        finally:
            await self._drop(attempt)

    async def leave(self, container_id: str) -> None:
        """Nobody follows that container, which is gone: whose end was recorded without us hearing so still was."""
        for one in [one for one in self._followers.values() if one.container_id == container_id]:
            await self._drop(one.attempt)

    async def close(self) -> None:
        """Every pump has ended and every file is closed; the logs are left as they are."""
        await asyncio.gather(*(self._drop(one.attempt) for one in tuple(self._followers.values())))

    # -- inside --------------------------------------------------------------------------------------------

    async def _drop(self, attempt: Attempt) -> None:
        one = self._followers.pop(key_of(attempt), None)
        if one is None:
            return
        try:
            await asyncio.to_thread(one.pump.close)
            if one.begun:
                await one.begun
        finally:
            await asyncio.to_thread(one.writer.close)

    async def _end_of_pump(self, attempt: Attempt) -> PumpResult | None:
        """Return what the pump found once it ended by itself, None where there was none or it was kept from it."""
        one = self._followers.get(key_of(attempt))
        if one is None or not await self._ends(one):
            return None
        return None if one.pump.error else one.pump.result

    async def _ends(self, one: _Follower) -> bool:
        """Return whether the pump comes to an end; an engine can leave the stream of an exited container open."""
        seen = -1
        while not one.ended.is_set():
            if seen == one.pump.chunks:
                log.warning("the engine does not end its stream", **log_fields(one.attempt))
                return False
            seen = one.pump.chunks
            with suppress(TimeoutError):
                await asyncio.wait_for(one.ended.wait(), self._patience)
        return True

    async def _read_again(self, attempt: Attempt, container_id: str) -> PumpResult:
        await self._drop(attempt)
        return await asyncio.to_thread(self._read, attempt, container_id)

    def _read(self, attempt: Attempt, container_id: str) -> PumpResult:
        writer = self._jobs.log_writer(attempt.fence)
        try:
            return read_result(self._runtime, writer, container_id, self._log_limit)
        finally:
            writer.close()

    def _seal(self, attempt: Attempt, truncated: bool) -> LogSeal:
        writer = self._jobs.log_writer(attempt.fence)
        try:
            return writer.seal(truncated=truncated)
        finally:
            writer.close()

    def _heard(self, one: _Follower, event: PumpEvent) -> None:
        match event.kind:
            case PumpEventKind.BEGUN:
                if one.attempt.begun_at is None:
                    one.begun = asyncio.create_task(self._note_begun(one.attempt))
            case PumpEventKind.PREPARED:
                one.prepared = True
                one.spoke.set()
            case PumpEventKind.INSTALLED:
                one.installed = True
                self._wake()
            case PumpEventKind.OVER_LIMIT:
                one.over_limit = True
                self._wake()
            case PumpEventKind.LAST_WORD:
                if proves_success(event.result.trailer):
                    one.proof = event.result
                    self._wake()
            case PumpEventKind.ENDED:
                one.ended.set()
                one.spoke.set()
                self._wake()  # to settle it, or to follow it anew where it was cut off

    async def _note_begun(self, attempt: Attempt) -> bool:
        try:
            await self._record_begun(attempt)
        except CIError as error:  # tried again when the output is drained, or sealed
            log.warning("begun not recorded", **log_fields(attempt), error=str(error))
            return False
        return True

    async def _record_begun(self, attempt: Attempt) -> None:
        if await self._jobs.begun(attempt.fence, self._clock.now()):
            crash_point("after_mark_begun")
