"""The invariants can fail: each is told of a bug of its own, planted in front of the repository or the engine."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from ci_common.errors import JobFinished
from ci_common.job_terms import JobVerdict, Reason
from ci_common.models import Fence, Idempotency, Job, JobFilter, LogSeal, QueueLimits
from ci_common.verdict import verdict
from ci_controller.container_runtime import ContainerInput, start_and_feed
from ci_persistence.sqlite_connection import connect
from tests.simulation import invariants
from tests.simulation.behaviour import Kind
from tests.simulation.invariants import check_all
from tests.simulation.world import World, simulated
from tests.support.controlled import NO_ENVIRONMENTS


class Planted:
    """Stands in front of something; calls of some names go to a bug instead, which gets the real thing first."""

    def __init__(self, real: Any, **bugs: Callable[..., Any]) -> None:
        self._real = real
        self._bugs = bugs

    def __getattr__(self, name: str) -> Any:
        bug = self._bugs.get(name)
        return partial(bug, self._real) if bug else getattr(self._real, name)


@dataclass
class Plot:
    """A world in which somebody plants a bug; what they leave open is closed with it."""

    world: World
    left_open: ExitStack = field(default_factory=ExitStack)

    def repository(self, **bugs: Callable[..., Any]) -> None:
        self.world.system.repository = _as_any(Planted(self.world.system.repository, **bugs))

    def engine(self, **bugs: Callable[..., Any]) -> None:
        self.world.system.runtime = _as_any(Planted(self.world.engine, **bugs))

    def write(self, statement: str, *values: object) -> None:
        with closing(connect(self.world.database, busy_timeout_ms=1000)) as db:
            db.execute(statement, values)


def _as_any(planted: Planted) -> Any:
    return planted


@pytest.fixture
async def plot(home: Path) -> AsyncIterator[Plot]:
    with capture_logs(), ExitStack() as left_open:
        async with simulated(1, home) as world:
            world.faults.on = False
            # None waits for what another one builds: what is claimed runs, and one too many is seen at once.
            world.system.policy = replace(world.system.policy, environments=NO_ENVIRONMENTS)
            yield Plot(world, left_open)
            left_open.close()


async def a_short_life(world: World) -> None:
    """A few jobs run on a healthy engine, under one controller."""
    await world.do("start_controller")
    await check_all(world)
    for _ in range(5):
        await world.submit(Kind.PASSES)
        await check_all(world)
    for _ in range(6):
        for action in ("beat", "make_pass", "advance", "advance"):
            await world.do(action)
            await check_all(world)


# -- the bugs ----------------------------------------------------------------------------------------------


def acknowledges_without_writing(plot: Plot) -> None:
    async def create_job(real: Any, job: Job, *rest: object) -> Job:
        return job

    plot.repository(create_job=create_job)


def makes_two_of_one(plot: Plot) -> None:
    async def create_job(real: Any, job: Job, key: Idempotency, limits: QueueLimits) -> Job:
        await real.create_job(replace(job, id=f"{job.id}-twin"))
        return await real.create_job(job, key, limits)

    plot.repository(create_job=create_job)


def finishes_without_a_fence(plot: Plot) -> None:
    """What a predecessor says of each job, one pass after its end, is written by the job's id alone."""
    ended: list[str] = []

    async def finish_attempt(real: Any, fence: Fence, *rest: object) -> bool:
        done = await real.finish_attempt(fence, *rest)
        ended.append(fence.job_id)
        return done

    async def open_attempts(real: Any) -> Any:
        for job_id in ended:
            plot.write("UPDATE jobs SET exit_code = 7 WHERE id = ?", job_id)
        return await real.open_attempts()

    plot.repository(finish_attempt=finish_attempt, open_attempts=open_attempts)


def says_that_tests_failed(plot: Plot) -> None:
    async def finish_attempt(real: Any, fence: Fence, word: JobVerdict, *rest: object) -> bool:
        return await real.finish_attempt(fence, verdict(Reason.TESTS_FAILED), *rest)

    plot.repository(finish_attempt=finish_attempt)


