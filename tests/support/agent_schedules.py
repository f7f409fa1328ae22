"""Seeded schedules of agents, controllers, users and an operator on one real database, and the history of each.

A schedule is drawn step by step, or runs as several actors at once on clients of their own: then the database decides
what comes first. Processes are killed, fall silent, are replaced, and come back with what they knew.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from ci_common.errors import Conflict, JobFinished, NotFound
from ci_common.job_terms import DEFAULT_POOL, JobOptions
from ci_common.models import MAX_ATTEMPTS, AgentState, Scope
from ci_common.repository import JobRepository
from tests.support.agent_histories import CONTROLLER, Act, Ended, History, What
from tests.support.agent_processes import LEASE, POOLS, AgentProcess, ControllerProcess, Process, World
from tests.support.repository_contract.story import make_job, make_key

_REMOVABLE: Final = ("gpu-2", "cpu-1")  # somebody else serves their pools
_FIRST_JOBS: Final = 5
_MOST_JOBS: Final = 12
_ROUNDS: Final = 60  # within which all is over once nothing goes wrong any more


class People:
    """Users who submit and cancel, and an operator."""

    def __init__(self, world: World, repository: JobRepository, draw: random.Random) -> None:
        self.world = world
        self.repository = repository
        self.draw = draw
        self.removed: set[str] = set()

    async def step(self) -> None:
        choices: dict[Callable[[], Awaitable[object]], int] = {
            self.submit: 8,
            self.cancel: 3,
            self.drain_or_resume: 3,
            self.remove: 1,
            self.pause_or_resume: 2,
            self.requeue_dead: 6,
            self.requeue_expired: 1,
        }
        await self.draw.choices(list(choices), list(choices.values()))[0]()

    async def submit(self) -> None:
        if len(self.world.jobs) >= _MOST_JOBS:
            return
        world, most = self.world, self.draw.choice((None, 1, 2))
        options = JobOptions(pool=self.draw.choice(("gpu", DEFAULT_POOL)), max_attempts=most)
        job_id, user = f"job-{world.seed}-{len(world.jobs)}", self.draw.choice(world.users)
        world.jobs[job_id] = most or MAX_ATTEMPTS
        began = world.mark()
        await self.repository.create_job(make_job(user, world.now, id=job_id, options=options))
        world.acts.append(Act(What.SUBMIT, began, world.mark(), job=job_id))

    async def cancel(self) -> None:
        if not self.world.jobs:
            return
        job_id, began = self.draw.choice(sorted(self.world.jobs)), self.world.mark()
        try:
            job = await self.repository.request_cancel(job_id, None, "somebody", self.world.now)
        except (JobFinished, NotFound):  # it ended, or is not there yet
            return
        ended = self.world.mark()
        self.world.acts.append(Act(What.CANCEL, began, ended, job=job_id, status=job.status))

    async def drain_or_resume(self) -> None:
        name = self.draw.choice(sorted(POOLS))
        drains = self.draw.random() < 0.3
        if name not in self.removed:
            await self.decide(name, AgentState.DRAINING if drains else AgentState.ACTIVE)

    async def remove(self) -> None:
        name = self.draw.choice(_REMOVABLE)
        self.removed.add(name)
        await self.decide(name, AgentState.REMOVED)

    async def decide(self, name: str, state: AgentState) -> None:
        what = {AgentState.ACTIVE: What.RESUME, AgentState.DRAINING: What.DRAIN}.get(state, What.REMOVE)
        began, agent_id = self.world.mark(), self.world.key(name)
        found = await self.repository.set_agent_state(agent_id, state, self.world.now)
        act = Act(what, began, self.world.mark(), agent_id, accepted=found is not None)
        self.world.acts.append(act)

    async def pause_or_resume(self) -> None:
        if self.draw.random() < 0.2:
            await self.repository.pause_queue(None, self.world.now)
        else:
            await self.repository.resume_queue(self.world.now)

    async def requeue_dead(self) -> None:
        dead = [one.job.id for one in await self.repository.dead_letters(50) if one.job.id in self.world.jobs]
        if not dead:
            return
        old, began = self.draw.choice(dead), self.world.mark()
        new = f"{old}-again-{began}"
        try:
            await self.repository.requeue_dead({old: new}, self.world.now)
        except Conflict:
            return
        self.world.jobs[new] = self.world.jobs[old]
        self.world.acts.append(Act(What.REQUEUE, began, self.world.mark(), old, new))

    async def requeue_expired(self) -> None:
        """As the operator's route does: by the wall clock."""
        now = self.world.now
        hand = ControllerProcess(self.world, self.repository, CONTROLLER, self.draw)
        for agent in await self.repository.list_agents():
            if agent.jobs_running and now - agent.last_heartbeat > timedelta(seconds=LEASE):
                await hand.expire(agent, self.world.monotonic, by_operator=True)


