"""The processes of simulated agents and controllers, on a real database: what each does, and what it was answered.

What a process knows may be long out of date: it may have been silent, or replaced without knowing it.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ci_common.errors import Conflict, Unauthorized
from ci_common.job_terms import DEFAULT_POOL, JobStatus, Reason
from ci_common.models import (
    MAX_ATTEMPTS,
    Agent,
    AgentLease,
    AgentProfile,
    Attempt,
    ControllerLease,
    Fence,
    LogSeal,
    UserLimits,
)
from ci_common.repository import JobRepository
from ci_common.verdict import verdict
from ci_controller.agent_leases import AgentLeases
from tests.support.agent_histories import CONTROLLER, Act, Ended, History, What
from tests.support.repository_contract.story import START, make_user

LEASE: Final = 30.0  # seconds
POOLS: Final = {"gpu-1": "gpu", "gpu-2": "gpu", "cpu-1": DEFAULT_POOL}
_SLOTS: Final = {"gpu-1": 2, "gpu-2": 1, "cpu-1": 2, CONTROLLER: 99}
_QUEUE_TIMEOUT: Final = timedelta(minutes=10)
_FINALS: Final[Sequence[Reason | None]] = (None, Reason.TESTS_FAILED, Reason.BAD_ARCHIVE)


@dataclass
class Held:
    """An attempt as the process that holds it knows it."""

    fence: Fence
    started: bool = False
    begun: bool = False
    cancelled: bool = False

    @classmethod
    def of(cls, attempt: Attempt) -> "Held":
        cancelled = attempt.job.cancel_requested_at is not None
        return cls(attempt.fence, attempt.container_id is not None, attempt.begun_at is not None, cancelled)


class World:
    """What all actors share: clock, names, and the record of what they were answered."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.monotonic = 1000.0
        self._stepped = 0.0  # seconds by which the wall clock was set
        self._order = 0
        self._words = 0
        self.acts: list[Act] = []
        self.jobs: dict[str, int] = {}  # attempts at most, by id
        self.users = [make_user(f"ada-{seed}"), make_user(f"bob-{seed}", limits=UserLimits(max_running=2))]

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.monotonic + self._stepped)

    def pass_time(self, seconds: float) -> None:
        self.monotonic += seconds

    def step_clock(self, seconds: float) -> None:
        self._stepped += seconds

    def mark(self) -> int:
        """Return the next place in the order of all calls and answers."""
        self._order += 1
        return self._order

    def word(self) -> int:
        """Return a number that only one write has."""
        self._words += 1
        return self._words

    def key(self, name: str) -> str:
        """Return the id of that agent in this schedule."""
        return name if name == CONTROLLER else f"{name}-{self.seed}"

    def history(self, ended: dict[str, Ended]) -> History:
        slots = {self.key(name): most for name, most in _SLOTS.items()}
        return History(self.acts, ended, self.jobs, slots, LEASE)


