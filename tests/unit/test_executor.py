"""The order of durable effects: a controller that dies after any of them leaves what a successor can finish."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ci_common.clock import SystemClock
from ci_common.job_terms import JobStatus, Reason
from ci_controller.container_runtime import ContainerError
from ci_controller.feed import prelude
from ci_controller.frames import Outcome
from ci_controller.install_plan import ENVIRONMENT
from ci_controller.lease import Lease, Superseded
from ci_controller.operations import AttemptKey, RemoveContainer
from ci_controller.work import Workshop
from tests.support.controlled import (
    OUTPUT,
    ControlledSystem,
    Frames,
    Life,
    a_run,
    controlled_system,
    eventually,
    mortal,
)
from tests.support.crash_scenarios import times_run
from tests.support.fake_runtime import Step, UntilSignal
from tests.support.soak import SOAKING

EFFECTS = (
    "take_over",
    "claim_jobs",
    "create",
    "start",
    "mark_started",
    "rename",
    "feed",
    "finish",
    "mark_begun",
    "write",
    "write_events",
    "seal",
    "finish_attempt",
    "remove",
)


PRELUDE = tuple(prelude(ENVIRONMENT, ahead=True))


@pytest.fixture
async def system(tmp_path: Path) -> AsyncGenerator[ControlledSystem]:
    async with controlled_system(tmp_path, a_run()) as made:
        yield made


async def lives_until_it_dies(system: ControlledSystem, life: Life, job_id: str) -> bool:
    """A controller with that life works on the job; returns False when it survived the job's end."""
    controller = system.controller(0.05, **mortal(system, life))
    running = asyncio.create_task(controller.run())

    async def over() -> bool:
        done = (await system.job(job_id)).status.is_terminal and not system.runtime.containers
        return done or life.died.is_set()

    await eventually(over)
    controller.stop()
    await asyncio.gather(running, return_exceptions=True)
    return life.died.is_set()


@pytest.mark.parametrize("nth", [1, 2, 3] if SOAKING else [1, 2])
@pytest.mark.parametrize("effect", EFFECTS)
async def test_death_after_an_effect(system: ControlledSystem, effect: str, nth: int) -> None:
    """One verdict, the whole log, one run of the user's code: wherever the controller dies."""
    runs = times_run(system)
    job_id = await system.submit()
    life = Life(effect, nth)
    died = await lives_until_it_dies(system, life, job_id)
    assert died or nth > 1
    async with system.running(0.05):
        job = await system.finished(job_id)
    assert job.success, job
    assert system.log(job_id, job.attempt) == OUTPUT
    assert job.log_size == len(OUTPUT)
    assert await system.verdicts(job_id) == ["completed"]
    assert runs() == 1


@pytest.mark.parametrize(
    ("effect", "nth", "attempt"),
    [
        ("create", 1, 1),
        ("start", 1, 1),
        ("feed", 1, 1),
        ("mark_started", 1, 2),
        ("rename", 1, 2),
        ("feed", len(PRELUDE) + 1, 2),
        ("finish", 1, 1),
    ],
)
async def test_death_before_the_end_of_the_feed_costs_nothing(
    system: ControlledSystem, effect: str, nth: int, attempt: int
) -> None:
    """A container that no row has is made anew; one that was recorded says itself that it was not fed."""
    job_id = await system.submit()
    policy = replace(system.policy, max_attempts=1)
    assert await lives_until_it_dies(system, Life(effect, nth), job_id)
    async with system.running(0.05, policy=policy):
        job = await system.finished(job_id)
    assert (job.success, job.attempt) == (True, attempt)


@pytest.mark.parametrize(
    "effect", ["take_over", "write", "record_stop", "signal", "seal", "finish_attempt", "remove"]
)
async def test_death_while_cancelling(system: ControlledSystem, effect: str) -> None:
    system.runtime.script = until_sigint
    job_id = await system.submit()
    async with system.running(0.05):
        await system.printed(job_id)
    await system.cancel(job_id)
    died = await lives_until_it_dies(system, Life(effect), job_id)
    assert died or effect == "write"  # everything that was printed stood in the log already
    async with system.running(0.05):
        job = await system.finished(job_id)
    assert (job.status, job.reason) == (JobStatus.CANCELLED, Reason.CANCELLED)
    assert system.log(job_id) == OUTPUT
    assert await system.verdicts(job_id) == ["cancelled"]


