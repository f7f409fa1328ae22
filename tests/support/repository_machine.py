"""The repository against a small model of it, move by move: any database can be put behind the same machine."""

import asyncio
import math
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ci_common.errors import IdempotencyConflict, JobFinished, PriorityNotAllowed, Unauthorized
from ci_common.job_terms import JobOptions, JobStatus, Priority, Reason
from ci_common.models import Attempt, Fence, Idempotency, JobFilter, LimitChange, UserLimits
from ci_common.verdict import verdict
from tests.support.in_memory import in_memory
from tests.support.repository_contract.story import SEAL, Backend, at, make_job, make_user

T = TypeVar("T")

MAX_ATTEMPTS = 2
QUEUE_TIMEOUT = timedelta(hours=1)
USERS = ("ada", "grace")
MAX_PRIORITY = {"ada": Priority.CRITICAL, "grace": Priority.NORMAL}


@dataclass
class ModelJob:
    """All that the model knows of a job."""

    user: str
    queued_since: float
    status: JobStatus = JobStatus.QUEUED
    priority: Priority = Priority.NORMAL
    attempt: int = 0
    charged: int = 0
    started: bool = False
    begun: bool = False
    stop: Reason | None = None
    cancel_requested: bool = False
    not_before: float = -math.inf
    reason: Reason | None = None

    def end(self, status: JobStatus, reason: Reason | None) -> None:
        self.status, self.reason = status, reason

    @property
    def is_open(self) -> bool:
        return self.status in (JobStatus.CLAIMED, JobStatus.RUNNING)


@dataclass
class Model:
    """What must be true of the database."""

    jobs: dict[str, ModelJob] = field(default_factory=dict[str, ModelJob])
    active: set[str] = field(default_factory=lambda: set(USERS))
    max_running: dict[str, int | None] = field(default_factory=lambda: dict[str, int | None].fromkeys(USERS))
    paused: bool = False
    now: float = 0.0

    def _is_due(self, job: ModelJob) -> bool:
        """A back-off of more than ten minutes was written before the clock was set back: nobody waits for it."""
        return job.not_before <= self.now or job.not_before > self.now + 600

    def claimable(self) -> set[str]:
        return {
            name for name, job in self.jobs.items() if job.status is JobStatus.QUEUED and self._is_due(job)
        }

    def claims_to_come(self) -> list[int]:
        """Return the classes of what can be claimed now, in the order of claiming; each user has so much room."""
        if self.paused:
            return []
        ranks: list[int] = []
        for user in USERS:
            mine = sorted(
                self.jobs[name].priority.rank for name in self.claimable() if self.jobs[name].user == user
            )
            held = sum(job.is_open for job in self.jobs.values() if job.user == user)
            room = self.max_running[user]
            ranks += mine if room is None else mine[: max(room - held, 0)]
        return sorted(ranks)


