"""The controller over a real database and real stores, with the engine in memory."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from ci_common.clock import utcnow
from ci_common.errors import ControllerRunning, DatabaseBusy, EngineUnavailable
from ci_common.job_terms import JobStatus, Reason
from ci_common.missing_uploads import NOT_THERE
from ci_common.models import JobFilter
from ci_controller import labels
from ci_controller.container_runtime import (
    ContainerError,
    ContainerSpec,
    ContainerState,
    ExitState,
    start_and_feed,
)
from ci_controller.container_users import NONE_FREE, USERS
from ci_controller.disk_watch import DATA
from ci_controller.feed import prelude
from ci_controller.frames import Outcome
from ci_controller.install_plan import ENVIRONMENT
from ci_controller.lease import Superseded
from ci_controller.operations import render
from ci_persistence.commit_watch import CommitWatch
from tests.support.controlled import (
    OUTPUT,
    ControlledSystem,
    Faulty,
    Frames,
    Held,
    LateListing,
    a_run,
    controlled_system,
    eventually,
    opening,
)
from tests.support.fake_runtime import Step, UntilSignal

PRELUDE = b"".join(prelude(ENVIRONMENT, ahead=True))  # what a container is fed before there is a job for it
IMPATIENT = {
    "interrupt_grace": timedelta(seconds=0.04),
    "terminate_grace": timedelta(seconds=0.01),
    "slack": timedelta(seconds=0.05),
}


@pytest.fixture
async def system(tmp_path: Path) -> AsyncGenerator[ControlledSystem]:
    async with controlled_system(tmp_path, a_run()) as made:
        yield made


async def is_running(system: ControlledSystem, job_id: str) -> bool:
    return (await system.job(job_id)).status is JobStatus.RUNNING


async def test_a_whole_job(system: ControlledSystem) -> None:
    async with system.running():
        job_id = await system.submit()
        job = await system.finished(job_id)
    assert (job.status, job.success, job.exit_code, job.attempt) == (JobStatus.COMPLETED, True, 0, 1)
    assert system.log(job_id) == OUTPUT
    assert job.log_size == len(OUTPUT)
    assert job.image_id == await system.runtime.image_id("ci-runner:latest")
    types = [event.type for event in await system.repository.get_events(job_id)]
    assert types == ["submitted", "claimed", "running", "completed"]


async def test_step_by_step(system: ControlledSystem) -> None:
    controller = system.controller()
    await controller.start()
    job_id = await system.submit()
    name = labels.job_name("", job_id, 1)
    steps: list[str] = []

    async def step() -> bool:
        operations = await controller.reconcile_once()
        await controller.idle()
        steps.extend(render(operations).splitlines())
        return (await system.job(job_id)).status.is_terminal and not system.runtime.containers

    await eventually(step)
    assert await controller.reconcile_once() == []
    await controller.close()
    assert steps == [
        "claim 1: 1 queued, 2 of 2 slots free",
        f"start {job_id}/1: claimed, no container",
        f"settle {job_id}/1: its container has ended",
        f"remove {name}: its attempt has ended",
    ]


async def test_failing_tests_are_a_verdict(system: ControlledSystem) -> None:
    system.runtime.script = a_run(exit_code=1)
    async with system.running():
        job = await system.finished(await system.submit())
    assert (job.status, job.success, job.reason) == (JobStatus.COMPLETED, False, Reason.TESTS_FAILED)


async def test_hints_make_it_fast(system: ControlledSystem) -> None:
    """The interval is a minute here, so whatever happens sooner was caused by a hint."""
    async with system.running(interval=60):
        for _ in range(3):
            await system.finished(await system.submit(), seconds=30)


async def test_the_end_of_a_job_does_not_wait_for_a_listing_that_is_late(system: ControlledSystem) -> None:
    """Docker says `die` before its listing says `exited`: without another hint that costs a whole interval."""
    async with system.running(interval=60, runtime=LateListing(system.runtime)):
        assert (await system.finished(await system.submit())).success


async def test_a_pass_that_finds_nothing_to_do_causes_no_other(
    system: ControlledSystem, tmp_path: Path
) -> None:
    """It commits nothing and changes nothing on the engine, and these are the hints that wake a controller."""
    controller = system.controller()
    await controller.start()
    commits = CommitWatch(tmp_path / "ci_jobs.db")
    try:
        commits.changed()  # from here on only news count
        system.runtime.calls.clear()
        assert await controller.reconcile_once() == []
        assert not commits.changed()
        assert sorted(system.runtime.calls) == [("guard_network", ""), ("image_id", ""), ("list", "")]
        await system.submit()
        assert commits.changed(), "it would have been seen"
    finally:
        commits.forget()
        await controller.close()


async def test_hints_are_taken_without_asking_the_engine(system: ControlledSystem) -> None:
    """Rows and last words say enough to claim, start and settle; what else there is to do asks for a pass."""
    gate = threading.Event()
    system.runtime.script = a_run(gate)
    controller = system.controller()
    await controller.start()
    try:
        await controller.reconcile_once()
        job_id = await system.submit()
        system.runtime.calls.clear()
        assert render(await controller.take_hint()).startswith("claim 1")
        assert render(await controller.take_hint()).startswith(f"start {job_id}/1")
        await controller.idle()
        assert await controller.take_hint() == [], "the look is older than the start: nothing is known of it"
        assert not looks(system)
        await controller.reconcile_once()
        assert looks(system)
        system.runtime.calls.clear()
        gate.set()
        assert render(await eventually(controller.take_hint)).startswith(f"settle {job_id}/1")
        await controller.idle()
        assert not looks(system)
        assert (await system.job(job_id)).success
    finally:
        await controller.close()


def looks(system: ControlledSystem) -> list[tuple[str, str]]:
    return [call for call in system.runtime.calls if call[0] in ("list", "image_id")]


@pytest.mark.parametrize(("code", "said"), [(0, []), (9, ["a success did not end with 0"])])
async def test_a_success_stands_before_its_container_has_ended_and_its_exit_is_compared(
    system: ControlledSystem, code: int, said: list[str]
) -> None:
    gate = threading.Event()
    system.runtime.script = ends_late(gate, code)
    with capture_logs() as logs:
        async with system.running():
            job_id = await system.submit()

            async def is_over() -> bool:
                return (await system.job(job_id)).status.is_terminal

            await eventually(is_over)
            [container] = system.runtime.containers.values()
            assert container.exit is None
            gate.set()
            job = await system.finished(job_id)
    assert (job.status, job.success, job.log_size) == (JobStatus.COMPLETED, True, len(OUTPUT))
    assert [log["event"] for log in logs if log["log_level"] == "error"] == said


def ends_late(gate: threading.Event, code: int) -> Callable[[bytes], Iterator[Step]]:
    """Return the script of a success that says its last word and ends at the gate."""

    def script(fed: bytes) -> Iterator[Step]:
        frames = Frames()
        yield from opening(fed, frames)
        yield frames.output(OUTPUT)
        yield frames.trailer(Outcome.TESTS_RAN, exit_code=0, session_finished=True)
        yield gate
        yield ExitState(code)

    return script


async def test_tests_that_failed_of_the_disk_limit_just_before_the_stop_for_it_are_not_to_blame(
    system: ControlledSystem,
) -> None:
    def script(fed: bytes) -> Iterator[Step]:
        frames = Frames()
        yield from opening(fed, frames)
        yield frames.output(OUTPUT)
        yield frames.trailer(Outcome.TESTS_RAN, exit_code=1, session_finished=True)
        yield threading.Event()  # until SIGKILL

    system.runtime.script = script
    async with system.running():
        job_id = await system.submit()
        await system.printed(job_id)
        [container] = system.runtime.containers.values()
        container.layer_bytes = 2 * system.policy.disk_bytes
        job = await system.finished(job_id)
    assert (job.status, job.reason) == (JobStatus.FAILED, Reason.DISK_LIMIT)


async def test_no_more_jobs_at_a_time_than_slots(system: ControlledSystem) -> None:
    gate = threading.Event()
    system.runtime.script = a_run(gate)
    async with system.running():
        ids = [await system.submit() for _ in range(5)]
        await eventually(lambda: is_running(system, ids[1]))
        assert len(system.runtime.containers) == 2
        gate.set()
        jobs = [await system.finished(job_id) for job_id in ids]
    assert all(job.success for job in jobs)


async def test_the_harness_gets_what_the_submitter_asked_for(system: ControlledSystem) -> None:
    fed: list[bytes] = []

    def script(data: bytes) -> Iterator[Step]:
        fed.append(data)
        yield from a_run()(data)

    system.runtime.script = script
    policy = replace(
        system.policy, interrupt_grace=timedelta(seconds=3), terminate_grace=timedelta(seconds=2)
    )
    async with system.running(policy=policy):
        await system.finished(await system.submit(pytest_args=("-k", "quick"), timeout_seconds=77.0))
    assert b'"pytest_args": ["-k", "quick"]' in fed[0]
    assert b'"timeout": 77.0' in fed[0]
    assert b'"interrupt_grace": 3.0, "terminate_grace": 2.0' in fed[0]


# -- archives ----------------------------------------------------------------------------------------------


async def test_an_archive_that_cannot_be_tested_fails_with_its_sentence(system: ControlledSystem) -> None:
    async with system.running():
        job = await system.finished(await system.submit({"README": b"nothing\n"}))
    assert (job.status, job.reason) == (JobStatus.FAILED, Reason.BAD_ARCHIVE)
    assert job.message is not None
    assert "no Python file" in job.message


async def test_a_controller_that_does_not_see_the_uploads_ends_no_job(
    system: ControlledSystem, tmp_path: Path
) -> None:
    """As where a shared directory is not mounted: the job runs once it is."""
    archives = next(tmp_path.glob("*.data/archives"))
    controller = system.controller()
    await controller.start()
    job_id = await system.submit()
    hidden = archives.rename(archives.with_name("hidden"))
    archives.mkdir()
    for _ in range(2):  # claim, start
        await controller.reconcile_once()
        await controller.idle()
    job = await system.job(job_id)
    assert (job.status, job.message) == (JobStatus.QUEUED, f"Its upload could not be read: {NOT_THERE}.")
    await controller.close()
    archives.rmdir()
    hidden.rename(archives)
    async with system.running():
        assert (await system.finished(job_id)).success


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "Its upload could not be read: Permission denied."),
        (AttributeError("x"), "The controller failed to start it (AttributeError); its own log says why."),
    ],
)
async def test_an_upload_that_cannot_be_read_now_costs_nothing(
    system: ControlledSystem, error: Exception, message: str
) -> None:
    archives = Faulty(system.stores.archives, open=error)
    controller = system.controller(archives=archives)
    await controller.start()
    job_id = await system.submit()
    for _ in range(2):  # claim, start
        await controller.reconcile_once()
        await controller.idle()
    job = await system.job(job_id)
    assert (job.status, job.message) == (JobStatus.QUEUED, message)
    assert not await system.repository.open_attempts()
    await controller.close()
    async with system.running():
        assert (await system.finished(job_id)).success


# -- cancelling --------------------------------------------------------------------------------------------


async def test_cancel_between_claim_and_start(system: ControlledSystem) -> None:
    controller = system.controller()
    await controller.start()
    job_id = await system.submit()
    await controller.reconcile_once()
    assert (await system.job(job_id)).status is JobStatus.CLAIMED
    await system.cancel(job_id)
    assert render(await controller.reconcile_once()).startswith(f"finish {job_id}/1 (cancelled)")
    await controller.idle()
    job = await system.job(job_id)
    assert (job.status, job.reason, job.message) == (
        JobStatus.CANCELLED,
        Reason.CANCELLED,
        "Cancelled by ada@example.org.",
    )
    assert not system.runtime.containers
    await controller.close()


async def test_cancel_of_a_running_job_lets_it_sum_up(system: ControlledSystem) -> None:
    def script(fed: bytes) -> Iterator[Step]:
        frames = Frames()
        yield frames.begun()
        yield frames.output(OUTPUT)
        yield UntilSignal("SIGINT")
        yield frames.output(b"1 passed so far\n")
        yield frames.trailer(Outcome.STOPPED)
        yield ExitState(2)

    system.runtime.script = script
    async with system.running():
        job_id = await system.submit()
        await system.printed(job_id)
        await system.cancel(job_id)
        job = await system.finished(job_id)
    assert (job.status, job.reason) == (JobStatus.CANCELLED, Reason.CANCELLED)
    assert system.log(job_id) == OUTPUT + b"1 passed so far\n"


async def test_who_ignores_sigint_is_killed_when_the_grace_is_over(system: ControlledSystem) -> None:
    system.runtime.script = a_run(threading.Event())
    async with system.running(interval=0.05, policy=replace(system.policy, **IMPATIENT)):
        job_id = await system.submit()
        await system.printed(job_id)
        [container] = system.runtime.containers.values()
        await system.cancel(job_id)
        job = await system.finished(job_id)
    assert container.signals == ["SIGINT", "SIGKILL"]
    assert (job.status, job.reason) == (JobStatus.CANCELLED, Reason.CANCELLED)


async def test_a_cancel_that_came_too_late_changes_nothing(system: ControlledSystem) -> None:
    gate = threading.Event()
    system.runtime.script = a_run(gate, exit_code=1)
    async with system.running():
        job_id = await system.submit()
        await system.printed(job_id)
        gate.set()
        job = await system.finished(job_id)
        assert job.reason is Reason.TESTS_FAILED
    assert await system.verdicts(job_id) == ["completed"]


async def test_past_its_deadline_a_job_is_killed(system: ControlledSystem) -> None:
    """The harness does that itself; this one does not."""
    system.runtime.script = a_run(threading.Event())
    policy = replace(system.policy, job_timeout=timedelta(seconds=0.05), **IMPATIENT)
    async with system.running(interval=0.05, policy=policy):
        job = await system.finished(await system.submit())
    assert (job.status, job.reason) == (JobStatus.FAILED, Reason.TIMEOUT)


async def test_a_log_over_the_limit_ends_the_job(system: ControlledSystem) -> None:
    def flood(fed: bytes) -> Iterator[Step]:
        frames = Frames()
        yield frames.begun()
        for _ in range(200):
            yield frames.output(b"x" * 8191 + b"\n")
        yield threading.Event()

    system.runtime.script = flood
    async with system.running(policy=replace(system.policy, log_limit=1024)):
        job_id = await system.submit()
        job = await system.finished(job_id)
    assert (job.status, job.reason) == (JobStatus.FAILED, Reason.LOG_LIMIT)
    assert job.log_size is not None
    assert job.log_size < 1024 + 2 * 1024**2


# -- the engine --------------------------------------------------------------------------------------------


async def test_engine_down_charges_nobody_and_is_said(system: ControlledSystem) -> None:
    system.runtime.down = True
    async with system.running(interval=0.05):
        job_id = await system.submit()
        await system.noted(
            "docker engine does not answer: start it, or let `ci-admin doctor` say what is wrong"
        )
        assert (await system.job(job_id)).status is JobStatus.QUEUED
        system.runtime.down = False
        job = await system.finished(job_id)
        await system.noted(None)
    assert (job.success, job.attempt) == (True, 1)


async def test_an_engine_that_makes_no_containers_charges_nobody_and_is_said(
    system: ControlledSystem,
) -> None:
    """It answers, but `create` fails for a reason that is not the job's: a network in the way, a full disk."""
    trouble = EngineUnavailable("The Docker network ci-jobs is not one that ci made: remove it.")
    engine = Faulty(system.runtime, create=trouble)
    async with system.running(interval=0.05, runtime=engine):
        job_id = await system.submit()
        await system.noted(trouble.detail)
        await eventually(lambda: is_queued_again(system, job_id, trouble.detail))
        engine.faults.clear()
        job = await system.finished(job_id)
        await system.noted(None)
    assert job.success
    assert job.attempt > 1
    assert not any(event.type == "dead_lettered" for event in await system.repository.get_events(job_id))


