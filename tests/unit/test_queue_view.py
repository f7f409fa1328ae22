"""Why a queued job waits: a table of situations, and the sentence for each."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ci_common.job_terms import JobOptions
from ci_common.models import ControllerState, PoolLimit, QueuePause, QueuePlace, QueueView, UserLimits
from ci_server.queue_view import waiting
from tests.support.repository_contract.story import at, make_job, make_user

NOW = at(100)
ALIVE = ControllerState(1, "controller", NOW)
JOB = make_job(make_user())
GPU = make_job(make_user(), options=JobOptions(pool="gpu"))
UNLIMITED = UserLimits()
TWO = UserLimits(max_running=2)


SEEN = QueueView(places=(), running=0, under_way=2, run_seconds=30.0, controller=ALIVE)


def view(**fields: Any) -> QueueView:
    return replace(SEEN, **fields)


PAUSED = QueuePause(NOW, "eve", "new disks")
BACKING_OFF = make_job(make_user(), not_before=NOW + timedelta(seconds=30))
GONE = ControllerState(1, "controller", at(0))
ALONE = replace(ALIVE, runs_jobs=False)  # a control plane and nothing else
NOTE = ControllerState(1, "controller", NOW, "docker engine does not answer")


@pytest.mark.parametrize(
    ("place", "seen", "limits", "why", "about"),
    [
        (QueuePlace(JOB, 0), view(), UNLIMITED, "next in the queue, waiting for a free slot", 15.0),
        (QueuePlace(JOB, 1), view(), UNLIMITED, "1 job is before it", 30.0),
        (QueuePlace(JOB, 3), view(), UNLIMITED, "3 jobs are before it", 60.0),
        (QueuePlace(JOB, 3), view(run_seconds=None), UNLIMITED, "3 jobs are before it", None),
        (
            QueuePlace(JOB, 0),
            view(under_way=0),
            UNLIMITED,
            "next in the queue, waiting for a free slot",
            30.0,
        ),
        (QueuePlace(JOB, 3), view(running=2, under_way=9), TWO, "2 of your 2 jobs are running", 60.0),
        (QueuePlace(JOB, 3), view(running=1), TWO, "3 jobs are before it", 60.0),
        (QueuePlace(BACKING_OFF, 0), view(), UNLIMITED, "backing off until", 15.0),
        (QueuePlace(BACKING_OFF, 0), view(pause=PAUSED), TWO, "the queue is paused: new disks", None),
        (
            QueuePlace(JOB, 3),
            view(pause=PAUSED, controller=None),
            TWO,
            "the queue is paused: new disks",
            None,
        ),
        (QueuePlace(JOB, 3), view(controller=None), TWO, "no controller has run", None),
        (QueuePlace(JOB, 3), view(controller=GONE), TWO, "the controller is not running", None),
        (QueuePlace(GPU, 0), view(pools={"cpu": NOW}), TWO, "no healthy agent in pool gpu", None),
        (QueuePlace(GPU, 0), view(pools={"gpu": at(60)}), TWO, "no healthy agent in pool gpu", None),
        (QueuePlace(GPU, 1), view(pools={"gpu": at(80)}), TWO, "1 job is before it", 30.0),
        (
            QueuePlace(GPU, 1),
            view(pools={"gpu": at(80)}, full_pools=(PoolLimit("gpu", 2, 2),)),
            TWO,
            "2 of the 2 jobs are running that pool gpu may run",
            30.0,
        ),
        (QueuePlace(JOB, 1), view(full_pools=(PoolLimit("gpu", 2, 2),)), TWO, "1 job is before it", 30.0),
        (QueuePlace(JOB, 0), view(controller=ALONE), TWO, "no healthy agent in pool default", None),
        (
            QueuePlace(JOB, 1),
            view(controller=ALONE, pools={"default": at(80)}),
            TWO,
            "1 job is before it",
            30.0,
        ),
        (QueuePlace(JOB, 3), view(controller=NOTE), TWO, "docker engine does not answer", None),
    ],
)
def test_the_first_obstacle_is_named(
    place: QueuePlace, seen: QueueView, limits: UserLimits, why: str, about: float | None
) -> None:
    found = waiting(place, seen, limits, NOW)
    assert found.why.startswith(why)
    assert found.about_seconds == about
