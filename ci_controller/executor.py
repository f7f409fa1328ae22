"""Carries out operations: one short idempotent method each, no decisions about what should be.

Between any two durable effects the process may die; what it leaves behind is read by the next plan. The
order is: claim, create, start, record whose it is, rename, feed; later drain, seal, record the verdict, remove.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import structlog

from ci_common import verdict as verdicts
from ci_common.clock import Clock
from ci_common.crash_points import crash_point
from ci_common.errors import CIError, EngineUnavailable, InvalidArchive, StorageFull
from ci_common.job_terms import JobVerdict, Reason
from ci_common.missing_uploads import missing_as_unreadable
from ci_common.models import Attempt, LogSeal
from ci_controller import labels
from ci_controller.breaker import Breaker
from ci_controller.container_runtime import ContainerError, ContainerGone, ContainerRuntime
from ci_controller.disk_guard import explained
from ci_controller.environments import Built, Choice, Environments, Kept, Plain
from ci_controller.followers import Followers
from ci_controller.image_retention import ExpendableImage
from ci_controller.job_source import JobSource
from ci_controller.lease import Lease, Superseded
from ci_controller.log_recorder import PumpResult
from ci_controller.notes import Notes
from ci_controller.observed_state import Work
from ci_controller.operations import (
    AdoptContainer,
    Claim,
    FinishAttempt,
    IsolateContainer,
    Operation,
    ReleaseAttempt,
    RemoveContainer,
    SettleAttempt,
    StartContainer,
    StopContainer,
    fields_of,
    key_of,
    log_fields,
)
from ci_controller.policy import Policy
from ci_controller.upload import Upload
from ci_controller.verdict import Lost, decide, without_network
from ci_controller.waiting import WaitingContainer, WaitingContainers
from ci_controller.waiting_pool import WaitingPool
from ci_controller.work import KeyedOperation, Workshop

log = structlog.get_logger(__name__)


class _FenceBroken(ContainerError):
    """Nothing may start before the fence around the jobs' network was found whole; the attempt stays claimed."""