async def test_while_containers_have_all_the_users_jobs_wait_and_it_is_said(system: ControlledSystem) -> None:
    found = await image(system)
    for number in range(len(USERS)):
        stranger = ContainerSpec(f"other-{number}", found, ("sleep",), {labels.INSTANCE: "else"})
        await system.runtime.create(stranger)
    async with system.running(interval=0.05):
        job_id = await system.submit()
        await system.noted(NONE_FREE)
        await eventually(lambda: is_queued_again(system, job_id, NONE_FREE))
        await system.runtime.remove(system.runtime.containers["other-7"].id)
        assert (await system.finished(job_id)).success


async def is_queued_again(system: ControlledSystem, job_id: str, message: str) -> bool:
    job = await system.job(job_id)
    return (job.status, job.message) == (JobStatus.QUEUED, message)


async def test_an_engine_that_makes_no_containers_is_tried_with_one_job_at_a_time(
    system: ControlledSystem,
) -> None:
    engine = Faulty(system.runtime, create=EngineUnavailable("no space left on device"))
    controller = system.controller(runtime=engine)
    await controller.start()
    for _ in range(5):
        await system.submit()
    for _ in range(3):  # both slots are claimed, both fail, nothing more is claimed
        await controller.reconcile_once()
        await controller.idle()
    assert engine.raised == ["create", "create"]
    assert await system.repository.count_queued(utcnow()) == 5

    async def tried_again() -> bool:
        operations = await controller.reconcile_once()
        await controller.idle()
        return render(operations).startswith("claim 1: 5 queued, one tries")

    await eventually(tried_again)
    await controller.close()


