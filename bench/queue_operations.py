"""How long each operation of the queue takes by itself, on both databases: `python -m bench.queue_operations`.

Through the repository, as the server calls it, without HTTP; files and cluster are as in `bench.queue_peers`, so each
write waits for its commit on the disk. The queue holds 1000 jobs. A row of 003's table ("Performance") each.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.queue_peers import Contender, Places
from bench.report import percentile
from ci_common.job_terms import Reason
from ci_common.models import AgentLease, Attempt, ControllerLease, JobFilter, LogSeal
from ci_common.repository import JobRepository
from ci_common.verdict import verdict
from ci_persistence.postgres_repository import PostgresJobRepository
from ci_persistence.sqlite_repository import SQLiteJobRepository
from tests.support.repository_contract.story import PROFILE, make_job, make_key, make_user

_JOBS = 1000
_REFUSED = verdict(Reason.BAD_ARCHIVE, "The archive has no tests.")
_LOG = LogSeal(1024, "0" * 64)
Operation = Callable[[], Awaitable[object]]


class Operations:
    """Each operation of the table, ready to be done once more."""

    def __init__(
        self, repository: JobRepository, lease: ControllerLease, agents: Sequence[AgentLease]
    ) -> None:
        self._repository = repository
        self._lease = lease
        self._agents = list(agents)
        self._registered = self._agents[0]
        self._user = make_user()
        self._claimed: list[Attempt] = []
        self._last = ""

    def all(self) -> dict[str, Operation]:
        """Return them in an order in which each finds what it needs."""
        return {
            "enqueue": self._enqueue,
            "claim": self._claim,
            "complete": self._complete,
            "get a job": lambda: self._repository.get_job(self._last),
            "list 1000 jobs": lambda: self._repository.list_jobs(JobFilter(limit=_JOBS)),
            "queue statistics": lambda: self._repository.queue_figures(_now() - timedelta(days=1)),
            "register an agent": self._register,
            "heartbeat": lambda: self._repository.heartbeat_agent(self._registered, None, None, _now()),
        }

    async def _enqueue(self) -> None:
        self._last = (await self._repository.create_job(make_job(self._user, _now()))).id

    async def _claim(self) -> None:
        self._claimed += await self._repository.claim_jobs(self._lease, 1, _now())

    async def _complete(self) -> None:
        assert await self._repository.finish_attempt(self._claimed.pop().fence, _REFUSED, _LOG, _now())

    async def _register(self) -> None:
        lease = self._agents.pop()
        profile = replace(PROFILE, name=lease.agent_id)
        self._registered = (await self._repository.register_agent(lease.agent_id, profile, _now())).lease


def _now() -> datetime:
    return datetime.now(UTC)


async def measured(repository: JobRepository, times: int) -> dict[str, list[float]]:
    """Return the milliseconds of each operation; the operations take turns."""
    state = await repository.controller_state()
    assert state is not None, "the queue was filled"
    user = make_user()
    await repository.create_user(user)
    keys = [make_key(user) for _ in range(times + 1)]
    for key in keys:
        await repository.create_api_key(key)
    lease, agents = ControllerLease(state.epoch, state.holder), [AgentLease(key.id, 0) for key in keys]
    found: dict[str, list[float]] = {}
    operations = Operations(repository, lease, agents).all()
    for number in range(times + 1):
        for name, operation in operations.items():
            began = time.perf_counter()
            await operation()
            if number:  # the first of all opens connections
                found.setdefault(name, []).append((time.perf_counter() - began) * 1000)
    await repository.close()
    return found


def _three(samples: Sequence[float]) -> str:
    return ", ".join(f"{percentile(samples, percent):.1f}" for percent in (50, 95, 99))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=300, help="samples of each operation (default 300)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ci-bench-queue-") as root:
        Path(root).chmod(0o755)  # the server is another user
        places = Places(Path(root))
        try:
            file, server = (
                places.filled(Contender("ours", "ours", on_server=on_server, users=10), _JOBS)
                for on_server in (False, True)
            )
            sqlite = asyncio.run(measured(SQLiteJobRepository(file), options.times))
            postgresql = asyncio.run(measured(PostgresJobRepository(server), options.times))
        finally:
            places.close()
    print("| operation | SQLite p50, p95, p99 (ms) | PostgreSQL p50, p95, p99 (ms) |\n|---|---|---|")
    for name, samples in sqlite.items():
        print(f"| {name} | {_three(samples)} | {_three(postgresql[name])} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