class Executor:
    """Knows how; the planner knows what.

    `changed` is called when something was done to the engine, `wake` when there is only more to do, and `doubt` when
    somebody else seems to act in our place.
    """

    def __init__(
        self,
        jobs: JobSource,
        runtime: ContainerRuntime,
        policy: Policy,
        clock: Clock,
        lease: Lease,
        *,
        changed: Callable[[], None],
        wake: Callable[[], None],
        doubt: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._runtime = runtime
        self._policy = policy
        self._clock = clock
        self._lease = lease
        self._wake = wake
        self._workshop = Workshop(clock, changed, doubt)
        self._followers = Followers(jobs, runtime, clock, policy, wake)
        self.waiting = WaitingPool(WaitingContainers(jobs, runtime, policy, lease), policy, clock, changed)
        self._environments = Environments(
            jobs, runtime, policy.environments, policy.runner_image, clock, lease, wake
        )
        self._breaker = Breaker(clock)
        self._notes = Notes(clock)

    @property
    def ended(self) -> int:
        """How many operations have ended so far."""
        return self._workshop.ended

    def work(self, since: int) -> Work:
        """Return what is going on in this process, for the next plan to leave alone, and what ended since only so many
        operations had: the plan's look at the engine does not know of it."""
        return Work(
            busy=self._workshop.busy(since),
            followed=self._followers.containers(),
            finished=self._followers.finished(),
            awaits_isolation=self._notes.not_isolated(self._followers.installed()),
            signals=self._notes.signals(),
            running_for=self._notes.stopwatches.readings(),
            over_limit=self._followers.over_limit(),
            trouble=self._breaker.trouble,
            irremovable=self._workshop.refused(),
            awaits_environment=self._environments.waiting(),
            awaited_environment=self._environments.waited(),
        )

    def ours(self) -> frozenset[str]:
        """Return the names of containers that no row has and that nobody may remove: they are being made, or wait."""
        return self.waiting.names()

    def keep_to(self, attempts: Collection[Attempt]) -> None:
        """Nothing is remembered of attempts but of these, which are all that are open; none is claimed meanwhile."""
        self._notes.keep_to(attempts)
        self._environments.keep_to(attempts)

    async def execute(self, operations: Iterable[Operation]) -> None:
        """Claims are done; everything else has begun, each in a task of its own, even if this raises."""
        claims: list[Claim] = []
        for operation in operations:
            log.info("operation", operation=str(operation), **fields_of(operation))
            if isinstance(operation, Claim):
                claims.append(operation)
            else:
                self._workshop.begin(operation, self._carry_out(operation))
        for claim in claims:
            await self._claim(claim)

    def engine_is_away(self) -> None:
        """The engine as a whole does not answer: what it said about single containers counts no more, and whoever
        waited may have lost its input."""
        self._breaker.reset()
        self.waiting.forget()

    @property
    def next_retry(self) -> float | None:
        """Seconds until something that failed may be tried again, None when nothing waits."""
        waits = (self._workshop.next_retry, self._breaker.next_retry)
        return min((wait for wait in waits if wait is not None), default=None)

    async def prune_images(self, *, under_pressure: bool = False) -> list[ExpendableImage]:
        """The environments that are not to be kept are gone; returns their images."""
        self._lease.require()
        return await self._environments.prune(under_pressure=under_pressure)

    async def idle(self, seconds: float | None = None) -> bool:
        """Return True once no operation is in flight, False if that takes longer."""
        return await self._workshop.idle(seconds)

    async def close(self, grace: float) -> None:
        """No task and no pump of ours is left; containers run on, but for those that only waited."""
        await asyncio.gather(self._workshop.close(grace), self.waiting.close(grace))
        await self._followers.close()

    async def _carry_out(self, operation: KeyedOperation) -> None:
        match operation:
            case StartContainer():
                await self._start(operation)
            case AdoptContainer():
                await self._adopt(operation)
            case IsolateContainer():
                await self._isolate(operation)
            case StopContainer():
                await self._stop(operation)
            case SettleAttempt():
                await self._settle(operation)
            case FinishAttempt():
                await self._finish_without_container(operation)
            case ReleaseAttempt():
                await self._release_without_container(operation)
            case RemoveContainer():
                await self._remove(operation)

    async def _claim(self, operation: Claim) -> None:
        self._lease.require()
        claimed = await self._jobs.claim(operation.slots, self._clock.now())
        crash_point("after_claim")
        for attempt in claimed:
            log.info("claimed", **log_fields(attempt))
        if claimed:
            self._wake()

    # -- start ---------------------------------------------------------------------------------------------

    async def _start(self, operation: StartContainer) -> None:
        """Whatever keeps an attempt from its start ends it: no open attempt holds a slot without a container.

        But for one that waits for an environment that another one builds, which holds no slot.
        """
        attempt, recorded = operation.attempt, False
        async with AsyncExitStack() as held:
            held.callback(self._environments.done, attempt)
            # Beside what follows: a plan may stand on a look that is two seconds old.
            fence = asyncio.ensure_future(self._runtime.guard_network())
            held.push_async_callback(asyncio.gather, fence, return_exceptions=True)
            try:
                with missing_as_unreadable():
                    upload = await held.enter_async_context(self._opened(attempt))
                    found = await self._container_for(operation, upload, held)
                if found is None:
                    return
                choice, container = found
                if not (network := await fence).holds:
                    raise _FenceBroken(network.trouble or f"set again: {', '.join(network.broken)}")
                await self._record_start(attempt, container, choice)
                recorded = True
                await self._rename(attempt, container)
            except InvalidArchive as error:
                await self._finish(attempt, verdicts.verdict(Reason.BAD_ARCHIVE, error.detail), None)
            except Exception as error:
                if not (message := _why_not_started(attempt, error)):
                    raise
                if isinstance(error, EngineUnavailable):
                    self._breaker.failed(error.detail)
                seal = await self._sealed(attempt) if recorded else None
                await self._release(attempt, Reason.INFRA, message, seal)
            else:
                await self._feed(attempt, container, upload, choice)

    @asynccontextmanager
    async def _opened(self, attempt: Attempt) -> AsyncGenerator[Upload]:
        upload = await asyncio.to_thread(Upload.open, self._jobs, attempt, self._policy)
        try:
            yield upload
        finally:
            await asyncio.to_thread(upload.close)

    async def _container_for(
        self, operation: StartContainer, upload: Upload, held: AsyncExitStack
    ) -> tuple[Choice, WaitingContainer] | None:
        """Return a container, and what its image is; None: it is to wait for its environment.

        An image that somebody removed since it was chosen is chosen no second time.
        """
        while (choice := await self._chosen(operation, upload)) is not None:
            try:
                handed_out = self.waiting.handed_out(choice.image_id, operation.attempt.job.user_id)
                return choice, await held.enter_async_context(handed_out)
            except ContainerError:
                if not choice.cached or await self._runtime.image_id(choice.image_id) is not None:
                    raise
                log.info("environment vanished", **log_fields(operation.attempt), image=choice.image_id)
        return None

    async def _chosen(self, operation: StartContainer, upload: Upload) -> Choice | None:
        runner = operation.image_id
        if self._policy.environments.are_off:
            return Plain(runner)
        environment = await asyncio.to_thread(upload.environment, runner)
        return await self._environments.choose(operation.attempt, environment, runner)

    async def _record_start(self, attempt: Attempt, container: WaitingContainer, choice: Choice) -> None:
        """The row says whose container it is, so that a claimed attempt has run nothing of the user's."""
        self._breaker.reset()
        image_id, cached = container.image_id, choice.cached
        if not await self._jobs.started(attempt.fence, container.id, image_id, cached, self._clock.now()):
            raise Superseded("the attempt is not ours any more")
        self._notes.stopwatches.start(key_of(attempt))
        crash_point("after_mark_started")

    async def _rename(self, attempt: Attempt, container: WaitingContainer) -> None:
        """The container is called after its job, so what is called otherwise was never fed."""
        self._lease.require()
        name = labels.job_name(self._policy.container_prefix, *key_of(attempt))
        await self._runtime.rename(container.id, name)
        crash_point("after_rename")

    async def _feed(
        self, attempt: Attempt, container: WaitingContainer, upload: Upload, choice: Choice
    ) -> None:
        """The container has got everything, or its input ends early; the next plan sees what became of it."""
        await self._followers.follow(attempt, container.id)
        try:
            with missing_as_unreadable():
                await self._send(attempt, container, upload, choice)
            await container.input.finish()
        except InvalidArchive as error:
            await self._record_stop(attempt, Reason.BAD_ARCHIVE, error.detail)
        else:
            crash_point("after_feed")

    async def _send(
        self, attempt: Attempt, container: WaitingContainer, upload: Upload, choice: Choice
    ) -> None:
        match choice:
            case Plain():
                await container.input.send(upload.whole())
            case Kept(environment=environment, built_at=built_at):
                await container.input.send(upload.with_kept(environment, built_at))
            case Built(environment=environment):
                await container.input.send(upload.build(environment))
                await self._keep(attempt, container, choice)
                await container.input.send(upload.tree())

    async def _keep(self, attempt: Attempt, container: WaitingContainer, built: Built) -> None:
        """The environment was kept if it came to be, before anything of the tree gets into the container."""
        if await self._followers.prepared(attempt):
            crash_point("after_prepared")
            with self._notes.stopwatches.stopped(key_of(attempt)):  # standing still is not the job's time
                kept = await self._environments.keep(attempt, built, container.id)
            if kept:
                self.waiting.expect(kept, attempt.job.user_id)
        self._environments.done(attempt)

    async def _adopt(self, operation: AdoptContainer) -> None:
        attempt = operation.attempt
        if attempt.started_at is not None:
            self._notes.stopwatches.start(key_of(attempt), self._clock.now() - attempt.started_at)
        await self._followers.follow(attempt, operation.container_id)

    async def _isolate(self, operation: IsolateContainer) -> None:
        self._lease.require()
        await self._runtime.isolate(operation.container_id)
        self._notes.isolated(operation.container_id)

    # -- stop ----------------------------------------------------------------------------------------------

    async def _stop(self, operation: StopContainer) -> None:
        await self._record_stop(operation.attempt, operation.reason, operation.message)
        self._lease.require()
        await self._runtime.signal(operation.container_id, operation.signal)
        self._notes.signalled(operation.attempt, operation.signal)
        crash_point("after_stop_signal")

    async def _record_stop(self, attempt: Attempt, reason: Reason, message: str | None) -> None:
        if await self._jobs.record_stop(attempt.fence, reason, message, self._clock.now()) is None:
            raise Superseded("the attempt is not ours any more")
        crash_point("after_record_stop")

    # -- the end -------------------------------------------------------------------------------------------

    async def _settle(self, operation: SettleAttempt) -> None:
        proof = None if operation.attempt.stop else self._followers.proof(operation.attempt)
        if proof:
            await self._believe(operation, proof)
        else:
            await self._settle_its_end(operation)

    async def _believe(self, operation: SettleAttempt, proof: PumpResult) -> None:
        """The success stands before the engine knows of the end, which takes it longer than many a test."""
        attempt = operation.attempt
        try:
            seal = await self._followers.seal_at_its_word(attempt)
        except (StorageFull, OSError) as error:
            await self._bear_without_log(attempt, error)
            return
        crash_point("after_seal")
        assert proof.trailer is not None, "no proof without it"
        await self._finish(attempt, verdicts.verdict(None, proof.trailer.message, 0), seal)
        await self._compare_exit(operation)

    async def _compare_exit(self, operation: SettleAttempt) -> None:
        """What the engine says of the end of a success was compared; nothing but the machine can make it another."""
        await self._followers.see_end(operation.attempt)
        exit_state = await self._runtime.exit_state(operation.container_id)
        crash_point("after_exit")
        if exit_state is None or exit_state.exit_code:
            log.error("a success did not end with 0", **log_fields(operation.attempt), exit_state=exit_state)

    async def _settle_its_end(self, operation: SettleAttempt) -> None:
        attempt = operation.attempt
        exit_state = await self._runtime.exit_state(operation.container_id)
        if exit_state is None:
            return  # it is about to end
        crash_point("after_exit")
        try:
            output = await self._followers.drain(attempt, operation.container_id, exit_state)
            seal = await self._followers.seal(attempt, truncated=output.may_lack_output)
        except (StorageFull, OSError) as error:
            await self._bear_without_log(attempt, error)
            return
        crash_point("after_seal")
        outcome = decide(output.trailer, exit_state, attempt.stop, begun=output.begun)
        if exit_state.off_network and not (output.installed or attempt.stop):
            outcome = without_network(outcome)
        if isinstance(outcome, Lost):
            await self._release(attempt, outcome.reason, outcome.message, seal)
        else:
            await self._finish(attempt, await self._explained(operation, outcome), seal)

    async def _bear_without_log(self, attempt: Attempt, error: Exception) -> None:
        """The log cannot be written. The container keeps it for a while, so that room which comes soon costs nothing;
        then nothing is sealed: what the log should have said is not known, so nobody is blamed."""
        if self._notes.unwritable_for(attempt) < self._policy.log_patience:
            raise error
        log.warning("log given up", **log_fields(attempt), error=str(error))
        if attempt.stop:
            await self._finish(attempt, verdicts.verdict(attempt.stop.reason, attempt.stop.message), None)
        else:
            await self._release(attempt, Reason.INFRA, _why_not_kept(error), None)

    async def _explained(self, operation: SettleAttempt, outcome: JobVerdict) -> JobVerdict:
        """Of a job that failed: the disk limit is the reason where it was passed, polled or not, or both: its tests may
        have failed of it a moment before the stop for it."""
        stop = operation.attempt.stop
        if outcome.success or (stop and stop.reason is not Reason.DISK_LIMIT):
            return outcome
        size = await self._runtime.layer_size(operation.container_id)
        return explained(outcome, size, self._policy.disk_bytes)

    async def _finish_without_container(self, operation: FinishAttempt) -> None:
        seal = await self._seal_if_started(operation.attempt)
        verdict = verdicts.verdict(operation.reason, operation.message)
        await self._finish(operation.attempt, verdict, seal)

    async def _release_without_container(self, operation: ReleaseAttempt) -> None:
        seal = await self._seal_if_started(operation.attempt)
        await self._release(operation.attempt, Reason.INFRA, operation.message, seal)

    async def _seal_if_started(self, attempt: Attempt) -> LogSeal | None:
        return await self._sealed(attempt) if attempt.started_at else None

    async def _sealed(self, attempt: Attempt) -> LogSeal | None:
        """The log is sealed as it is, and nobody knows whether it is whole; None where the disk does not take it."""
        try:
            return await self._followers.seal(attempt, truncated=True)
        except (StorageFull, OSError) as error:
            log.warning("log not sealed", **log_fields(attempt), error=str(error))
            return None

    async def _finish(self, attempt: Attempt, verdict: JobVerdict, seal: LogSeal | None) -> None:
        if not await self._jobs.finish(attempt.fence, verdict, seal, self._clock.now()):
            raise Superseded("the attempt is not ours any more")
        log.info("finished", **log_fields(attempt), status=verdict.status, reason=verdict.reason)
        crash_point("after_finish")

    async def _release(self, attempt: Attempt, reason: Reason, message: str, seal: LogSeal | None) -> None:
        now = self._clock.now()
        wait = self._policy.backoff_after(attempt.fence.attempt)
        not_before = now + wait if wait > timedelta(0) else None
        status = await self._jobs.release(attempt.fence, reason, message, seal, not_before, now)
        if status is None:
            raise Superseded("the attempt is not ours any more")
        log.warning("released", **log_fields(attempt), status=status, reason=reason, message=message)
        crash_point("after_finish")

    async def _remove(self, operation: RemoveContainer) -> None:
        self._lease.require()
        crash_point("before_remove")
        await self._runtime.remove(operation.container_id)
        await self._followers.leave(operation.container_id)
        crash_point("after_remove")


def _why_not_kept(error: Exception) -> str:
    """Return what its owner is told of a log that could not be written; no path of ours."""
    if isinstance(error, StorageFull):
        return "The disk of the logs is full: its output could not be kept."
    what = error.strerror if isinstance(error, OSError) else None
    return f"Its output could not be kept: {what or type(error).__name__}."


def _why_not_started(attempt: Attempt, error: Exception) -> str | None:
    """Return what its owner is told, None where the database failed, or the fence: that is tried again as it is."""
    match error:
        case _FenceBroken():
            return None
        case EngineUnavailable():
            return error.detail
        case ContainerError() | ContainerGone():
            return f"Its container could not be started: {error}"
        case Superseded() | CIError():
            return None
        case OSError():
            log.warning("upload unreadable", **log_fields(attempt), error=str(error))
            return f"Its upload could not be read: {error.strerror or type(error).__name__}."
        case _:
            log.exception("start failed: a programming error", **log_fields(attempt))
            return f"The controller failed to start it ({type(error).__name__}); its own log says why."