async def test_a_claim_that_fails_holds_nothing_else_up(system: ControlledSystem) -> None:
    """A job ends and its container goes while another one waits and cannot be claimed."""
    gate = threading.Event()
    system.runtime.script = a_run(gate)
    repository = Faulty(system.repository)
    async with system.running(interval=0.05, repository=repository):
        job_id = await system.submit()
        await system.printed(job_id)
        repository.faults["claim_jobs"] = DatabaseBusy("the database is locked")
        waiting = await system.submit()

        async def failed() -> bool:
            return "claim_jobs" in repository.raised

        await eventually(failed)
        gate.set()
        assert (await system.finished(job_id)).success
        repository.faults.clear()
        assert (await system.finished(waiting)).success


@pytest.mark.parametrize("call", ["heartbeat", "expire_queued", "archive_refs_in_use"])
async def test_a_programming_error_beside_the_loop_does_not_end_it(
    system: ControlledSystem, tmp_path: Path, call: str
) -> None:
    old = (await system.save_archive()).ref
    [path] = tmp_path.rglob(old)
    two_hours_ago = time.time() - 7200
    os.utime(path, (two_hours_ago, two_hours_ago))  # so that there is something to prune
    repository = Faulty(system.repository, **{call: ValueError("a programming error")})
    async with system.running(interval=0.05, repository=repository):

        async def failed() -> bool:
            return call in repository.raised

        await eventually(failed)
        assert (await system.finished(await system.submit())).success


