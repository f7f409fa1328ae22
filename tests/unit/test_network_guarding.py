"""What the controller makes of the jobs' network: no claim and no start without its fence, and tests without any."""

from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ci_common.job_terms import JobStatus, Reason
from ci_controller.container_runtime import ContainerState, NetworkState
from ci_controller.frames import Outcome
from ci_controller.observed_state import Work
from ci_controller.operations import render
from ci_controller.planner import plan
from ci_controller.settings import ControllerSettings
from tests.support.controlled import GO, ControlledSystem, Frames, a_run, controlled_system, eventually
from tests.support.controller import NOW, POLICY, claimed, container, follows, running, stopping, world
from tests.support.fake_runtime import Step, UntilIsolated

BROKEN = NetworkState(broken=("IPv4: INPUT does not lead to our rules first",))
IMPOSSIBLE = NetworkState(trouble="the jobs' network cannot be guarded: no iptables")
ACCEPTED = NetworkState(trouble="jobs run UNGUARDED", accepted=True)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncGenerator[ControlledSystem]:
    async with controlled_system(tmp_path, a_run()) as made:
        yield made


# -- the plan ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [BROKEN, IMPOSSIBLE])
def test_without_its_fence_nothing_is_claimed_and_nothing_started(network: NetworkState) -> None:
    assert plan(world(claimed("a"), claimable=3, network=network), NOW, POLICY) == []


@pytest.mark.parametrize("network", [NetworkState(), ACCEPTED])
def test_with_the_fence_or_with_the_operators_word_jobs_run(network: NetworkState) -> None:
    planned = render(plan(world(claimed("a"), claimable=3, network=network), NOW, POLICY))
    assert planned.splitlines() == [
        "start a/1: claimed, no container",
        "claim 1: 3 queued, 1 of 2 slots free",
    ]


def test_without_the_fence_everything_else_goes_on() -> None:
    observed = world(
        claimed("a", cancel=True), running("b"), container("b", state=ContainerState.EXITED), network=BROKEN
    )
    assert render(plan(observed, NOW, POLICY)) == (
        "finish a/1 (cancelled): cancel requested before it started\nsettle b/1: its container has ended"
    )


def test_a_container_that_has_installed_and_waits_is_isolated() -> None:
    work = follows(container(), awaits_isolation=frozenset({container().id}))
    assert render(plan(world(running(), container(), work=work), NOW, POLICY)) == (
        "isolate a/1: everything is installed, its tests get no network"
    )


def test_whoever_stops_meanwhile_is_stopped_all_the_same() -> None:
    work = follows(container(), awaits_isolation=frozenset({container().id}))
    observed = world(stopping(running(), Reason.TIMEOUT), container(), work=work)
    assert [str(one).split()[0] for one in plan(observed, NOW, POLICY)] == ["isolate", "stop"]


def test_a_container_that_is_not_followed_is_adopted_first() -> None:
    work = Work(awaits_isolation=frozenset({container().id}))
    assert [str(one).split()[0] for one in plan(world(running(), container(), work=work), NOW, POLICY)] == [
        "adopt"
    ]


# -- the controller ----------------------------------------------------------------------------------------


async def test_a_pass_that_finds_the_fence_broken_claims_nothing_and_the_next_one_does(
    system: ControlledSystem,
) -> None:
    controller = system.controller()
    await controller.start()
    try:
        await system.submit()
        system.runtime.network = BROKEN
        assert await controller.reconcile_once() == []
        assert render(await controller.reconcile_once()).startswith("claim 1")
    finally:
        await controller.close()


async def test_a_fence_that_broke_since_it_was_looked_at_is_found_before_anything_starts(
    system: ControlledSystem,
) -> None:
    controller = system.controller()
    await controller.start()
    try:
        await controller.reconcile_once()
        job_id = await system.submit()
        system.runtime.network = BROKEN
        assert render(await controller.take_hint()).startswith("claim 1")
        assert render(await controller.take_hint()).startswith(f"start {job_id}/1")
        await controller.idle()
        assert (await system.job(job_id)).attempt == 1
        assert [attempt.started_at for attempt in await system.repository.open_attempts()] == [None]
        assert not any(one.fed.endswith(GO) for one in system.runtime.containers.values())
    finally:
        await controller.close()


