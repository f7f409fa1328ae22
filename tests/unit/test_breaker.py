"""The breaker: how long the engine is left alone after it made no container."""

from dataclasses import dataclass

from ci_common.clock import SystemClock
from ci_controller.breaker import Breaker, Trouble


@dataclass
class SetClock(SystemClock):
    """A clock whose monotonic time is set by hand."""

    seconds: float = 1000.0

    def monotonic(self) -> float:
        return self.seconds


def test_nothing_is_wrong_at_first() -> None:
    breaker = Breaker(SetClock())
    assert (breaker.trouble, breaker.next_retry) == (None, None)


def test_every_failed_trial_doubles_the_wait_to_the_next() -> None:
    clock = SetClock()
    breaker = Breaker(clock)
    waits: list[float] = []
    for _ in range(10):
        breaker.failed("no space left")
        breaker.failed("no space left")  # begun together with the other one
        assert breaker.trouble == Trouble("no space left", may_try=False)
        waits.append(breaker.next_retry or 0)
        clock.seconds += waits[-1]
        assert breaker.trouble == Trouble("no space left", may_try=True)
        assert breaker.next_retry is None
    assert waits[:4] == [0.25, 0.5, 1.0, 2.0]
    assert waits[-1] == 30.0


def test_a_container_that_was_made_ends_the_trouble() -> None:
    breaker = Breaker(SetClock())
    breaker.failed("no space left")
    breaker.reset()
    assert (breaker.trouble, breaker.next_retry) == (None, None)


def test_trouble_that_nobody_meets_any_more_is_forgotten() -> None:
    clock = SetClock()
    breaker = Breaker(clock)
    breaker.failed("no space left")
    clock.seconds += 170
    assert breaker.trouble
    clock.seconds += 11
    assert breaker.trouble is None
    breaker.failed("no space left")
    assert breaker.next_retry == 0.25