async def test_engine_away_during_a_job(system: ControlledSystem) -> None:
    gate = threading.Event()
    system.runtime.script = a_run(gate)
    async with system.running(interval=0.05):
        job_id = await system.submit()
        await system.printed(job_id)
        system.runtime.down = True
        gate.set()
        [container] = system.runtime.containers.values()

        async def ended() -> bool:
            return container.state is ContainerState.EXITED

        await eventually(ended)
        system.runtime.down = False
        job = await system.finished(job_id)
    assert (job.success, job.attempt) == (True, 1)
    assert system.log(job_id) == OUTPUT


async def test_a_missing_image_keeps_jobs_queued_and_says_what_to_do(system: ControlledSystem) -> None:
    images, system.runtime.images = system.runtime.images, {}

    async def noted() -> bool:
        state = await system.repository.controller_state()
        return state is not None and "make runner-image" in (state.note or "")

    async with system.running(interval=0.05):
        job_id = await system.submit()
        await eventually(noted)
        assert (await system.job(job_id)).status is JobStatus.QUEUED
        system.runtime.images = images
        assert (await system.finished(job_id)).attempt == 1


@pytest.mark.parametrize("call", ["create", "start", "rename"])
async def test_a_lost_reply(system: ControlledSystem, call: Literal["create", "start", "rename"]) -> None:
    system.runtime.lose_reply_of(call)
    async with system.running(interval=0.05):
        job = await system.finished(await system.submit())
    assert job.success


