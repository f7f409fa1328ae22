"""Durations by the monotonic clock: what a wall clock that is set must not change."""

from datetime import timedelta

from ci_controller.operations import AttemptKey
from ci_controller.stopwatch import JumpMeter, Stopwatches
from tests.simulation.world import WorldClock

KEY = AttemptKey("job", 1)


def test_a_reading_follows_the_monotonic_clock() -> None:
    clock = WorldClock()
    stopwatches = Stopwatches(clock)
    stopwatches.start(KEY)
    clock.advance(60)
    clock.jump(timedelta(days=1))
    assert stopwatches.readings() == {KEY: timedelta(seconds=60)}


def test_what_is_stopped_does_not_go_on_meanwhile_nor_catches_up() -> None:
    clock = WorldClock()
    stopwatches = Stopwatches(clock)
    stopwatches.start(KEY)
    clock.advance(10)
    with stopwatches.stopped(KEY):
        clock.advance(600)
        assert stopwatches.readings() == {KEY: timedelta(seconds=10)}
    clock.advance(5)
    assert stopwatches.readings() == {KEY: timedelta(seconds=15)}


def test_a_successor_starts_where_the_attempt_is_and_only_once() -> None:
    clock = WorldClock()
    stopwatches = Stopwatches(clock)
    stopwatches.start(KEY, timedelta(minutes=5))
    clock.advance(60)
    stopwatches.start(KEY, timedelta(days=1))
    assert stopwatches.readings() == {KEY: timedelta(minutes=6)}


def test_an_attempt_that_started_in_the_future_has_not_run_yet() -> None:
    stopwatches = Stopwatches(WorldClock())
    stopwatches.start(KEY, timedelta(hours=-1))
    assert stopwatches.readings() == {KEY: timedelta(0)}
    stopwatches.keep_to({KEY})
    assert KEY in stopwatches.readings()
    stopwatches.keep_to(())
    assert stopwatches.readings() == {}


def test_a_jump_ahead_is_measured_and_one_back_is_none() -> None:
    clock = WorldClock()
    meter = JumpMeter(clock)
    clock.advance(1000)
    assert meter.ahead() == timedelta(0)
    clock.jump(timedelta(hours=2))
    clock.advance(10)
    assert meter.ahead() == timedelta(hours=2)
    clock.jump(timedelta(hours=-3))
    assert meter.ahead() == timedelta(0)
