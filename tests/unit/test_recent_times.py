"""What is remembered for a while is as large as what is in use."""

import math

from ci_server.recent_times import RecentTimes


def test_only_the_latest_time_is_known_and_only_for_a_while() -> None:
    times = RecentTimes(60)
    assert times.of("a") == -math.inf
    times.note("a", 1.0)
    times.note("b", 2.0)
    times.note("a", 3.0)
    assert (times.of("a"), times.of("b"), len(times)) == (3.0, 2.0, 2)
    times.note("c", 62.5)
    assert (times.of("a"), times.of("b"), times.of("c"), len(times)) == (3.0, -math.inf, 62.5, 2)


def test_a_thousand_that_come_one_after_another_take_the_room_of_those_of_a_minute() -> None:
    times = RecentTimes(60)
    for second in range(1000):
        times.note(str(second), float(second))
    assert len(times) == 61