async def test_a_fence_that_broke_is_followed_by_another_pass_at_once(system: ControlledSystem) -> None:
    """The interval is a minute: only our own hint can make the next pass come."""
    system.runtime.network = BROKEN
    job_id = await system.submit()
    async with system.running():
        job = await system.finished(job_id)
    assert job.success


async def test_where_guarding_is_impossible_no_job_runs_and_the_reason_is_said(
    system: ControlledSystem,
) -> None:
    system.runtime.network = IMPOSSIBLE
    job_id = await system.submit()
    async with system.running(interval=0.02):
        await system.noted(IMPOSSIBLE.trouble)
        assert (await system.job(job_id)).status is JobStatus.QUEUED
        assert system.runtime.containers == {}
        system.runtime.network = NetworkState()
        await system.noted(None)
        assert (await system.finished(job_id)).success


async def test_an_operator_who_wants_it_unguarded_is_told_all_the_time(system: ControlledSystem) -> None:
    system.runtime.network = ACCEPTED
    job_id = await system.submit()
    async with system.running():
        assert (await system.finished(job_id)).success
        await system.noted(ACCEPTED.trouble)


def _waiting_for_isolation(fed: bytes) -> Iterator[Step]:
    frames = Frames()
    assert b'"isolate": true' in fed
    yield frames.begun()
    yield frames.event("installed")
    yield UntilIsolated()
    yield frames.trailer(Outcome.TESTS_RAN, exit_code=0, session_finished=True)


async def test_with_no_network_a_job_installs_and_is_isolated_before_its_tests(tmp_path: Path) -> None:
    async with controlled_system(tmp_path, _waiting_for_isolation) as system:
        system.policy = replace(system.policy, network="none")
        job_id = await system.submit()
        async with system.running():
            assert (await system.finished(job_id)).success
        [spec] = {call for call in system.runtime.calls if call[0] == "isolate"}
        assert job_id in spec[1]


async def test_a_successor_isolates_whom_its_predecessor_left_waiting(tmp_path: Path) -> None:
    async with controlled_system(tmp_path, _waiting_for_isolation) as system:
        system.policy = replace(system.policy, network="none")
        dies = Unisolating(system.runtime)
        job_id = await system.submit()
        async with system.running(runtime=dies):
            await eventually(dies.was_asked)
        async with system.running():
            assert (await system.finished(job_id)).success


class Unisolating:
    """Stands in front of an engine that takes nobody off the network."""

    def __init__(self, real: object) -> None:
        self._real = real
        self._asked = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    async def isolate(self, container_id: str) -> None:
        self._asked = bool(container_id)

    async def was_asked(self) -> bool:
        return self._asked


# -- settings ----------------------------------------------------------------------------------------------


def test_the_network_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_JOB_DNS", "10.0.0.53, 10.0.0.54")
    monkeypatch.setenv("CI_JOB_NETWORK_ALLOW", "10.1.2.3:443,10.2.0.0/16")
    monkeypatch.setenv("CI_JOB_NETWORK_UNGUARDED", "1")
    options = ControllerSettings().network_options
    assert [str(one) for one in options.dns] == ["10.0.0.53", "10.0.0.54"]
    assert [(str(one.network), one.port) for one in options.allowed] == [
        ("10.1.2.3/32", 443),
        ("10.2.0.0/16", None),
    ]
    assert options.unguarded
    assert options.bridge.startswith("ci-jobs-")


@pytest.mark.parametrize(
    ("name", "value"),
    [("CI_JOB_DNS", "127.0.0.53"), ("CI_JOB_DNS", "fd00::53"), ("CI_JOB_DNS", "one.one"),
     ("CI_JOB_NETWORK_ALLOW", "pypi.org"), ("CI_JOB_NETWORK_ALLOW", "0.0.0.0/0")],
)  # fmt: skip
def test_what_a_job_could_not_use_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"job_"):
        ControllerSettings()