class Process:
    """One process of an agent, or of a controller: what it knows may be long out of date."""

    def __init__(self, world: World, repository: JobRepository, name: str, draw: random.Random) -> None:
        self.world = world
        self.repository = repository
        self.holder = world.key(name)
        self.name = name
        self.draw = draw
        self.held: dict[str, Held] = {}
        self.spent: list[Fence] = []  # whose ends it reported
        self.silent_until = 0.0

    @property
    def epoch(self) -> int:
        """The epoch that it believes to be in."""
        raise NotImplementedError

    # -- what it is called by ------------------------------------------------------------------------------

    async def enlist(self) -> None:
        """It is who its key says, under a new epoch, and knows what it holds."""
        began, at = self.world.mark(), self.world.monotonic
        try:
            await self._register()
        except Unauthorized:  # removed at this moment
            return
        self._note(What.REGISTER, began, word=self.epoch, at=at)
        await self.look()

    async def step(self) -> None:
        """It does one of the things that such a process does, if it is not silent."""
        if self.world.monotonic < self.silent_until:
            return
        choices: dict[Callable[[], Awaitable[object]], int] = {
            self.claim: 5,
            self.advance: 8,
            self.look: 2,
            self.beat: 2,
            self.say_it_again: 1,
            self.make_up_a_token: 1,
        }
        await self.draw.choices(list(choices), list(choices.values()))[0]()

    def fall_silent(self, seconds: float) -> None:
        """Nothing is heard of it for so long; it knows nothing of that."""
        self.silent_until = self.world.monotonic + seconds

    async def claim(self) -> None:
        """Up to three more jobs are its own."""
        began, epoch = self.world.mark(), self.epoch
        for attempt in await self._claim(self.draw.randint(1, 3)):
            self.held[attempt.job.id] = Held.of(attempt)
            self._note(What.CLAIM, began, fence=attempt.fence, word=epoch)

    async def look(self) -> None:
        """It knows what it holds, unless it is somebody else by now."""
        began = self.world.mark()
        attempts = await self._holdings()
        if attempts is None:
            return
        self.held = {attempt.job.id: Held.of(attempt) for attempt in attempts}
        for attempt in attempts:
            self._note(What.LOOK, began, fence=attempt.fence)

    async def beat(self) -> None:
        began, at, epoch = self.world.mark(), self.world.monotonic, self.epoch
        accepted = await self._beat()
        self._note(What.BEAT, began, accepted=accepted, word=epoch, at=at)

    async def advance(self) -> None:
        """One of its attempts comes further, or to its end."""
        if not self.held:
            return
        held = self.held[self.draw.choice(sorted(self.held))]
        if self.draw.random() < 0.2 or (held.cancelled and self.draw.random() < 0.5):
            await self.release(held)
        elif self.draw.random() < 0.05:
            await self._fenced(What.STOP, held.fence)
        elif not held.started:
            held.started = await self._fenced(What.START, held.fence)
        elif not held.begun:
            held.begun = await self._fenced(What.BEGIN, held.fence)
        else:
            await self.finish(held)

    async def run_out(self) -> None:
        """All that it holds has ended."""
        for held in tuple(self.held.values()):
            if not held.started:
                await self._fenced(What.START, held.fence)
            if not held.begun:
                await self._fenced(What.BEGIN, held.fence)
            await self.finish(held)

    async def finish(self, held: Held) -> None:
        reason = Reason.CANCELLED if held.cancelled else self.draw.choice(_FINALS)
        await self._end(What.FINISH, held.fence, reason)

    async def release(self, held: Held) -> None:
        await self._end(What.RELEASE, held.fence, Reason.INFRA)

    async def say_it_again(self) -> None:
        """The answer to an attempt's end was lost, and it is reported again, maybe as something else."""
        if self.spent:
            what = self.draw.choice((What.FINISH, What.RELEASE, What.BEGIN))
            await self._write(what, self.draw.choice(self.spent), Reason.INFRA)

    async def make_up_a_token(self) -> None:
        if self.held:
            fence = self.held[self.draw.choice(sorted(self.held))].fence
            await self._write(
                What.FINISH, Fence(fence.job_id, fence.attempt, f"made up {self.world.word()}"), None
            )

    # -- how ---------------------------------------------------------------------------------------------------

    async def _end(self, what: What, fence: Fence, reason: Reason | None) -> None:
        self.held.pop(fence.job_id, None)
        self.spent.append(fence)
        await self._write(what, fence, reason)

    async def _write(self, what: What, fence: Fence, reason: Reason | None) -> None:
        if what is What.FINISH:
            await self._finish(fence, reason)
        elif what is What.RELEASE:
            await self._release(fence)
        else:
            await self._fenced(what, fence)

    async def _fenced(self, what: What, fence: Fence) -> bool:
        began, now, repository = self.world.mark(), self.world.now, self.repository
        match what:
            case What.START:
                container = f"{fence.job_id}-{fence.attempt}"
                accepted = await repository.mark_started(fence, container, "image", now)
            case What.BEGIN:
                accepted = await repository.mark_begun(fence, now)
            case _:
                accepted = await repository.record_stop(fence, Reason.TIMEOUT, None, now) is not None
        self._note(what, began, fence=fence, accepted=accepted)
        return accepted

    async def _finish(self, fence: Fence, reason: Reason | None) -> None:
        began, word, final = self.world.mark(), self.world.word(), verdict(reason)
        accepted = await self.repository.finish_attempt(fence, final, _seal(word), self.world.now)
        self._note(What.FINISH, began, fence=fence, accepted=accepted, status=final.status, word=word)

    async def _release(self, fence: Fence) -> None:
        began, word, now = self.world.mark(), self.world.word(), self.world.now
        status = await self.repository.release_attempt(
            fence,
            reason=Reason.INFRA,
            message="lost",
            max_attempts=MAX_ATTEMPTS,
            not_before=now + timedelta(seconds=5) if self.draw.random() < 0.3 else None,
            now=now,
            log=_seal(word),
        )
        self._note(What.RELEASE, began, fence=fence, accepted=status is not None, status=status, word=word)

    def _note(
        self,
        what: What,
        began: int,
        *,
        fence: Fence | None = None,
        accepted: bool = True,
        status: JobStatus | None = None,
        word: int | None = None,
        at: float = 0.0,
    ) -> None:
        job = fence.job_id if fence else ""
        ended = self.world.mark()
        self.world.acts.append(
            Act(what, began, ended, self.holder, job, fence, accepted, status, word, at=at)
        )

    async def _register(self) -> None:
        raise NotImplementedError

    async def _claim(self, limit: int) -> list[Attempt]:
        raise NotImplementedError

    async def _holdings(self) -> list[Attempt] | None:
        raise NotImplementedError

    async def _beat(self) -> bool:
        raise NotImplementedError


