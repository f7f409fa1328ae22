"""The checker of agents' histories itself: a right history passes, and each way of being wrong is seen."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ci_common.job_terms import JobStatus
from ci_common.models import Fence
from tests.support.agent_histories import Act, Ended, History, What
from tests.support.agent_history_checks import CHECKS, violations

Acts = Sequence[Act]


def act(what: What, place: int, attempt: int = 0, token: str = "", **fields: Any) -> Act:
    """Return what was called at that place in the order, and answered before anything else was."""
    fence = Fence("job", attempt, token or f"token-{attempt}") if attempt else None
    known: dict[str, Any] = {"holder": "rack", "job": "job" if attempt else "", "fence": fence, "at": place}
    return Act(what, 10 * place, 10 * place + 1, **{**known, **fields})


def during(one: Act, begin: int, end: int) -> Act:
    """Return the same, called and answered at these places."""
    return replace(one, began=10 * begin, ended=10 * end)


# An agent registers, loses its first run by silence and its second to the engine; its successor ends the job.
RIGHT: Acts = (
    act(What.SUBMIT, 1, job="job"),
    act(What.REGISTER, 2, word=1),
    act(What.CLAIM, 3, 1, word=1),
    act(What.START, 4, 1),
    act(What.BEGIN, 5, 1),
    act(What.EXPIRE, 40, job="job"),
    act(What.FINISH, 41, 1, word=1, status=JobStatus.COMPLETED, accepted=False),
    act(What.CLAIM, 42, 2, word=1),
    act(What.BEGIN, 43, 2),
    act(What.RELEASE, 44, 2, word=2, status=JobStatus.QUEUED),
    act(What.CLAIM, 45, 3, word=1),
    act(What.BEGIN, 46, 3),
    act(What.REGISTER, 47, word=2),
    act(What.LOOK, 48, 3, "renewed"),
    act(What.BEGIN, 49, 3, accepted=False),
    act(What.FINISH, 50, 3, "renewed", word=3, status=JobStatus.COMPLETED),
)
TIMELINE = (
    *("submitted", "claimed", "running", "released", "claimed", "running", "released"),
    *("claimed", "running", "completed"),
)
ENDED = Ended(JobStatus.COMPLETED, 3, 3, TIMELINE)


def history(acts: Acts = RIGHT, ended: Ended = ENDED, most: int = 3, slots: int = 1) -> History:
    return History(acts, {"job": ended}, {"job": most}, {"rack": slots})


def without(*places: int) -> Acts:
    return [one for one in RIGHT if one.began // 10 not in places]


def with_(*more: Act) -> Acts:
    return [*RIGHT, *more]


def changed(place: int, change: Callable[[Act], Act]) -> Acts:
    return [change(one) if one.began == 10 * place else one for one in RIGHT]


CANCEL = act(What.CANCEL, 42, job="job", status=JobStatus.RUNNING)
FINISH = What.FINISH
DONE = JobStatus.COMPLETED

WRONG: dict[str, tuple[History, str]] = {
    "an attempt was claimed twice": (history(with_(act(What.CLAIM, 45, 3, word=1))), "as attempts"),
    "an attempt was passed over": (history(without(42, 43, 44)), "as attempts"),
    "numbers fell": (history(changed(45, lambda one: during(one, 30, 31))), "came before"),
    "two live leases": (history(without(44)), "was live"),
    "a claim before the end of the one before": (
        history(changed(44, lambda one: during(one, 46, 47))),
        "was live",
    ),
    "lost twice": (history(with_(act(What.EXPIRE, 46, job="job"))), "had ended"),
    "lost by somebody else": (
        history(changed(40, lambda one: replace(one, holder="other"))),
        "nobody held",
    ),
    "two ends of one attempt": (history(with_(act(What.RELEASE, 51, 3, "renewed"))), "had ended"),
    "a made up token": (history(with_(act(What.BEGIN, 49, 3, "made up"))), "never given"),
    "a write after the end": (history(with_(act(What.BEGIN, 51, 3, "renewed"))), "accepted after"),
    "a token from before the registration": (
        history(changed(49, lambda one: replace(one, accepted=True))),
        "from before register",
    ),
    "refused without a reason": (
        history(changed(46, lambda one: replace(one, accepted=False))),
        "nothing took it away",
    ),
    "two verdicts": (
        history(with_(act(FINISH, 60, 3, "renewed", word=4, status=DONE))),
        "more than once",
    ),
    "a verdict that was not written": (history(ended=replace(ENDED, word=9)), "did not write"),
    "an end that nobody was told of": (history(without(50)), "nobody was told"),
    "a cancel of what ended": (
        history(with_(act(What.CANCEL, 51, job="job", status=JobStatus.CANCELLED))),
        "more than once",
    ),
    "a job that never ended": (history(ended=replace(ENDED, status=JobStatus.RUNNING)), "is running"),
    "a job that is gone": (replace(history(), ended={}), "not there"),
    "two ends in the timeline": (
        history(ended=replace(ENDED, events=(*TIMELINE, "failed"))),
        "its timeline",
    ),
    "a claim that nobody was told of": (
        history(ended=replace(ENDED, events=("claimed", *TIMELINE))),
        "its timeline",
    ),
    "claimed after a cancel": (history(with_(CANCEL)), "after cancel"),
    "failed tests that run again": (
        history(
            changed(44, lambda one: replace(one, what=FINISH, status=JobStatus.FAILED)),
        ),
        "after finish",
    ),
    "more runs than attempts": (history(most=2), "began 3 times"),
    "given up too early": (
        history(ended=replace(ENDED, status=JobStatus.DEAD_LETTERED), most=4),
        "was given up after 3 of 4",
    ),
    "a dead letter that was repeated twice": (
        history(with_(*(act(What.REQUEUE, n, holder="job", job=f"again-{n}") for n in (60, 61)))),
        "queued again 2 times",
    ),
    "more than its slots": (history(slots=0), "with 0 slots"),
    "a claim while it drains": (history(with_(act(What.DRAIN, 41))), "after drain"),
    "a claim after it was removed": (history(with_(act(What.REMOVE, 41))), "after remove"),
    "a claim after it left": (history(with_(act(What.LEAVE, 41, word=1))), "after leave"),
    "a heartbeat of an old epoch": (history(with_(act(What.BEAT, 49, word=1))), "under epoch 1"),
    "a claim of an old epoch": (history(with_(act(What.REGISTER, 41, word=2))), "under epoch 1"),
    "lost within its lease": (history(with_(act(What.BEAT, 20, word=1))), "20 s after"),
}


def test_a_right_history_passes() -> None:
    assert violations(history()) == []


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_history_is_seen(wrong: str) -> None:
    told, said = WRONG[wrong]
    assert said in "\n".join(violations(told)), violations(told)


def test_every_check_sees_something() -> None:
    """One that sees nothing would be left behind by a change of the others."""
    seen = {wrong for told, _ in WRONG.values() for wrong in violations(told)}
    for check in CHECKS:
        assert any(wrong in seen for told, _ in WRONG.values() for wrong in _told_by(check, told)), check


def _told_by(check: Callable[..., Any], told: History) -> list[str]:
    return violations(told, [check])


def test_what_overlaps_may_have_come_in_any_order() -> None:
    """A write and the registration that takes its token away, a claim and the release before it: at the same time."""
    fenced = changed(49, lambda one: during(replace(one, accepted=True), 46, 48))
    assert violations(history([during(one, 46, 48) if one.began == 470 else one for one in fenced])) == []
    released = changed(44, lambda one: during(one, 44, 46))
    assert violations(history([during(one, 44, 46) if one.began == 450 else one for one in released])) == []


def test_a_resumed_agent_claims_and_an_operators_hand_waits_for_no_lease() -> None:
    resumed = with_(act(What.DRAIN, 39), act(What.RESUME, 41))
    assert violations(history(resumed)) == []
    by_hand = [replace(one, by_operator=True) if one.what is What.EXPIRE else one for one in RIGHT]
    assert violations(history([*by_hand, act(What.BEAT, 20, word=1)])) == []