async def test_a_vanished_container_is_run_again_and_then_given_up(system: ControlledSystem) -> None:
    system.runtime.script = a_run(threading.Event())
    policy = replace(system.policy, max_attempts=2, max_backoff=timedelta(0))
    async with system.running(interval=0.05, policy=policy):
        job_id = await system.submit()
        for attempt in (1, 2):
            await system.printed(job_id, attempt)
            await eventually(lambda: begun(system, attempt))  # noqa: B023
            system.runtime.vanish(system.runtime.containers[labels.job_name("", job_id, attempt)].id)
        job = await system.finished(job_id)
    assert (job.status, job.reason, job.attempt) == (JobStatus.DEAD_LETTERED, Reason.INFRA, 2)
    assert system.log(job_id, 2) == OUTPUT


async def begun(system: ControlledSystem, attempt: int) -> bool:
    return any(
        one.begun_at for one in await system.repository.open_attempts() if one.fence.attempt == attempt
    )


async def test_a_name_taken_by_a_stranger_costs_an_attempt_but_no_job(system: ControlledSystem) -> None:
    controller = system.controller()
    await controller.start()
    job_id = await system.submit()
    await controller.reconcile_once()
    name = labels.job_name("", job_id, 1)
    stranger = await system.runtime.create(ContainerSpec(name, await image(system), ("sleep",), {"a": "b"}))
    await controller.reconcile_once()
    await controller.idle()
    job = await system.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 1)
    assert "could not be started" in (job.message or "")
    await controller.close()
    async with system.running(interval=0.05):

        async def completed() -> bool:
            return (await system.job(job_id)).success is True

        await eventually(completed)
    assert (await system.job(job_id)).attempt == 2
    assert system.runtime.containers[name].id == stranger


async def image(system: ControlledSystem) -> str:
    found = await system.runtime.image_id("ci-runner:latest")
    assert found
    return found


# -- containers that wait for their job --------------------------------------------------------------------