def claims_twice(plot: Plot) -> None:
    async def claim_jobs(real: Any, *rest: object) -> Any:
        claimed = await real.claim_jobs(*rest)
        plot.write("DROP INDEX IF EXISTS attempts_open")
        plot.write(
            "INSERT OR IGNORE INTO attempts (job_id, number, holder, token, claimed_at)"
            " SELECT job_id, number + 7, holder, 'twin', claimed_at FROM attempts WHERE number < 7"
        )
        return claimed

    plot.repository(claim_jobs=claim_jobs)


@dataclass
class FeedsATwin:
    """A container's input; whoever fills it fills that of a second container of the same attempt."""

    engine: Any
    container_id: str
    held: ContainerInput
    fed: tuple[bytes, ...] = ()

    async def send(self, chunks: Iterable[bytes]) -> None:
        self.fed += tuple(chunks)
        await self.held.send(self.fed)

    async def finish(self) -> None:
        await self.held.finish()
        spec = next(one.spec for one in self.engine.containers.values() if one.id == self.container_id)
        job, _, number = spec.name.rpartition("-")
        twin = await self.engine.create(replace(spec, name=f"{job}-0{number}"))
        await start_and_feed(self.engine, twin, self.fed)

    def close(self) -> None:
        self.held.close()


def starts_a_second_container(plot: Plot) -> None:
    async def start(real: Any, container_id: str) -> ContainerInput:
        return FeedsATwin(real, container_id, await real.start(container_id))

    plot.engine(start=start)


@dataclass
class FeedsTwice:
    """A container's input; whatever is sent is sent twice, as for two attempts."""

    held: ContainerInput

    async def send(self, chunks: Iterable[bytes]) -> None:
        sent = tuple(chunks)
        await self.held.send(sent + sent)

    async def finish(self) -> None:
        await self.held.finish()

    def close(self) -> None:
        self.held.close()


def feeds_a_container_for_two_attempts(plot: Plot) -> None:
    async def start(real: Any, container_id: str) -> ContainerInput:
        return FeedsTwice(await real.start(container_id))

    plot.engine(start=start)


def removes_before_the_verdict(plot: Plot) -> None:
    async def finish_attempt(real: Any, fence: Fence, word: JobVerdict, log: LogSeal, now: object) -> bool:
        for name, container in list(plot.world.engine.containers.items()):
            if fence.job_id in name:
                await plot.world.engine.remove(container.id)
        return await real.finish_attempt(fence, word, log, now)

    plot.repository(finish_attempt=finish_attempt)


def forgets_the_seal(plot: Plot) -> None:
    async def finish_attempt(real: Any, fence: Fence, word: JobVerdict, log: LogSeal, now: object) -> bool:
        return await real.finish_attempt(fence, word, None, now)

    plot.repository(finish_attempt=finish_attempt)


def seals_another_log(plot: Plot) -> None:
    async def finish_attempt(real: Any, fence: Fence, word: JobVerdict, log: LogSeal, now: object) -> bool:
        return await real.finish_attempt(fence, word, replace(log, sha256="0" * 64), now)

    plot.repository(finish_attempt=finish_attempt)


def claims_more_than_asked(plot: Plot) -> None:
    async def claim_jobs(real: Any, lease: object, limit: int, now: object) -> Any:
        return await real.claim_jobs(lease, limit + 5, now)

    plot.repository(claim_jobs=claim_jobs)


def admits_everybody(plot: Plot, limits: QueueLimits) -> None:
    async def create_job(real: Any, job: Job, key: Idempotency, limits: QueueLimits) -> Job:
        return await real.create_job(job, key)

    plot.world.limits = limits
    plot.repository(create_job=create_job)


def shows_jobs_to_anybody(plot: Plot) -> None:
    async def get_job(real: Any, job_id: str, user_id: str | None = None) -> Job | None:
        return await real.get_job(job_id)

    plot.repository(get_job=get_job)


