"""When one that waits believes that the leader is gone: by what changed, and by nobody's wall clock."""

from dataclasses import replace
from datetime import timedelta

import pytest

from ci_common.models import ControllerState
from ci_controller.vigil import Vigil
from tests.support.controller import NOW

LEADER = ControllerState(7, "box:1", NOW)


def beat(number: int, epoch: int = 7) -> ControllerState:
    """Return what its n-th heartbeat leaves behind, by a clock that goes backwards."""
    return replace(LEADER, epoch=epoch, heartbeat_at=NOW - timedelta(hours=number))


def watch(vigil: Vigil, state: ControllerState, *seconds: float, has_session: bool = True) -> list[bool]:
    """Look at those times; returns at which of them the leader counted as gone."""
    return [vigil.is_over(state, has_session=has_session, now=now) is not None for now in seconds]


def test_where_there_was_none_there_is_nothing_to_wait_for() -> None:
    assert Vigil().is_over(None, has_session=False, now=5) == "there was none"


def test_one_that_was_stopped_is_gone_at_once() -> None:
    assert Vigil().is_over(replace(LEADER, is_released=True), has_session=True, now=5) == "it was stopped"


def test_one_whose_heartbeat_changes_lives_whatever_its_clock_says() -> None:
    vigil = Vigil()
    assert not any(any(watch(vigil, beat(n), 3.0 * n, 3.0 * n + 1, 3.0 * n + 2)) for n in range(20))


def test_silence_counts_from_when_it_was_seen() -> None:
    """However old the heartbeat says it is."""
    vigil = Vigil()
    old = beat(10_000)
    assert watch(vigil, old, *range(100, 118)) == [False] * 15 + [True] * 3


def test_a_session_that_ended_shortens_the_wait() -> None:
    vigil = Vigil()
    assert watch(vigil, LEADER, 0, 1) == [False, False]
    assert watch(vigil, LEADER, 2, 2.9, 3.0, has_session=False) == [False, False, True]


def test_a_session_that_comes_back_in_time_was_only_cut() -> None:
    vigil = Vigil()
    assert watch(vigil, LEADER, 0, 0.9, has_session=False) == [False, False]
    assert watch(vigil, LEADER, 1.5) == [False]
    assert watch(vigil, LEADER, 2, 2.9, has_session=False) == [False, False]


def test_one_that_beats_without_a_session_lives() -> None:
    vigil = Vigil()
    assert watch(vigil, beat(1), 0, 0.9, has_session=False) == [False, False]
    assert watch(vigil, beat(2), 1.1, 2.0, has_session=False) == [False, False]


def test_a_successor_is_a_new_leader() -> None:
    vigil = Vigil()
    assert watch(vigil, LEADER, *range(14)) == [False] * 14
    assert watch(vigil, replace(LEADER, epoch=8), *range(14, 29)) == [False] * 15


@pytest.mark.parametrize("away", [5.0, 3600.0])
def test_nobody_is_gone_because_we_did_not_look(away: float) -> None:
    """A waiting process that was stopped, or a machine that slept."""
    vigil = Vigil()
    assert watch(vigil, LEADER, 0, 1, has_session=False) == [False, True]
    assert watch(vigil, LEADER, 1 + away, has_session=False) == [False]
    silent = Vigil()
    assert watch(silent, LEADER, *range(14)) == [False] * 14
    assert watch(silent, LEADER, 13 + away) == [False]


def test_what_was_forgotten_proves_nothing() -> None:
    vigil = Vigil()
    watch(vigil, LEADER, *range(14))
    vigil.forget()
    assert watch(vigil, LEADER, 15, 16) == [False, False]


def test_a_heartbeat_is_heard_if_another_one_was_seen_before_it() -> None:
    vigil = Vigil()
    watch(vigil, beat(1), 0, 1, 2)
    assert not vigil.has_heard, "a row says nothing about who wrote it"
    watch(vigil, beat(2), 3, 4)
    assert vigil.has_heard
    watch(vigil, beat(3), 60)
    assert not vigil.has_heard, "what came while nobody looked may be of long ago"


def test_one_that_may_return_is_waited_for_without_its_session() -> None:
    vigil, stopped = Vigil(), replace(LEADER, is_released=True)
    whys = [vigil.is_over(stopped, has_session=False, now=now, may_return=True) for now in range(0, 17, 4)]
    assert whys == [None] * 4 + ["it is silent for 16 s"]


def test_a_question_that_took_long_is_no_gap() -> None:
    vigil = Vigil()
    assert watch(vigil, LEADER, *range(0, 17, 4)) == [False] * 4 + [True]
    vigil.asked(30)
    assert watch(vigil, LEADER, 31) == [True]
