"""Who ran what, how long it waited, and how it ended: from the database, as a table for people."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from tests.support.installation import Installation

_SQL = """
SELECT users.name, agents.name, jobs.reason, jobs.attempt, jobs.created_at, attempts.claimed_at, jobs.end_time
FROM jobs
JOIN users ON users.id = jobs.user_id
JOIN attempts ON attempts.job_id = jobs.id AND attempts.number = jobs.attempt
JOIN agents ON agents.id = attempts.agent_id
WHERE jobs.end_time IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """One job that has ended."""

    user: str
    agent: str
    verdict: str
    attempts: int
    waited: float  # seconds, from its submission to the claim that led to its verdict
    took: float  # seconds, from there to the verdict


def ended(system: Installation) -> list[Ended]:
    """Return every job that has ended on an agent."""
    return [_ended(*row) for row in system.query(_SQL)]


def _ended(
    user: str, agent: str, reason: str | None, attempts: int, created: str, claimed: str, end: str
) -> Ended:
    waited, took = _seconds(created, claimed), _seconds(claimed, end)
    return Ended(user, agent, reason or "passed", attempts, waited, took)


def _seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def table(jobs: Sequence[Ended]) -> list[str]:
    """Return the lines of a table with a row for each agent, each user, and all of them."""
    head = f"{'':12} {'jobs':>5} {'waited: median':>15} {'most':>8} {'ran: median':>12}   verdicts"
    rows = [*_rows(jobs, lambda job: job.agent), "", *_rows(jobs, lambda job: job.user), ""]
    return [head, *rows, _row("all", jobs)]


def _rows(jobs: Iterable[Ended], key: Callable[[Ended], str]) -> list[str]:
    groups: dict[str, list[Ended]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return [_row(name, group) for name, group in sorted(groups.items())]


def _row(name: str, jobs: Sequence[Ended]) -> str:
    verdicts = Counter(job.verdict for job in jobs)
    again = sum(job.attempts > 1 for job in jobs)
    words = [f"{times} {verdict}" for verdict, times in sorted(verdicts.items())]
    words += [f"{again} in more than one attempt"] if again else []
    waits, runs = [job.waited for job in jobs] or [0.0], [job.took for job in jobs] or [0.0]
    times = f"{median(waits):13.1f} s {max(waits):6.1f} s {median(runs):10.1f} s"
    return f"{name:12} {len(jobs):5} {times}   {', '.join(words)}"