def lists_jobs_to_anybody(plot: Plot) -> None:
    async def list_jobs(real: Any, job_filter: JobFilter) -> Any:
        return await real.list_jobs(replace(job_filter, user_id=None))

    plot.repository(list_jobs=list_jobs)


def cancels_for_anybody(plot: Plot) -> None:
    async def request_cancel(real: Any, job_id: str, user_id: str, *rest: object) -> Job:
        return await real.request_cancel(job_id, None, *rest)

    plot.repository(request_cancel=request_cancel)


def tells_anybody_that_it_ended(plot: Plot) -> None:
    async def request_cancel(real: Any, *rest: object) -> Job:
        raise JobFinished("The job has ended.")

    plot.repository(request_cancel=request_cancel)


def leaves_a_transaction_open(plot: Plot) -> None:
    async def create_job(real: Any, *rest: object) -> Job:
        created = await real.create_job(*rest)
        db = plot.left_open.enter_context(closing(connect(plot.world.database, busy_timeout_ms=0)))
        db.execute("BEGIN IMMEDIATE")
        return created

    plot.repository(create_job=create_job)


def waits_for_ever(plot: Plot) -> None:
    async def listing(real: Any, instance_id: str) -> None:
        await asyncio.Event().wait()

    plot.world.pass_seconds = 0.05
    plot.engine(list=listing)


BUGS: Final[list[tuple[Callable[[Plot], None], str]]] = [
    (acknowledges_without_writing, "i1_an_acknowledged_job_exists_once"),
    (makes_two_of_one, "i1_an_acknowledged_job_exists_once"),
    (finishes_without_a_fence, "i2_a_verdict_is_written_once"),
    (says_that_tests_failed, "i2_a_verdict_is_true"),
    (claims_twice, "i3_an_attempt_runs_at_most_once"),
    (starts_a_second_container, "i3_an_attempt_runs_at_most_once"),
    (removes_before_the_verdict, "i4_nothing_is_removed_before_its_log_and_verdict"),
    (forgets_the_seal, "i4_nothing_is_removed_before_its_log_and_verdict"),
    (seals_another_log, "i5_a_sealed_log_is_what_was_printed"),
    (claims_more_than_asked, "i6_limits_hold"),
    (partial(admits_everybody, limits=QueueLimits(1, 99)), "i6_limits_hold"),
    (partial(admits_everybody, limits=QueueLimits(99, 2)), "i6_limits_hold"),
    (feeds_a_container_for_two_attempts, "i10_a_container_is_one_attempts"),
    (shows_jobs_to_anybody, "i7_nobody_sees_what_is_not_theirs"),
    (lists_jobs_to_anybody, "i7_nobody_sees_what_is_not_theirs"),
    (cancels_for_anybody, "i7_nobody_sees_what_is_not_theirs"),
    (tells_anybody_that_it_ended, "i7_nobody_sees_what_is_not_theirs"),
    (leaves_a_transaction_open, "i8_no_transaction_is_open"),
    (waits_for_ever, "_pass_of"),  # I9
]


def test_every_invariant_is_here() -> None:
    named = {name for name in vars(invariants) if re.match(r"i\d+_", name)}
    assert {invariant for _, invariant in BUGS} == {*named, "_pass_of"}


async def test_without_a_bug_nothing_is_reported(plot: Plot) -> None:
    """The control: the same life ends well, so each report below is about the bug."""
    await a_short_life(plot.world)
    assert plot.world.finals


@pytest.mark.parametrize(
    ("plant", "invariant"), BUGS, ids=[getattr(bug, "__name__", "admits_everybody") for bug, _ in BUGS]
)
async def test_a_planted_bug_is_reported(plot: Plot, plant: Callable[[Plot], None], invariant: str) -> None:
    plant(plot)
    with pytest.raises(AssertionError) as caught:
        await a_short_life(plot.world)
    assert invariant in {entry.name for entry in caught.traceback}
