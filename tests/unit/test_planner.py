"""The planner, by the text of its plans and by properties that hold for every observation."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ci_common.job_terms import JobOptions, Reason
from ci_common.models import Attempt
from ci_controller import labels
from ci_controller.breaker import Trouble
from ci_controller.container_runtime import ContainerState, ObservedContainer
from ci_controller.harness.harness import ISOLATION_SECONDS
from ci_controller.observed_state import Observed, Work
from ci_controller.operations import (
    AdoptContainer,
    AttemptKey,
    Claim,
    FinishAttempt,
    IsolateContainer,
    Operation,
    ReleaseAttempt,
    RemoveContainer,
    SettleAttempt,
    StartContainer,
    StopContainer,
    StopKey,
    key_of,
    render,
    work_key,
)
from ci_controller.planner import plan
from tests.support.controller import (
    IMAGE,
    NOW,
    POLICY,
    ago,
    claimed,
    container,
    ended,
    follows,
    running,
    sent,
    stopping,
    waiting,
    world,
)
from tests.support.soak import SOAKING

CREATED, RUNNING, EXITED = ContainerState.CREATED, ContainerState.RUNNING, ContainerState.EXITED
KEY = AttemptKey("a", 1)


def planned(observed: Observed) -> str:
    return render(plan(observed, NOW, POLICY))


# -- claiming ----------------------------------------------------------------------------------------------


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert planned(world()) == ""


def test_claims_as_many_as_there_are_slots() -> None:
    assert planned(world(claimable=5)) == "claim 2: 5 queued, 2 of 2 slots free"


def test_claims_no_more_than_are_queued() -> None:
    assert planned(world(claimable=1)) == "claim 1: 1 queued, 2 of 2 slots free"


def test_who_waits_for_an_environment_holds_no_slot_and_starts_when_nobody_builds_it() -> None:
    one, waits = container("a"), key_of(claimed("b"))
    builds = world(running("a"), claimed("b"), one, claimable=3, work=follows(one))
    waiting_ = replace(builds, work=replace(builds.work, awaits_environment=frozenset({waits})))
    assert planned(waiting_) == "claim 1: 3 queued, 1 of 2 slots free"
    over = replace(builds, work=replace(builds.work, awaited_environment=frozenset({waits})))
    assert planned(over) == "start b/1: the environment that it waited for is no longer built"


def test_who_is_to_be_cancelled_waits_for_no_environment() -> None:
    waits = Work(awaits_environment=frozenset({KEY}))
    assert planned(world(claimed("a", cancel=True), work=waits)) == (
        "finish a/1 (cancelled): cancel requested before it started"
    )


def test_only_so_many_wait_for_an_environment() -> None:
    attempts = [claimed(name) for name in "abcd"]
    waits = Work(awaits_environment=frozenset(key_of(one) for one in attempts))
    assert planned(world(*attempts[:3], claimable=9, work=waits)) == "claim 1: 9 queued, 1 of 2 slots free"
    assert planned(world(*attempts, claimable=9, work=waits)) == ""


def test_who_gave_its_slot_away_starts_when_there_is_one_again() -> None:
    one = container("a")
    observed = world(running("a"), claimed("b"), claimed("c"), one, claimable=9, work=follows(one))
    assert planned(observed) == "start b/1: claimed, no container"


def test_claims_nothing_while_every_slot_is_taken() -> None:
    one, two = container("a"), container("b")
    observed = world(running("a"), running("b"), one, two, claimable=3, work=follows(one, two))
    assert planned(observed) == ""


def test_claims_nothing_without_the_runner_image() -> None:
    assert planned(world(claimable=3, image_id=None)) == ""


def test_a_container_that_outlived_its_attempt_keeps_its_slot() -> None:
    one, two = container("a"), container("b")
    observed = world(one, two, ended=ended(one, two), claimable=1)
    assert planned(observed) == (
        "remove job-a-1: its attempt has ended\nremove job-b-1: its attempt has ended"
    )


def test_what_waits_or_was_never_fed_takes_no_slot() -> None:
    kept = waiting(RUNNING)
    ours = world(kept, claimable=5, work=Work(ours=frozenset({kept.name})))
    assert planned(ours) == "claim 2: 5 queued, 2 of 2 slots free"
    assert planned(world(kept, claimable=5)).endswith("claim 2: 5 queued, 2 of 2 slots free")


def test_what_was_never_fed_and_cannot_be_removed_keeps_its_slot() -> None:
    stuck = waiting(RUNNING)
    observed = world(stuck, claimable=5, work=Work(irremovable=frozenset({stuck.id})))
    assert planned(observed).endswith("claim 1: 5 queued, 1 of 2 slots free")


def test_a_claim_comes_after_everything_else() -> None:
    observed = world(container("a"), ended=ended(container("a")), claimable=1)
    assert planned(observed) == (
        "remove job-a-1: its attempt has ended\nclaim 1: 1 queued, 1 of 2 slots free"
    )


def test_while_the_engine_makes_no_containers_nothing_is_claimed() -> None:
    assert planned(world(claimable=5, work=Work(trouble=Trouble("no space left")))) == ""


def test_one_job_at_a_time_tries_the_engine_again() -> None:
    trying = Work(trouble=Trouble("no space left", may_try=True))
    expected = "claim 1: 5 queued, one tries whether the engine makes containers again"
    assert planned(world(claimable=5, work=trying)) == expected
    busy = replace(trying, busy=frozenset({KEY}))
    assert planned(world(claimed(), claimable=5, work=busy)) == ""
    runs = replace(trying, followed=frozenset({container().id}))
    assert planned(world(running(), container(), claimable=5, work=runs)) == expected


# -- before a container runs -------------------------------------------------------------------------------


def test_a_claimed_attempt_is_started() -> None:
    assert planned(world(claimed())) == "start a/1: claimed, no container"


@pytest.mark.parametrize("state", list(ContainerState))
def test_a_container_that_was_never_fed_is_removed_at_once_and_its_attempt_started_anew(
    state: ContainerState,
) -> None:
    observed = world(claimed(), waiting(state))
    assert planned(observed) == (
        "start a/1: claimed, no container\nremove waiting-0123456789ab: it was never fed, and nobody keeps it"
    )


@pytest.mark.parametrize("state", list(ContainerState))
def test_what_this_process_makes_or_assigns_is_left_alone(state: ContainerState) -> None:
    one = waiting(state, age=10**6)
    observed = world(one, claimable=3, work=Work(ours=frozenset({one.name})))
    assert planned(observed) == "claim 2: 3 queued, 2 of 2 slots free"


def test_a_container_that_was_recorded_and_never_got_its_name_is_its_attempts() -> None:
    """Its input ended with whoever recorded it: it says so itself, and is settled as any other."""
    one = replace(waiting(EXITED), id="c-a-1")
    assert planned(world(running(), one)) == "settle a/1: its container has ended"
    assert planned(world(one, ended={one.id: KEY})) == "remove waiting-0123456789ab: its attempt has ended"


def test_a_container_with_a_claimed_attempts_name_is_nobodys() -> None:
    """As after a restore: the row is older than the container, which may have run the job."""
    observed = world(claimed(), container(age=59))
    assert planned(observed) == "start a/1: claimed, no container"
    late = world(claimed(), container(age=60))
    expected = "start a/1: claimed, no container\nremove job-a-1: an orphan: no attempt knows it"
    assert planned(late) == expected


def test_a_claimed_attempt_is_given_back_when_the_image_went_missing() -> None:
    assert planned(world(claimed(), image_id=None)) == "release a/1: the runner image is missing"


def test_a_cancel_before_the_start_finishes_the_job() -> None:
    expected = "finish a/1 (cancelled): cancel requested before it started"
    assert planned(world(claimed(cancel=True))) == expected


# -- while it runs -----------------------------------------------------------------------------------------


def test_a_running_container_is_left_alone() -> None:
    observed = world(running(), container(), work=follows(container()))
    assert planned(observed) == ""


def test_a_running_container_that_nobody_reads_is_adopted() -> None:
    assert planned(world(running(), container())) == "adopt a/1: it runs and nobody reads its output"


def test_the_recorded_container_is_the_one_that_counts() -> None:
    other = replace(container(), id="another", state=EXITED)
    observed = world(running(), other, container(), work=follows(container()))
    assert planned(observed) == ""


def test_a_cancel_is_a_sigint_first() -> None:
    observed = world(running(cancel=True), container(), work=follows(container()))
    assert planned(observed) == "stop a/1 by SIGINT (cancelled): cancel requested"


def test_a_cancel_that_was_recorded_before_a_crash_is_carried_out() -> None:
    attempt = stopping(running(cancel=True), Reason.CANCELLED, since=3600)
    observed = world(attempt, container(), work=follows(container()))
    assert planned(observed) == "stop a/1 by SIGINT (cancelled): its cancel is recorded"


@pytest.mark.parametrize(("seconds", "expected"), [(24, ""), (25, "its grace is over")])
def test_sigkill_when_the_grace_is_over(seconds: float, expected: str) -> None:
    attempt = stopping(running(cancel=True), Reason.CANCELLED, since=seconds)
    observed = world(attempt, container(), work=follows(container(), signals=sent("SIGINT", seconds)))
    assert planned(observed) == (f"stop a/1 by SIGKILL (cancelled): {expected}" if expected else "")


@pytest.mark.parametrize(("seconds", "stops"), [(1800, False), (1824, False), (1825, True)])
def test_the_deadline_has_a_second_line(seconds: float, stops: bool) -> None:
    """At 1800 s the harness asks by SIGINT, 10 s later by SIGTERM, kills after 5 more and has 10 for its last word.
    Who is still there then did not act on its own deadline: our first signal is the last one."""
    observed = world(running(since=seconds), container(), work=follows(container()))
    assert planned(observed) == ("stop a/1 by SIGKILL (timeout): past its deadline" if stops else "")


@pytest.mark.parametrize(("seconds", "stops"), [(1884, False), (1885, True)])
def test_the_wait_for_the_network_to_go_is_not_taken_for_a_stuck_harness(seconds: float, stops: bool) -> None:
    """The harness takes that wait off its deadline; how long it took is only known to it."""
    observed = world(running(since=seconds), container(), work=follows(container()))
    isolating = replace(POLICY, network="none")
    assert bool(plan(observed, NOW, isolating)) == stops
    assert isolating.isolation_patience == timedelta(seconds=ISOLATION_SECONDS)


def test_a_submitter_may_ask_for_another_time_out() -> None:
    attempt = running(since=60)
    quick = replace(attempt, job=replace(attempt.job, options=JobOptions(timeout_seconds=30)))
    observed = world(quick, container(), work=follows(container()))
    assert planned(observed) == "stop a/1 by SIGKILL (timeout): past its deadline"


def test_a_log_past_its_limit_is_the_end() -> None:
    work = follows(container(), over_limit=frozenset({KEY}))
    observed = world(running(), container(), work=work)
    assert planned(observed) == "stop a/1 by SIGKILL (log_limit): log limit reached"


def test_a_recorded_stop_that_nobody_asked_for_kills() -> None:
    observed = world(stopping(running(), Reason.TIMEOUT), container(), work=follows(container()))
    assert planned(observed) == "stop a/1 by SIGKILL (timeout): its stop is recorded"


def test_a_killed_container_is_waited_for_and_then_given_up() -> None:
    attempt = stopping(running(), Reason.TIMEOUT, since=60)
    waiting = follows(container(), signals=sent("SIGKILL", 59))
    assert planned(world(attempt, container(), work=waiting)) == ""
    enough = follows(container(), signals=sent("SIGKILL", 60))
    assert (
        planned(world(attempt, container(), work=enough)) == "finish a/1 (timeout): it outlived its SIGKILL"
    )


# -- the end -----------------------------------------------------------------------------------------------


def test_an_ended_container_is_settled() -> None:
    assert planned(world(running(), container(state=EXITED))) == "settle a/1: its container has ended"


def test_a_container_that_said_its_last_word_is_settled_although_it_is_still_listed_as_running() -> None:
    work = follows(container(), finished=frozenset({container().id}))
    assert planned(world(running(), container(), work=work)) == "settle a/1: its last word was read"
    assert planned(world(running(since=4000), container(), work=work)) == (
        "settle a/1: its last word was read\nstop a/1 by SIGKILL (timeout): past its deadline"
    )


def test_a_vanished_container_is_infrastructure() -> None:
    assert planned(world(running())) == "release a/1: its container is gone"


def test_a_vanished_container_that_was_being_stopped_ends_as_decided() -> None:
    observed = world(stopping(running(), Reason.TIMEOUT))
    assert planned(observed) == "finish a/1 (timeout): its container is gone after the stop"


@pytest.mark.parametrize("state", list(ContainerState))
def test_the_container_of_an_ended_attempt_is_removed(state: ContainerState) -> None:
    observed = world(container(state=state), ended=ended(container()))
    assert planned(observed) == "remove job-a-1: its attempt has ended"


def test_an_earlier_attempts_container_is_removed_while_the_next_one_starts() -> None:
    observed = world(claimed(number=2), container(), ended=ended(container()))
    assert planned(observed) == "start a/2: claimed, no container\nremove job-a-1: its attempt has ended"


@pytest.mark.parametrize(("age", "goes"), [(59, False), (60, True)])
def test_an_orphan_has_a_grace(age: float, goes: bool) -> None:
    expected = "remove job-a-1: an orphan: no attempt knows it" if goes else ""
    assert planned(world(container(age=age))) == expected


@pytest.mark.parametrize("kind", [labels.KIND_PROBE, "waiting"])
def test_a_container_that_runs_no_attempt_is_never_touched(kind: str) -> None:
    assert planned(world(container(age=10**6, kind=kind))) == ""


# -- what is in flight -------------------------------------------------------------------------------------


def test_what_is_in_flight_is_left_alone() -> None:
    observed = world(claimed(), container("b", age=100), work=Work(busy=frozenset({KEY, "c-b-1"})))
    assert planned(observed) == ""


def test_a_container_is_not_removed_while_the_end_of_its_attempt_is_in_flight() -> None:
    observed = world(container(), ended=ended(container()), work=Work(busy=frozenset({KEY})))
    assert planned(observed) == ""


def test_a_cancel_does_not_wait_for_the_feed() -> None:
    work = follows(container(), busy=frozenset({KEY}))
    observed = world(running(cancel=True), container(), work=work)
    assert planned(observed) == "stop a/1 by SIGINT (cancelled): cancel requested"


# -- properties --------------------------------------------------------------------------------------------

names = st.sampled_from("abc")
numbers = st.integers(1, 2)
ages = st.sampled_from([0.0, 30.0, 70.0, 700.0, 4000.0])
stops = st.sampled_from([None, Reason.CANCELLED, Reason.TIMEOUT, Reason.LOG_LIMIT])


@st.composite
def attempts(draw: st.DrawFn) -> Attempt:
    name, number, cancel = draw(names), draw(numbers), draw(st.booleans())
    if draw(st.booleans()):
        return claimed(name, number, cancel=cancel)
    attempt = running(name, number, since=draw(ages), cancel=cancel)
    reason = draw(stops)
    return stopping(attempt, reason, since=draw(ages)) if reason else attempt


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    held = draw(st.lists(attempts(), max_size=3, unique_by=lambda one: one.fence.job_id))
    present = st.builds(container, names, numbers, st.sampled_from(list(ContainerState)), age=ages)
    containers = draw(st.lists(present, max_size=4, unique_by=lambda one: one.id))
    keys = [key_of(one) for one in held]
    recorded = {one.container_id for one in held}
    over = [one for one in containers if one.id not in recorded and draw(st.booleans())]
    idle = draw(st.lists(st.builds(waiting, st.sampled_from(list(ContainerState)), age=ages), max_size=1))
    return Observed(
        tuple(held),
        (*containers, *idle),
        ended=ended(*over),
        claimable=draw(st.integers(0, 5)),
        image_id=draw(st.sampled_from([IMAGE, None])),
        work=Work(
            busy=frozenset(key for key in keys if draw(st.booleans())),
            followed=frozenset(one.id for one in containers if draw(st.booleans())),
            finished=frozenset(one.id for one in containers if draw(st.booleans())),
            signals={
                key: next(iter(sent(draw(st.sampled_from(["SIGINT", "SIGKILL"])), draw(ages)).values()))
                for key in keys
                if draw(st.booleans())
            },
            trouble=draw(st.sampled_from([None, Trouble("no"), Trouble("no", may_try=True)])),
            ours=frozenset(one.name for one in idle if draw(st.booleans())),
        ),
    )


_examples = settings(
    max_examples=1000 if SOAKING else 30,
    deadline=None,  # of a busy machine neither says anything
    suppress_health_check=(HealthCheck.too_slow,),
)


@given(observations())
@_examples
def test_at_most_one_operation_per_key_and_none_that_is_busy(observed: Observed) -> None:
    operations = [one for one in plan(observed, NOW, POLICY) if not isinstance(one, Claim)]
    keys = [work_key(one) for one in operations]
    assert len(keys) == len(set(keys))
    assert not observed.work.busy & set(keys)


@given(observations())
@_examples
def test_never_a_second_container_for_an_attempt(observed: Observed) -> None:
    started = [one.attempt for one in plan(observed, NOW, POLICY) if isinstance(one, StartContainer)]
    assert all(attempt.container_id is None for attempt in started)


@given(observations())
@_examples
def test_never_removes_what_is_not_settled(observed: Observed) -> None:
    by_id = {one.id: one for one in observed.containers}
    held = {one.container_id for one in observed.attempts}
    for operation in plan(observed, NOW, POLICY):
        if isinstance(operation, RemoveContainer):
            removed = by_id[operation.container_id]
            assert removed.id not in held
            assert removed.name not in observed.work.ours
            never_fed = removed.name.startswith("waiting-")
            assert removed.id in observed.ended or never_fed or removed.created_at <= ago(60)


@given(observations())
@_examples
def test_never_more_than_the_slots(observed: Observed) -> None:
    claims = [one for one in plan(observed, NOW, POLICY) if isinstance(one, Claim)]
    assert len(claims) <= 1
    for claim in claims:
        assert 0 < claim.slots <= observed.claimable
        assert claim.slots + len(observed.attempts) <= POLICY.max_running_jobs
        assert observed.image_id


@given(observations())
@_examples
def test_the_same_observation_gives_the_same_plan(observed: Observed) -> None:
    assert planned(observed) == planned(replace(observed))


@given(observations())
@_examples
def test_applying_plans_comes_to_rest(observed: Observed) -> None:
    """A world in which every operation works has nothing left to do after a few plans."""
    observed = replace(observed, work=replace(observed.work, busy=frozenset()))
    now = NOW
    for _ in range(20):
        operations = plan(observed, now, POLICY)
        if not operations:
            return
        observed = _applied(observed, operations)
        now += timedelta(seconds=1)
    raise AssertionError(f"still busy: {render(plan(observed, now, POLICY))}")


def _applied(observed: Observed, operations: list[Operation]) -> Observed:
    for operation in operations:
        observed = _apply(observed, operation)
    return observed


def _apply(observed: Observed, operation: Operation) -> Observed:
    """What the world looks like once the operation worked; a stopped container exits at once."""
    match operation:
        case Claim(slots):
            fresh = [claimed(f"new-{observed.claimable}-{index}") for index in range(slots)]
            return replace(
                observed,
                attempts=(*observed.attempts, *fresh),
                claimable=observed.claimable - slots,
            )
        case StartContainer(attempt):
            started = running(*key_of(attempt), since=0)
            made = container(*key_of(attempt))
            return _followed(_with(_without(observed, made.id), started, made), made.id)
        case RemoveContainer(container_id):
            return _without(observed, container_id)
        case StopContainer(attempt, container_id, _, reason):
            found = next(one for one in observed.containers if one.id == container_id)
            stopped = attempt if attempt.stop else stopping(attempt, reason, since=0)
            return _with(observed, stopped, replace(found, state=EXITED))
        case AdoptContainer(_, container_id):
            return _followed(observed, container_id)
        case IsolateContainer(_, container_id):
            waiting = observed.work.awaits_isolation - {container_id}
            return replace(observed, work=replace(observed.work, awaits_isolation=waiting))
        case SettleAttempt(attempt) | FinishAttempt(attempt) | ReleaseAttempt(attempt):
            return _ended(observed, attempt)


def _with(observed: Observed, attempt: Attempt, one: ObservedContainer) -> Observed:
    others = tuple(other for other in observed.attempts if key_of(other) != key_of(attempt))
    containers = tuple(other for other in observed.containers if other.id != one.id)
    return replace(observed, attempts=(*others, attempt), containers=(*containers, one))


def _without(observed: Observed, container_id: str) -> Observed:
    return replace(observed, containers=tuple(one for one in observed.containers if one.id != container_id))


def _ended(observed: Observed, attempt: Attempt) -> Observed:
    key = key_of(attempt)
    left = tuple(one for one in observed.attempts if key_of(one) != key)
    over = {attempt.container_id: key} if attempt.container_id else {}
    return replace(observed, attempts=left, ended={**observed.ended, **over})


def _followed(observed: Observed, container_id: str) -> Observed:
    work = replace(observed.work, followed=observed.work.followed | {container_id})
    return replace(observed, work=work)


def test_stopping_has_a_key_of_its_own() -> None:
    observed = world(running(cancel=True), container())
    assert [work_key(one) for one in plan(observed, NOW, POLICY) if not isinstance(one, Claim)] == [
        KEY,
        StopKey(KEY),
    ]