async def test_a_container_waits_is_recorded_renamed_and_fed_in_this_order(system: ControlledSystem) -> None:
    system.runtime.script = a_run(threading.Event())
    engine = Held(system.runtime, "rename")
    async with system.running(runtime=engine):
        job_id = await system.submit()
        await engine.reached.wait()
        [container] = system.runtime.containers.values()
        assert labels.is_waiting_name("", container.spec.name)
        assert not {word for word in (job_id, system.user.id) if word in str(container.spec)}
        [attempt] = await system.repository.open_attempts()
        assert (attempt.container_id, container.fed) == (container.id, PRELUDE)
        engine.go_on.set()
        await system.printed(job_id)
        assert container.spec.name == labels.job_name("", job_id, 1)
        names = [name for call, name in system.runtime.calls if call in ("create", "start", "rename")]
        assert len(set(names)) == 1, "it had no other name before"
        system.runtime.end(container.id, ExitState(0))


@pytest.mark.parametrize("call", ["create", "start", "rename"])
async def test_what_is_being_made_or_assigned_is_left_alone_however_long_it_takes(
    system: ControlledSystem, call: str
) -> None:
    """It is no orphan, it takes no slot, and nobody who lists jobs sees more than the one."""
    engine = Held(system.runtime, call)
    policy = replace(system.policy, orphan_grace=timedelta(0))
    async with system.running(interval=60, runtime=engine, policy=policy) as controller:
        job_id = await system.submit()
        await engine.reached.wait()
        for _ in range(3):
            assert await controller.reconcile_once() == []
        assert len(system.runtime.containers) == (call != "create")
        assert [job.id for job in (await system.repository.list_jobs(JobFilter())).jobs] == [job_id]
        engine.go_on.set()
        job = await system.finished(job_id)
    assert (job.success, job.attempt) == (True, 1)


@pytest.mark.parametrize("started", [False, True])
async def test_what_nobody_fed_is_removed_at_once(system: ControlledSystem, *, started: bool) -> None:
    """Somebody made it who has gone. The grace of orphans is a minute, and this test does not wait that long."""
    instance = await system.repository.instance_id()
    never_fed = ContainerSpec("waiting-1", await image(system), ("sleep",), labels.run_labels(instance, 1))
    strange = replace(never_fed, name="waiting-2", labels=labels.run_labels("else", 1))
    for spec in (never_fed, strange):
        container = await system.runtime.create(spec)
        if started:
            await start_and_feed(system.runtime, container, [])

    async def gone() -> bool:
        return set(system.runtime.containers) == {"waiting-2"}

    async with system.running(interval=0.05):
        await eventually(gone)
        assert (await system.finished(await system.submit())).success


@pytest.mark.parametrize("call", ["open_attempts", "ended_attempts", "list"])
async def test_on_a_partial_view_nothing_is_removed(system: ControlledSystem, call: str) -> None:
    instance = await system.repository.instance_id()
    spec = ContainerSpec("waiting-1", await image(system), ("sleep",), labels.run_labels(instance, 1))
    await system.runtime.create(spec)
    repository = Faulty(system.repository, **{call: DatabaseBusy("the database is locked")})
    engine = Faulty(system.runtime, **{call: EngineUnavailable("the listing broke off")})
    controller = system.controller(repository=repository, runtime=engine)
    await controller.start()
    assert await controller.make_pass() is False
    assert await controller.idle()
    assert [*repository.raised, *engine.raised] == [call]
    assert set(system.runtime.containers) == {"waiting-1"}
    await controller.close()


async def test_without_a_runner_of_its_own_what_ran_here_is_given_back_however_busy_the_database_is(
    system: ControlledSystem,
) -> None:
    job_id = await system.submit()
    before = await system.repository.take_over("before", utcnow())
    assert await system.repository.claim_jobs(before, 1, utcnow())
    repository = Faulty(system.repository, open_attempts=DatabaseBusy("the database is locked"))
    async with system.running(repository=repository, local_runner=False) as controller:

        async def was_refused() -> bool:
            return bool(repository.raised)

        await eventually(was_refused)
        repository.faults.clear()
        await controller.give_back()  # as it does again and again
        assert (await system.job(job_id)).status is JobStatus.QUEUED
        state = await system.repository.controller_state()
        assert state is not None
        assert not state.runs_jobs, "people who wait for an agent are told so"


