"""Says what in a history of agents cannot be. Pure: it knows no database.

It holds of real concurrency too: only what no order of overlapping acts explains is a violation.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from ci_common.job_terms import JobStatus
from tests.support.agent_histories import FENCED, Act, Ended, History, What


@dataclass(slots=True)
class Life:
    """One attempt: from its claim to its end."""

    claim: Act
    end: Act | None = None

    def surely_holds_during(self, act: Act) -> bool:
        return act.after(self.claim) and (self.end is None or self.end.began > act.ended)


Lives = Mapping[str, Sequence[Life]]
Check = Callable[[History, Lives], Iterator[str]]


def _lives(history: History) -> Lives:
    """Return the attempts of each job, in the order of their numbers."""
    lives = defaultdict[str, list[Life]](list)
    for claim in sorted(history.of(What.CLAIM), key=_number):
        lives[claim.job].append(Life(claim))
    for end in history.of(What.FINISH, What.RELEASE):
        for life in lives[end.job]:
            if _number(life.claim) == _number(end) and life.end is None:
                life.end = end
    for end in sorted(history.of(What.EXPIRE), key=lambda act: act.began):
        mine = (one for one in lives[end.job] if one.claim.holder == end.holder and one.end is None)
        life = next(mine, None)
        if life is not None:
            life.end = end
    return lives


def _number(act: Act) -> int:
    assert act.fence is not None, act
    return act.fence.attempt


def _attempt_numbers_grow(history: History, lives: Lives) -> Iterator[str]:
    for job, told in lives.items():
        numbers = [_number(life.claim) for life in told]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"{job} was claimed as attempts {numbers}"
        for life, following in pairwise(told):
            if life.claim.after(following.claim):
                yield f"{job}: {following.claim} came before {life.claim}"


def _one_live_attempt_at_a_time(history: History, lives: Lives) -> Iterator[str]:
    for job, told in lives.items():
        for life, following in pairwise(told):
            if life.end is None or not life.end.may_precede(following.claim):
                yield f"{job}: {following.claim} while {life.claim} was live"


def _one_end_of_each_attempt(history: History, lives: Lives) -> Iterator[str]:
    ends = history.of(What.FINISH, What.RELEASE, What.EXPIRE)
    matched = [life.end for told in lives.values() for life in told if life.end is not None]
    for end in ends:
        if not any(one is end for one in matched):
            yield f"{end} ended an attempt that had ended, or that nobody held"


def _fences_hold(history: History, lives: Lives) -> Iterator[str]:
    """Whatever was written with a token that could not be the valid one."""
    sights = _first_sights(history)
    for act in history.of(*FENCED):
        assert act.fence is not None
        seen = sights.get(act.fence.token)
        if seen is None:
            yield f"{act} was accepted with a token that was never given"
            continue
        life = _life_of(act, lives)
        if life is not None and life.end is not None and life.end is not act and act.after(life.end):
            yield f"{act} was accepted after {life.end}"
        for renewal in _renewals(history, seen.holder):
            if renewal.after(seen) and act.after(renewal):
                yield f"{act} was accepted with a token from before {renewal}"


def _nobody_is_refused_without_a_reason(history: History, lives: Lives) -> Iterator[str]:
    sights = _first_sights(history)
    for act in history.of(*FENCED, accepted=False):
        assert act.fence is not None
        seen, life = sights.get(act.fence.token), _life_of(act, lives)
        if seen is None or life is None or (life.end is not None and life.end.may_precede(act)):
            continue
        renewed = any(not seen.after(one) and one.may_precede(act) for one in _renewals(history, seen.holder))
        if not renewed:
            yield f"{act} was refused, though nothing took it away"


def _life_of(act: Act, lives: Lives) -> Life | None:
    return next((one for one in lives.get(act.job, ()) if _number(one.claim) == _number(act)), None)


def _first_sights(history: History) -> Mapping[str, Act]:
    """Return by which act each token was learnt first."""
    sights: dict[str, Act] = {}
    for act in sorted(history.of(What.CLAIM, What.LOOK), key=lambda one: one.ended):
        if act.fence is not None:
            sights.setdefault(act.fence.token, act)
    return sights


def _renewals(history: History, holder: str) -> list[Act]:
    return [act for act in history.of(What.REGISTER) if act.holder == holder]


def _one_terminal_write(history: History, lives: Lives) -> Iterator[str]:
    """Exactly one, and what stands is what it wrote."""
    words = defaultdict[str, list[Act]](list)
    for act in history.of(What.FINISH, What.RELEASE, What.OUTWAIT, What.CANCEL):
        if act.status is not None and act.status.is_terminal:
            words[act.job].append(act)
    for job, ended in history.ended.items():
        told, acts = lives.get(job, ()), words[job]
        last = told[-1].end if told else None
        if len(acts) > 1:
            yield f"{job} ended more than once: {', '.join(map(str, acts))}"
        elif not acts and (last is None or last.what is not What.EXPIRE):
            yield f"{job} is {ended.status}, and nobody was told that it ended"
        elif acts and (acts[0].status, acts[0].word) != (ended.status, ended.word):
            yield f"{job} is {ended.status} by {ended.word}, which {acts[0]} did not write ({acts[0].word})"


def _no_job_is_lost(history: History, lives: Lives) -> Iterator[str]:
    for act in history.of(What.SUBMIT, What.REQUEUE):
        ended = history.ended.get(act.job)
        if ended is None or not ended.status.is_terminal:
            yield f"{act.job} was accepted, and is {ended.status if ended else 'not there'}"


def _the_timeline_tells_the_same(history: History, lives: Lives) -> Iterator[str]:
    for job, ended in history.ended.items():
        told = lives.get(job, ())
        finals = [word for word in ended.events if word in _TERMINAL]
        released = sum(life.end is not None for life in told) - _ended_within(told, ended, history, job)
        expected = (len(told), [ended.status.value], released)
        found = (ended.events.count("claimed"), finals, ended.events.count("released"))
        if found != expected or ended.attempt != len(told):
            yield f"{job}: claims, ends, releases were {expected}, its timeline has {found}"


def _ended_within(told: Sequence[Life], ended: Ended, history: History, job: str) -> int:
    """Return 1 where the last attempt's end was the job's, 0 where that was queued then."""
    outside = any(
        act.job == job and act.status is not None and act.status.is_terminal
        for act in history.of(What.OUTWAIT, What.CANCEL)
    )
    return int(bool(told) and not outside)


_TERMINAL = frozenset(status.value for status in JobStatus if status.is_terminal)


def _what_was_cancelled_is_not_claimed(history: History, lives: Lives) -> Iterator[str]:
    for cancel in history.of(What.CANCEL):
        for life in lives.get(cancel.job, ()):
            if life.claim.after(cancel):
                yield f"{life.claim} after {cancel}"


def _what_ended_is_not_claimed(history: History, lives: Lives) -> Iterator[str]:
    """Above all: tests that failed are not run again."""
    for told in lives.values():
        for life, following in pairwise(told):
            if life.end is not None and life.end.what is What.FINISH:
                yield f"{following.claim} after {life.end}"


def _runs_are_counted(history: History, lives: Lives) -> Iterator[str]:
    begun = defaultdict[str, set[int]](set)
    for act in history.of(What.BEGIN):
        begun[act.job].add(_number(act))
    for job, most in history.max_attempts.items():
        runs = len(begun[job])
        if runs > most:
            yield f"{job} began {runs} times, and was to begin {most} times at most"
        ended = history.ended.get(job)
        if ended is not None and ended.status is JobStatus.DEAD_LETTERED and runs != most:
            yield f"{job} was given up after {runs} of {most} runs"


def _a_dead_letter_is_repeated_once(history: History, lives: Lives) -> Iterator[str]:
    repeated = [act.holder for act in history.of(What.REQUEUE)]
    for job in sorted({job for job in repeated if repeated.count(job) > 1}):
        yield f"{job} was queued again {repeated.count(job)} times"


def _slots_hold(history: History, lives: Lives) -> Iterator[str]:
    everyone = [life for told in lives.values() for life in told]
    for holder, slots in history.slots.items():
        theirs = [life for life in everyone if life.claim.holder == holder]
        for call in {life.claim.ended: life.claim for life in theirs}.values():
            together = sum(life.claim.ended == call.ended for life in theirs)
            held = sum(life.surely_holds_during(call) for life in theirs)
            if held + together > slots:
                yield f"{holder} held {held + together} at {call}, with {slots} slots"


def _who_may_not_claim_does_not(history: History, lives: Lives) -> Iterator[str]:
    lifting = {
        What.DRAIN: (What.RESUME,),
        What.REMOVE: (What.RESUME,),
        What.LEAVE: (What.REGISTER, What.RESUME),
    }
    claims = history.of(What.CLAIM)
    for bar in history.of(*lifting):
        lifted = [act for act in history.of(*lifting[bar.what]) if act.holder == bar.holder]
        for claim in claims:
            if claim.holder != bar.holder or not claim.after(bar):
                continue
            if not any(not bar.after(lift) and lift.may_precede(claim) for lift in lifted):
                yield f"{claim} after {bar}"


def _old_epochs_are_refused(history: History, lives: Lives) -> Iterator[str]:
    for act in history.of(What.BEAT, What.CLAIM):
        for newer in _renewals(history, act.holder):
            if act.after(newer) and (newer.word or 0) > (act.word or 0):
                yield f"{act} was accepted under epoch {act.word}, after {newer}"


def _leases_hold(history: History, lives: Lives) -> Iterator[str]:
    """Nobody is lost within the lease of a heartbeat; who was removed is at once, or by an operator's word."""
    removed = history.of(What.REMOVE)
    for lost in history.of(What.EXPIRE):
        if lost.by_operator or any(one.holder == lost.holder and one.may_precede(lost) for one in removed):
            continue
        for sign in history.of(What.BEAT, What.REGISTER):
            if sign.holder == lost.holder and lost.after(sign) and lost.at - sign.at < history.lease:
                yield f"{lost} {lost.at - sign.at:g} s after {sign}"


CHECKS: Final[Sequence[Check]] = (
    _attempt_numbers_grow,
    _one_live_attempt_at_a_time,
    _one_end_of_each_attempt,
    _fences_hold,
    _nobody_is_refused_without_a_reason,
    _one_terminal_write,
    _no_job_is_lost,
    _the_timeline_tells_the_same,
    _what_was_cancelled_is_not_claimed,
    _what_ended_is_not_claimed,
    _runs_are_counted,
    _a_dead_letter_is_repeated_once,
    _slots_hold,
    _who_may_not_claim_does_not,
    _old_epochs_are_refused,
    _leases_hold,
)


def violations(history: History, checks: Sequence[Check] = CHECKS) -> list[str]:
    """Return what in the history cannot be, in sentences."""
    lives = _lives(history)
    return [wrong for check in checks for wrong in check(history, lives)]