class AgentProcess(Process):
    """Speaks for an agent's key."""

    def __init__(self, world: World, repository: JobRepository, name: str, draw: random.Random) -> None:
        super().__init__(world, repository, name, draw)
        self.profile = AgentProfile(name, POOLS[name], _SLOTS[name])
        self.lease = AgentLease(self.holder, 0)

    @property
    def epoch(self) -> int:
        return self.lease.epoch

    async def step(self) -> None:
        if self.draw.random() < 0.03 and self.world.monotonic >= self.silent_until:
            await self.leave()
        else:
            await super().step()

    async def leave(self) -> None:
        began = self.world.mark()
        try:
            left = await self.repository.deregister_agent(self.lease, self.world.now)
        except Conflict:
            return
        self._note(What.LEAVE, began, accepted=left)

    async def _register(self) -> None:
        agent = await self.repository.register_agent(self.holder, self.profile, self.world.now)
        self.lease = agent.lease

    async def _claim(self, limit: int) -> list[Attempt]:
        return await self.repository.claim_for_agent(self.lease, limit, self.world.now)

    async def _holdings(self) -> list[Attempt] | None:
        attempts = await self.repository.open_attempts(self.holder)
        agent = await self.repository.find_agent(self.holder)  # in this order, as the controller does it
        return attempts if agent is not None and agent.lease == self.lease else None

    async def _beat(self) -> bool:
        return await self.repository.heartbeat_agent(self.lease, None, None, self.world.now) is not None


class ControllerProcess(Process):
    """A control plane that runs jobs too, whether or not it was superseded."""

    def __init__(self, world: World, repository: JobRepository, name: str, draw: random.Random) -> None:
        super().__init__(world, repository, name, draw)
        self.lease = ControllerLease(0, "nobody")
        self._leases = AgentLeases(LEASE)
        self._decided: list[tuple[Agent, float]] = []

    @property
    def epoch(self) -> int:
        return self.lease.epoch

    async def step(self) -> None:
        works = (super().step, self.look_after_agents, self.go_on, self.outwait)
        await self.draw.choices(works, (5, 3, 1, 1))[0]()

    async def look_after_agents(self) -> None:
        """What lost agents held is queued again, or will be once a process that was stopped in between goes on."""
        agents, at = await self.repository.list_agents(), self.world.monotonic
        self._decided += [(agent, at) for agent in self._leases.lost(agents, at)]
        if self.draw.random() < 0.7:
            await self.go_on()

    async def go_on(self) -> None:
        """What it decided is done, however long ago that was."""
        decided, self._decided = self._decided, []
        for agent, at in decided:
            await self.expire(agent, at)

    async def expire(self, agent: Agent, at: float, *, by_operator: bool = False) -> None:
        began, lease = self.world.mark(), None if by_operator else self.lease
        jobs = await self.repository.expire_agent(lease, agent, MAX_ATTEMPTS, self.world.now)
        ended = self.world.mark()
        for job in jobs:
            act = Act(What.EXPIRE, began, ended, agent.id, job, at=at, by_operator=by_operator)
            self.world.acts.append(act)

    async def outwait(self) -> None:
        began = self.world.mark()
        late = await self.repository.expire_queued(self.lease, _QUEUE_TIMEOUT, self.world.now)
        ended = self.world.mark()
        self.world.acts += [
            Act(What.OUTWAIT, began, ended, self.holder, job, status=JobStatus.FAILED) for job in late
        ]

    async def _register(self) -> None:
        self.lease = await self.repository.take_over(f"controller-{self.world.mark()}", self.world.now)

    async def _claim(self, limit: int) -> list[Attempt]:
        return await self.repository.claim_jobs(self.lease, limit, self.world.now)

    async def _holdings(self) -> list[Attempt] | None:
        attempts = await self.repository.open_attempts()
        state = await self.repository.controller_state()
        return attempts if state is not None and state.epoch == self.lease.epoch else None

    async def _beat(self) -> bool:
        return await self.repository.heartbeat(self.lease, self.world.now)


def _seal(word: int) -> LogSeal:
    return LogSeal(word, f"{word:064x}")