@pytest.mark.parametrize("trouble", [None, EngineUnavailable("nobody answers")])
async def test_without_a_runner_of_its_own_nothing_runs_on_where_one_was(
    system: ControlledSystem, trouble: EngineUnavailable | None
) -> None:
    """Nobody would look after those containers; no engine is needed, and other installations' are left alone."""
    instance = await system.repository.instance_id()
    left = ContainerSpec("job-1", await image(system), ("sleep",), labels.run_labels(instance, 1))
    strange = replace(left, name="job-2", labels=labels.run_labels("else", 1))
    for spec in (left, strange):
        await start_and_feed(system.runtime, await system.runtime.create(spec), [])
    job_id = await system.submit()
    before = await system.repository.take_over("before", utcnow())
    assert await system.repository.claim_jobs(before, 1, utcnow())
    engine = Faulty(system.runtime, **({"list": trouble} if trouble else {}))
    policy = replace(system.policy, orphan_grace=timedelta(0))
    controller = system.controller(runtime=engine, local_runner=False, policy=policy)
    await controller.start()
    await controller.give_back()
    assert (await system.job(job_id)).status is JobStatus.QUEUED
    assert set(system.runtime.containers) == ({"job-1", "job-2"} if trouble else {"job-2"})
    await controller.close()


async def test_what_cannot_be_removed_keeps_nothing_else_and_what_is_new_has_its_grace(
    system: ControlledSystem,
) -> None:
    instance = await system.repository.instance_id()
    spec = ContainerSpec("job-1", await image(system), ("sleep",), labels.run_labels(instance, 1))
    for number in (1, 2):
        await start_and_feed(
            system.runtime, await system.runtime.create(replace(spec, name=f"job-{number}")), []
        )
    engine = Faulty(system.runtime, remove=ContainerError("device or resource busy"))
    for policy, asked in ((system.policy, 0), (replace(system.policy, orphan_grace=timedelta(0)), 2)):
        system.runtime.calls.clear()
        controller = system.controller(runtime=engine, local_runner=False, policy=policy)
        await controller.start()
        with capture_logs() as said:
            await controller.give_back()
        left = [one["container"] for one in said if one["event"] == "a container of a former runner is left"]
        assert len(left) == asked
        await controller.close()


async def test_without_a_runner_of_its_own_it_still_watches_the_disks(
    system: ControlledSystem, tmp_path: Path
) -> None:
    policy = replace(system.policy, disk_min_free=2**60)
    places = {DATA: tmp_path}
    async with system.running(local_runner=False, policy=policy, places=places):

        async def is_told() -> bool:
            state = await system.repository.controller_state()
            return state is not None and "on the disk of the data directory" in str(state.note)

        await eventually(is_told)


async def test_a_container_that_cannot_get_its_name_is_never_fed_and_costs_nothing(
    system: ControlledSystem,
) -> None:
    engine = Faulty(system.runtime, rename=EngineUnavailable("no answer"))
    controller = system.controller(runtime=engine)
    await controller.start()
    job_id = await system.submit()
    for _ in range(2):  # claim, start
        await controller.reconcile_once()
        await controller.idle()
    [container] = system.runtime.containers.values()
    assert container.fed == PRELUDE
    job = await system.job(job_id)
    assert (job.status, job.message) == (JobStatus.QUEUED, "no answer")
    [removal] = await controller.reconcile_once()
    assert render([removal]) == f"remove {container.spec.name}: its attempt has ended"
    await controller.idle()
    assert not system.runtime.containers
    await controller.close()


# -- orphans -----------------------------------------------------------------------------------------------


async def test_foreign_containers_are_never_touched(system: ControlledSystem) -> None:
    foreign = ContainerSpec("job-x-1", await image(system), ("sleep",), labels.run_labels("else", 1))
    container_id = await system.runtime.create(foreign)
    async with system.running(policy=replace(system.policy, orphan_grace=timedelta(0))):
        assert (await system.finished(await system.submit())).success
    assert [one.id for one in system.runtime.containers.values()] == [container_id]


async def test_an_orphan_of_ours_is_removed_after_its_grace(system: ControlledSystem) -> None:
    instance = await system.repository.instance_id()
    spec = ContainerSpec("job-x-1", await image(system), ("sleep",), labels.run_labels(instance, 1))
    await system.runtime.create(spec)

    async def gone() -> bool:
        return not system.runtime.containers

    async with system.running(interval=0.05, policy=replace(system.policy, orphan_grace=timedelta(0))):
        await eventually(gone)


# -- two controllers ---------------------------------------------------------------------------------------


async def test_a_stop_leaves_the_job_running_and_the_successor_adopts_it(system: ControlledSystem) -> None:
    gate = threading.Event()
    system.runtime.script = a_run(gate)
    async with system.running():
        job_id = await system.submit()
        await system.printed(job_id)
    [container] = system.runtime.containers.values()
    assert container.state is ContainerState.RUNNING
    async with system.running():
        gate.set()
        job = await system.finished(job_id)
    assert (job.success, job.attempt) == (True, 1)
    assert system.log(job_id) == OUTPUT
    assert [call for call, _ in system.runtime.calls].count("create") == 1