class RepositoryMachine(RuleBasedStateMachine):
    """Subclasses say how a backend is made below a directory."""

    make_backend: ClassVar[Callable[[Path], Backend]]

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(dir=in_memory())
        self.backend = type(self).make_backend(Path(self.directory.name))
        self.runner = asyncio.Runner()
        self.repository = self.backend.open(self.backend.location)
        self.model = Model()
        self.held: dict[str, Attempt] = {}  # with the tokens that count
        self.stale: list[Fence] = []

    def teardown(self) -> None:
        self.do(self.repository.close())
        self.runner.close()
        self.directory.cleanup()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @property
    def now(self) -> Any:
        return at(self.model.now)

    @initialize()
    def begin(self) -> None:
        for name in USERS:
            limits = UserLimits(MAX_PRIORITY[name])
            self.do(self.repository.create_user(make_user(name, limits=limits)))
        self.lease = self.do(self.repository.take_over("first", self.now))

    # -- users ---------------------------------------------------------------------------------------------

    @rule(number=st.integers(0, 7), priority=st.sampled_from(Priority))
    def submit(self, number: int, priority: Priority) -> None:
        """Again under the same key: the same job."""
        name, user = f"job{number}", USERS[number % len(USERS)]
        job = make_job(make_user(user), self.now, id=name, options=JobOptions(priority=priority))
        known = self.model.jobs.get(name)
        try:
            created = self.do(self.repository.create_job(job, Idempotency(name, "same")))
        except Unauthorized:
            assert user not in self.model.active
        except PriorityNotAllowed:
            assert known is None
            assert not MAX_PRIORITY[user].allows(priority)
        else:
            assert created.id == name
            if known is None:
                assert MAX_PRIORITY[user].allows(priority)
                self.model.jobs[name] = ModelJob(user, self.model.now, priority=priority)

    @rule(name=st.sampled_from([f"job{n}" for n in range(8)]))
    def submit_something_else(self, name: str) -> None:
        job = self.model.jobs.get(name)
        if job is None or job.user not in self.model.active:
            return
        try:
            self.do(self.repository.create_job(make_job(make_user(job.user)), Idempotency(name, "other")))
        except IdempotencyConflict:
            return
        raise AssertionError("a key stood for two submissions")

    @rule(data=st.data())
    @precondition(lambda self: self.model.jobs)
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.jobs)))
        job = self.model.jobs[name]
        try:
            self.do(self.repository.request_cancel(name, f"id-{job.user}", "somebody", self.now))
        except JobFinished:
            assert job.status.is_terminal
            return
        assert not job.status.is_terminal
        self._cancel(job)

    @rule(data=st.data(), priority=st.sampled_from(Priority))
    @precondition(lambda self: self.model.jobs)
    def set_priority(self, data: st.DataObject, priority: Priority) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.jobs)))
        job = self.model.jobs[name]
        try:
            self.do(self.repository.set_priority(name, None, priority, "somebody", self.now))
        except JobFinished:
            assert job.status.is_terminal
            return
        assert not job.status.is_terminal
        job.priority = priority

    def _cancel(self, job: ModelJob) -> None:
        job.cancel_requested = True
        if job.status is JobStatus.QUEUED:
            job.end(JobStatus.CANCELLED, Reason.CANCELLED)

    @rule(user=st.sampled_from(USERS), active=st.booleans())
    def set_user_active(self, user: str, active: bool) -> None:
        self.do(self.repository.set_user_active(f"id-{user}", active=active, now=self.now))
        (self.model.active.add if active else self.model.active.discard)(user)
        for job in self.model.jobs.values():
            if not active and job.user == user and not job.status.is_terminal:
                self._cancel(job)

    @rule(user=st.sampled_from(USERS), running=st.sampled_from([None, 1, 2]))
    def set_max_running(self, user: str, running: int | None) -> None:
        limits = UserLimits(MAX_PRIORITY[user], running)
        changed = self.do(self.repository.set_user_limits(f"id-{user}", LimitChange.to(limits), self.now))
        assert changed is not None
        assert changed.limits == limits
        self.model.max_running[user] = running

    @rule()
    def pause(self) -> None:
        self.do(self.repository.pause_queue(None, self.now))
        self.model.paused = True

    @rule()
    def resume(self) -> None:
        assert self.do(self.repository.resume_queue(self.now)) == self.model.paused
        for job in self.model.jobs.values():
            if self.model.paused and job.status is JobStatus.QUEUED:
                job.queued_since = self.model.now
        self.model.paused = False

    # -- the controller ------------------------------------------------------------------------------------

    @rule(limit=st.integers(0, 4))
    def claim(self, limit: int) -> None:
        possible = self.model.claimable()
        ranks = self.model.claims_to_come()
        assert self.do(self.repository.count_queued(self.now)) == len(ranks)
        claimed = self.do(self.repository.claim_jobs(self.lease, limit, self.now))
        assert [attempt.job.options.priority.rank for attempt in claimed] == ranks[:limit]
        for attempt in claimed:
            name = attempt.job.id
            assert name in possible
            job = self.model.jobs[name]
            job.status, job.attempt, job.started, job.begun, job.stop = (
                JobStatus.CLAIMED,
                job.attempt + 1,
                False,
                False,
                None,
            )
            self.held[name] = attempt

    @rule()
    def take_over(self) -> None:
        self.stale += [attempt.fence for attempt in self.held.values()]
        before = self.lease
        self.lease = self.do(self.repository.take_over("next", self.now))
        assert not self.do(self.repository.heartbeat(before, self.now))
        assert self.do(self.repository.claim_jobs(before, 9, self.now)) == []
        self.held = {attempt.job.id: attempt for attempt in self.do(self.repository.open_attempts())}

    @rule()
    def expire(self) -> None:
        limit = self.model.now - QUEUE_TIMEOUT.total_seconds()
        late = {
            name
            for name, job in self.model.jobs.items()
            if job.status is JobStatus.QUEUED and job.queued_since < limit and not self.model.paused
        }
        assert set(self.do(self.repository.expire_queued(self.lease, QUEUE_TIMEOUT, self.now))) == late
        for name in late:
            self.model.jobs[name].end(JobStatus.FAILED, Reason.QUEUE_TIMEOUT)

    # -- the holder of an attempt ----------------------------------------------------------------------------

    def _held(self, data: st.DataObject) -> tuple[Fence, ModelJob]:
        name = data.draw(st.sampled_from(sorted(self.held)))
        return self.held[name].fence, self.model.jobs[name]

    @rule(data=st.data())
    @precondition(lambda self: self.held)
    def mark_started(self, data: st.DataObject) -> None:
        fence, job = self._held(data)
        container = f"{fence.job_id}-{fence.attempt}"
        assert self.do(self.repository.mark_started(fence, container, "image", self.now))
        job.status, job.started = JobStatus.RUNNING, True

    @rule(data=st.data())
    @precondition(lambda self: self.held)
    def mark_begun(self, data: st.DataObject) -> None:
        fence, job = self._held(data)
        assert self.do(self.repository.mark_begun(fence, self.now))
        job.charged += not job.begun
        job.begun = True

    @rule(data=st.data(), reason=st.sampled_from([Reason.TIMEOUT, Reason.CANCELLED]))
    @precondition(lambda self: self.held)
    def record_stop(self, data: st.DataObject, reason: Reason) -> None:
        fence, job = self._held(data)
        stop = self.do(self.repository.record_stop(fence, reason, None, self.now))
        job.stop = job.stop or reason
        assert stop is not None
        assert stop.reason is job.stop

    @rule(data=st.data(), reason=st.sampled_from([None, Reason.TESTS_FAILED, Reason.BAD_ARCHIVE]))
    @precondition(lambda self: self.held)
    def finish(self, data: st.DataObject, reason: Reason | None) -> None:
        fence, job = self._held(data)
        final = verdict(reason)
        allowed = job.started or final.status is JobStatus.FAILED
        assert self.do(self.repository.finish_attempt(fence, final, SEAL, self.now)) == allowed
        if allowed:
            job.end(final.status, reason)
            self._give_up(fence)

    @rule(data=st.data(), backoff=st.sampled_from([0, 30]))
    @precondition(lambda self: self.held)
    def release(self, data: st.DataObject, backoff: float) -> None:
        fence, job = self._held(data)
        wait = at(self.model.now + backoff) if backoff else None
        status = self.do(
            self.repository.release_attempt(
                fence,
                reason=Reason.INFRA,
                message="lost",
                max_attempts=MAX_ATTEMPTS,
                not_before=wait,
                now=self.now,
            )
        )
        if job.cancel_requested:
            job.end(JobStatus.CANCELLED, Reason.CANCELLED)
        elif job.begun and job.charged >= MAX_ATTEMPTS:
            job.end(JobStatus.DEAD_LETTERED, Reason.INFRA)
        else:
            job.status = JobStatus.QUEUED
            job.not_before = self.model.now + backoff if backoff else -math.inf
            job.queued_since = self.model.now if job.begun else job.queued_since
        assert status is job.status
        self._give_up(fence)

    def _give_up(self, fence: Fence) -> None:
        del self.held[fence.job_id]
        self.stale.append(fence)

    @rule(data=st.data())
    @precondition(lambda self: self.stale)
    def act_on_a_stale_fence(self, data: st.DataObject) -> None:
        """The old token, or the right one of an attempt that has ended: nothing changes."""
        fence = data.draw(st.sampled_from(self.stale))
        made_up = replace(fence, token="made up")
        for one in (fence, made_up):
            assert not self.do(self.repository.mark_started(one, "stale", "image", self.now))
            assert not self.do(self.repository.mark_begun(one, self.now))
            assert self.do(self.repository.record_stop(one, Reason.TIMEOUT, None, self.now)) is None
            assert not self.do(self.repository.finish_attempt(one, verdict(None), SEAL, self.now))

    # -- the world -------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 31, 4000]))
    def time_passes(self, seconds: float) -> None:
        self.model.now += seconds

    @rule(seconds=st.sampled_from([0.5, 31, 4000]))
    def clock_is_set_back(self, seconds: float) -> None:
        self.model.now -= seconds

    @rule()
    def crash(self) -> None:
        self.do(self.repository.close())
        self.repository = self.backend.open(self.backend.location)

    @invariant()
    def the_database_is_as_the_model(self) -> None:
        found = {job.id: job for job in self.do(self.repository.list_jobs(JobFilter())).jobs}
        assert found.keys() == self.model.jobs.keys()
        for name, job in self.model.jobs.items():
            real = found[name]
            assert (real.status, real.attempt, real.reason) == (job.status, job.attempt, job.reason)
            assert real.options.priority is job.priority
            assert (real.cancel_requested_at is not None) == job.cancel_requested
            assert (real.success is not None) == job.status.is_terminal
        held = {attempt.job.id for attempt in self.do(self.repository.open_attempts())}
        assert held == self.held.keys() == {name for name, job in self.model.jobs.items() if job.is_open}

    @invariant()
    def nothing_is_locked(self) -> None:
        assert not self.backend.lock_out(self.backend.location)