def until_sigint(fed: bytes) -> Iterator[Step]:
    frames = Frames()
    yield frames.begun()
    yield frames.output(OUTPUT)
    yield UntilSignal("SIGINT")
    yield frames.trailer(Outcome.STOPPED)


# -- one operation per key ---------------------------------------------------------------------------------


@dataclass
class SetClock(SystemClock):
    """A clock whose monotonic time is set by hand."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        return self.seconds


@dataclass
class Bench:
    """A workshop whose wake-ups and doubts are counted."""

    clock: SetClock
    workshop: Workshop
    wakes: list[None]
    doubts: list[None]

    async def do(self, *, error: Exception | None = None, key: str = "c1") -> None:
        async def work() -> None:
            if error:
                raise error

        self.workshop.begin(RemoveContainer(key, "name", "cause"), work())
        await self.workshop.idle()


@pytest.fixture
def bench() -> Bench:
    clock, wakes, doubts = SetClock(), list[None](), list[None]()
    return Bench(
        clock, Workshop(clock, lambda: wakes.append(None), lambda: doubts.append(None)), wakes, doubts
    )


async def test_what_is_in_flight_is_busy_and_wakes_at_its_end(bench: Bench) -> None:
    gate = asyncio.Event()

    async def work() -> None:
        await gate.wait()

    bench.workshop.begin(RemoveContainer("c1", "name", "cause"), work())
    assert bench.workshop.busy(bench.workshop.ended) == {"c1"}
    assert not bench.wakes
    gate.set()
    await bench.workshop.idle()
    assert bench.workshop.busy(bench.workshop.ended) == frozenset()
    assert len(bench.wakes) == 1


async def test_what_ended_since_is_busy_for_whoever_does_not_know_of_it(bench: Bench) -> None:
    looked_at = bench.workshop.ended
    await bench.do(key="c1")
    assert bench.workshop.busy(looked_at) == {"c1"}
    looked_at = bench.workshop.ended
    await bench.do(key="c2")
    assert bench.workshop.busy(looked_at) == {"c2"}
    assert bench.workshop.busy(bench.workshop.ended) == frozenset()


@pytest.mark.parametrize("error", [ContainerError("no"), OSError("disk"), ValueError("a programming error")])
async def test_a_failure_backs_off_alone(bench: Bench, error: Exception) -> None:
    delays: list[float] = []
    for _ in range(10):
        with capture_logs() as logs:
            await bench.do(error=error)
        assert "failed" in logs[0]["event"]
        assert bench.workshop.busy(bench.workshop.ended) == {"c1"}
        delay = bench.workshop.next_retry
        assert delay is not None
        delays.append(delay)
        bench.clock.seconds += delay
        assert bench.workshop.busy(bench.workshop.ended) == frozenset()
    assert delays[:4] == [0.25, 0.5, 1.0, 2.0]
    assert max(delays) == 30.0


async def test_what_is_planned_again_although_it_worked_has_to_wait_too(bench: Bench) -> None:
    await bench.do()
    assert bench.workshop.busy(bench.workshop.ended) == frozenset()
    await bench.do()
    assert bench.workshop.busy(bench.workshop.ended) == {"c1"}


async def test_a_stale_fence_raises_doubt(bench: Bench) -> None:
    await bench.do(error=Superseded("stale"))
    assert len(bench.doubts) == 1


async def test_closing_breaks_off_what_does_not_end(bench: Bench) -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    bench.workshop.begin(RemoveContainer("c1", "name", "cause"), work())
    await bench.workshop.close(0.01)
    assert await bench.workshop.idle()


def test_a_lease_is_trusted_only_for_a_while() -> None:
    clock = SetClock()
    lease = Lease(clock, 15)
    with pytest.raises(Superseded):
        lease.require()
    lease.renewed(asked_at=0)
    clock.seconds = 11.9
    lease.require()
    clock.seconds = 12
    with pytest.raises(Superseded):
        lease.require()


def test_keys_print_as_people_write_them() -> None:
    assert str(AttemptKey("job", 2)) == "job/2"
