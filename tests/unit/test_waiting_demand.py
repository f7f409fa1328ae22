"""Which containers are to wait: the table of sizes, and what keeps one from waiting."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ci_controller.container_runtime import ContainerState, NetworkState, ObservedContainer
from ci_controller.host_memory import available_memory
from ci_controller.observed_state import Observed, Work
from ci_controller.operations import Claim
from ci_controller.policy import Policy
from ci_controller.waiting_demand import (
    MIN_MEMORY,
    RECENT,
    Assignment,
    Decision,
    Situation,
    Waiting,
    decide,
    situation_of,
    wanted,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AGE = timedelta(minutes=10)
BARE = "bare"
QUIET = Situation(free_slots=4, is_quiet=True)
POLICY = Policy(max_running_jobs=2)


def assigned(images: str, first: float = 0, owner: str = "ada") -> list[Assignment]:
    """One job after the other, a second apart; `-` is the bare image."""
    return [Assignment(BARE if one == "-" else one, first + at, owner) for at, one in enumerate(images)]


@pytest.mark.parametrize(
    ("images", "count", "expected"),
    [
        ("", 2, ""),
        ("a", 2, "a"),
        ("aa", 2, "aa"),
        ("aaaa", 2, "aa"),
        ("ab", 2, "ba"),
        ("abb", 2, "ba"),
        ("abb", 3, "bab"),
        ("abc", 2, "cb"),
        ("abca", 2, "ac"),
        ("-", 2, "-"),
        ("----", 2, "-"),
        ("--a", 3, "a-"),
        ("aa", 0, ""),
    ],
)
def test_what_was_used_last_is_wanted_first_and_only_the_often_used_twice(
    images: str, count: int, expected: str
) -> None:
    found = wanted(assigned(images), BARE, count, now=10)
    assert found == tuple(BARE if one == "-" else one for one in expected)


@pytest.mark.parametrize(
    ("hers", "his", "count", "expected"),
    [
        ("abab", "x", 2, "bx"),  # the earlier one of hers would be wanted more than his
        ("abab", "x", 3, "bax"),
        ("aaaa", "xx", 4, "axax"),
        ("aaaa", "x", 4, "axa"),  # a place that is over stays empty
        ("ab", "x", 1, "b"),
        ("ab", "-", 2, "b-"),  # what nobody owns takes nobody's place
        ("a", "-x", 3, "a-x"),
        ("ab", "", 2, "ba"),
    ],
)
def test_of_several_owners_none_has_more_than_half_of_the_places(
    hers: str, his: str, count: int, expected: str
) -> None:
    uses = assigned(his, owner="grace") + assigned(hers, first=100)
    found = wanted(uses, BARE, count, now=200)
    assert sorted(found) == sorted(BARE if one == "-" else one for one in expected)


def test_who_had_no_job_lately_takes_no_places_from_another() -> None:
    uses = assigned("x", owner="grace") + assigned("ab", first=100)
    assert wanted(uses, BARE, 2, now=RECENT + 50) == ("b", "a")


def test_what_was_used_long_ago_is_not_wanted() -> None:
    uses = assigned("a") + assigned("b", first=100)
    assert wanted(uses, BARE, 2, now=RECENT + 50) == ("b",)
    assert wanted(uses, BARE, 2, now=RECENT + 101) == ()


def test_one_is_made_at_a_time_of_what_is_wanted_most() -> None:
    assert decide([], ("b", "a"), QUIET, AGE, now=0) == Decision(made_of="b")
    assert decide([Waiting("1", "b", 0)], ("b", "a"), QUIET, AGE, now=0) == Decision(made_of="a")
    both = [Waiting("1", "b", 0), Waiting("2", "a", 0)]
    assert decide(both, ("b", "a"), QUIET, AGE, now=0) == Decision()


@pytest.mark.parametrize("situation", [replace(QUIET, is_quiet=False), replace(QUIET, free_slots=1)])
def test_none_is_made_while_somebody_could_notice_or_where_no_job_could_run_in_it(
    situation: Situation,
) -> None:
    """What waits already stays: an idle one takes memory, no slot."""
    assert decide([Waiting("1", "a", 0)], ("a", "a"), situation, AGE, now=0) == Decision()


def test_the_youngest_stay() -> None:
    waiting = [Waiting("old", "a", 0), Waiting("young", "a", 5)]
    decision = decide(waiting, ("a",), QUIET, AGE, now=6)
    assert decision == Decision((("old", "others are wanted more"),))


def test_who_waited_long_enough_is_replaced() -> None:
    waiting = [Waiting("1", "a", 0)]
    assert decide(waiting, ("a",), QUIET, AGE, now=599) == Decision()
    assert decide(waiting, ("a",), QUIET, AGE, now=600) == Decision((("1", "it waited long enough"),), "a")


def test_who_has_ended_is_replaced() -> None:
    decision = decide([Waiting("1", "a", 0)], ("a",), replace(QUIET, unfit=frozenset({"1"})), AGE, now=0)
    assert decision == Decision((("1", "it has ended, or takes too much of the disk"),), "a")


def test_in_trouble_all_go_and_none_is_made() -> None:
    decision = decide([Waiting("1", "a", 0)], ("a", "b"), replace(QUIET, trouble="low"), AGE, now=0)
    assert decision == Decision((("1", "low"),))


# -- what a pass found -------------------------------------------------------------------------------------


def found(observed: Observed, memory: int | None = 4 * MIN_MEMORY) -> Situation:
    return situation_of(observed, [], POLICY, memory, NOW)


def test_an_idle_machine_is_quiet() -> None:
    assert found(Observed()) == Situation(free_slots=2, is_quiet=True)
    assert found(Observed(), memory=None).is_quiet


@pytest.mark.parametrize(
    "observed",
    [
        Observed(network=NetworkState(broken=("a rule",))),
        Observed(network=NetworkState(trouble="none")),
        Observed(work=Work(low_disk="low")),
    ],
)
def test_trouble_is_a_broken_fence_or_a_low_disk(observed: Observed) -> None:
    assert found(observed).trouble


def test_memory_that_runs_out_is_trouble_and_scarce_memory_a_reason_to_make_none() -> None:
    assert found(Observed(), MIN_MEMORY - 1).trouble
    scarce = found(Observed(), 2 * MIN_MEMORY - 1)
    assert (scarce.trouble, scarce.is_quiet) == (None, False)


def test_it_is_not_quiet_while_somebody_waits_or_is_claimed() -> None:
    assert not found(Observed(claimable=1)).is_quiet
    assert not situation_of(Observed(), [Claim(1, "why")], POLICY, None, NOW).is_quiet


def test_unfit_is_what_has_ended_and_what_the_disk_watch_names() -> None:
    def listed(name: str, state: ContainerState) -> ObservedContainer:
        return ObservedContainer(name, name, {}, state, NOW)

    containers = (listed("dead", ContainerState.EXITED), listed("alive", ContainerState.RUNNING))
    observed = Observed(containers=containers, work=Work(over_disk={"greedy": "why"}))
    assert found(observed).unfit == {"dead", "greedy"}


def test_this_host_says_how_much_memory_it_can_give() -> None:
    assert (available_memory() or 0) > 0
