"""The fast refusal of a second controller, and the cases in which it is not a refusal."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ci_common.clock import SystemClock
from ci_common.errors import ControllerRunning
from ci_common.models import ControllerState
from ci_controller.singleton import lock_file, refuse_if_alive
from tests.support.controller import NOW


class Noon(SystemClock):
    """A clock that says NOW."""

    def now(self) -> datetime:
        return NOW


@dataclass
class Answers:
    """What the database says of the holder, one answer per look."""

    answers: list[ControllerState | None]
    looks: int = field(default=0)

    async def __call__(self) -> ControllerState | None:
        self.looks += 1
        return self.answers.pop(0)


def heard(seconds_ago: float) -> ControllerState:
    return ControllerState(3, "box:1", NOW - timedelta(seconds=seconds_ago))


def test_the_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "ci_jobs.db.lock"
    with lock_file(path) as first:
        with lock_file(path) as second:
            assert (first, second) == (True, False)
        with lock_file(path) as third:
            assert not third, "the second one's leaving gave nothing free"
    with lock_file(path) as fourth:
        assert fourth
    assert path.exists()


@pytest.mark.parametrize("age", [0, 14, -3600])
async def test_a_fresh_heartbeat_is_a_refusal_that_names_the_holder(age: float) -> None:
    with pytest.raises(ControllerRunning, match="box:1"):
        await refuse_if_alive(Answers([heard(age)]), Noon(), second_look=0)


async def test_a_holder_that_was_never_heard_of_is_just_starting() -> None:
    with pytest.raises(ControllerRunning, match="starting"):
        await refuse_if_alive(Answers([None]), Noon(), second_look=0)


async def test_an_old_heartbeat_may_be_of_the_run_before() -> None:
    answers = Answers([heard(3600), heard(0)])
    with pytest.raises(ControllerRunning):
        await refuse_if_alive(answers, Noon(), second_look=0)
    assert answers.looks == 2


async def test_a_silent_holder_may_be_taken_over() -> None:
    answers = Answers([heard(16), heard(18)])
    await refuse_if_alive(answers, Noon(), second_look=0)
    assert answers.looks == 2