@dataclass
class Schedule:
    """A world, and who acts in it."""

    seed: int
    clients: Sequence[JobRepository]
    world: World = field(init=False)
    people: People = field(init=False)
    current: dict[str, Process] = field(default_factory=dict[str, Process])
    zombies: list[Process] = field(default_factory=list[Process])

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.world = World(self.seed)
        self.people = People(self.world, self._client(), self._drawn("people"))

    async def begin(self) -> None:
        for user in self.world.users:
            await self.clients[0].create_user(user)
        for name in (CONTROLLER, *POOLS):
            await self._key_of(name)
            await self.replace(name)
        for _ in range(_FIRST_JOBS):
            await self.people.submit()

    async def live(self, steps: int) -> None:
        """One step after the other, as the seed says."""
        for _ in range(steps):
            await self._anything()

    async def live_at_once(self, steps: int) -> None:
        """Several actors take so many steps at the same time; the seed says what each does, not who is first."""
        await asyncio.gather(*(self._take(steps, name) for name in ("one", "two", "three", "four", "five")))

    async def recover(self) -> History:
        """Nothing goes wrong any more, and all that was accepted comes to its end; returns what was told."""
        self.zombies.clear()
        await self.clients[0].resume_queue(self.world.now)
        for name in tuple(self.current):
            await self._restored(name)
        for _ in range(_ROUNDS):
            if await self._all_is_over():
                break
            await self._round()
        return self.world.history({job_id: await self._ended(job_id) for job_id in self.world.jobs})

    async def replace(self, name: str) -> None:
        """A new process speaks for that name; the one before it does not know, if it is still there."""
        made = ControllerProcess if name == CONTROLLER else AgentProcess
        process = made(self.world, self._client(), name, self._drawn(f"{name}-{self.world.mark()}"))
        before, self.current[name] = self.current.get(name), process
        if before is not None and self.draw.random() < 0.7:
            self.zombies.append(before)
        await process.enlist()

    async def _anything(self, draw: random.Random | None = None) -> None:
        draw = draw or self.draw
        number, somebody = draw.random(), draw.choice(tuple(self.current.values()))
        if number < 0.16:
            await self.people.step()
        elif number < 0.72:
            await somebody.step()
        elif number < 0.84 and self.zombies:
            await draw.choice(self.zombies).step()
        elif number < 0.88:
            await self._replace_somebody(draw)
        elif number < 0.92:
            max(self.current.values(), key=lambda one: len(one.held)).fall_silent(draw.uniform(1, 3) * LEASE)
        elif number < 0.93:
            self.world.step_clock(draw.choice((-4000, -31, 31, 4000)))
        else:
            await self._time_passes(draw)

    async def _replace_somebody(self, draw: random.Random) -> None:
        name = draw.choice((CONTROLLER, *POOLS))
        if name not in self.people.removed:
            await self.replace(name)

    async def _time_passes(self, draw: random.Random) -> None:
        """In steps in which the controller counts heartbeats: four are more than a lease."""
        for _ in range(draw.choice((1, 4))):
            self.world.pass_time(0.4 * LEASE)
            for process in tuple(self.current.values()):
                if self.world.monotonic >= process.silent_until:
                    await process.beat()
                if isinstance(process, ControllerProcess):
                    await process.look_after_agents()

    async def _take(self, steps: int, name: str) -> None:
        draw = self._drawn(name)
        for _ in range(steps):
            await self._anything(draw)

    async def _restored(self, name: str) -> None:
        """Somebody who may claim speaks for the name, unless it was removed."""
        if name in self.people.removed:
            del self.current[name]
            return
        if name != CONTROLLER:
            await self.people.decide(name, AgentState.ACTIVE)
        await self.replace(name)

    async def _round(self) -> None:
        self.world.pass_time(2 * LEASE / 10)
        for process in self.current.values():
            await process.beat()
            if isinstance(process, ControllerProcess):
                await process.look_after_agents()
            await process.look()
            await process.claim()
            await process.run_out()

    async def _all_is_over(self) -> bool:
        found = [await self.clients[0].get_job(job_id) for job_id in self.world.jobs]
        return all(job is not None and job.status.is_terminal for job in found)

    async def _ended(self, job_id: str) -> Ended:
        job = await self.clients[0].get_job(job_id)
        assert job is not None, f"{job_id} is not there"
        events = [event.type for event in await self.clients[0].get_events(job_id)]
        return Ended(job.status, job.attempt, job.log_size, events)

    async def _key_of(self, name: str) -> None:
        if name != CONTROLLER:
            key_id = self.world.key(name)
            key = make_key(self.world.users[0], id=key_id, name=key_id, scopes=frozenset({Scope.AGENT}))
            await self.clients[0].create_api_key(key)

    def _client(self) -> JobRepository:
        return self.draw.choice(self.clients)

    def _drawn(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")