async def test_who_was_taken_over_stops_and_its_writes_affect_nothing(system: ControlledSystem) -> None:
    gate = threading.Event()
    system.runtime.script = a_run(gate)
    first = system.controller()
    running = asyncio.create_task(first.run())
    job_id = await system.submit()
    await system.printed(job_id)
    [stale] = await system.repository.open_attempts()
    async with system.running() as second:
        with pytest.raises(ControllerRunning):
            await running
        with pytest.raises(Superseded):
            await first.reconcile_once()
        assert await system.repository.record_stop(stale.fence, Reason.TIMEOUT, None, utcnow()) is None
        gate.set()
        job = await system.finished(job_id)
        await second.idle()
    assert (job.success, job.attempt) == (True, 1)
    assert await system.verdicts(job_id) == ["completed"]


@pytest.mark.parametrize("where", ["start", "mark_started"])
async def test_who_was_taken_over_assigns_nothing_and_removes_nothing(
    system: ControlledSystem, where: str
) -> None:
    """It stood still between two steps; its successor did without it, and what it made was removed at once."""
    fed = times_fed(system)
    engine, repository = Held(system.runtime, where), Held(system.repository, where)
    stale = system.controller(runtime=engine, repository=repository)
    await stale.start()
    job_id = await system.submit()
    for _ in range(2):  # claim, start
        await stale.reconcile_once()
    await eventually(lambda: is_set(engine.reached, repository.reached))
    async with system.running(interval=0.05):
        job = await system.finished(job_id)
        assert job.success
        engine.go_on.set()
        repository.go_on.set()
        await stale.idle()
        with pytest.raises(Superseded):
            await stale.reconcile_once()
        await eventually(lambda: is_empty(system))
    assert await system.job(job_id) == job
    assert fed() == 1
    await stale.close()


async def test_what_was_assigned_just_before_a_takeover_is_fed_once_and_adopted(
    system: ControlledSystem,
) -> None:
    fed = times_fed(system)
    engine = Held(system.runtime, "rename")
    stale = system.controller(runtime=engine)
    await stale.start()
    job_id = await system.submit()
    for _ in range(2):  # claim, start
        await stale.reconcile_once()
    await engine.reached.wait()
    async with system.running(interval=0.05):
        engine.go_on.set()
        job = await system.finished(job_id)
        await stale.idle()
    assert (job.success, job.attempt, fed()) == (True, 1, 1)
    await stale.close()


async def is_set(*events: asyncio.Event) -> bool:
    return any(event.is_set() for event in events)


async def is_empty(system: ControlledSystem) -> bool:
    return not system.runtime.containers


def times_fed(system: ControlledSystem) -> Callable[[], int]:
    """Count the containers that got anything of a job."""
    fed: list[bytes] = []
    script = system.runtime.script

    def counted(data: bytes) -> Iterable[Step]:
        if not PRELUDE.startswith(data):
            fed.append(data)
        return script(data)

    system.runtime.script = counted
    return lambda: len(fed)


async def test_what_waited_too_long_in_the_queue_fails(system: ControlledSystem) -> None:
    system.runtime.down = True
    job_id = await system.submit()
    async with system.running(policy=replace(system.policy, queue_timeout=timedelta(0))):
        job = await system.finished(job_id)
    assert (job.status, job.reason) == (JobStatus.FAILED, Reason.QUEUE_TIMEOUT)


async def test_uploads_that_no_job_came_of_are_removed_in_time(
    system: ControlledSystem, tmp_path: Path
) -> None:
    """A server that died between the upload and the row leaves a file; a young one may still get its row."""
    used = (await system.job(await system.submit())).archive_ref
    abandoned, young = [(await system.save_archive()).ref for _ in range(2)]
    for ref in (used, abandoned):
        two_hours_ago = time.time() - 7200
        [path] = tmp_path.rglob(ref)
        os.utime(path, (two_hours_ago, two_hours_ago))
    controller = system.controller()
    await controller.start()
    await controller.prune()
    await controller.close()
    assert {item.name for item in system.stores.archives.items()} == {used, young}


async def test_a_controller_that_was_stopped_says_so_until_another_one_starts(
    system: ControlledSystem,
) -> None:
    async with system.running():
        await system.finished(await system.submit())
    state = await system.repository.controller_state()
    assert state is not None
    assert state.note == "the controller was stopped: start ci-controller"
    async with system.running():
        await system.finished(await system.submit())
        state = await system.repository.controller_state()
        assert state is not None
        assert state.note is None
