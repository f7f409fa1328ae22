"""Which agents were not heard of for as long as their lease: by counting heartbeats, on our own monotonic clock.

No wall clock is asked, so that one that steps loses nobody. What was counted begins anew with the process, and after
a time without a look: nobody is lost for a heartbeat that came while no controller looked, nor for one that the
database could not take. Pure, no I/O.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ci_common.models import Agent, AgentLease, AgentState

LOOKS: Final = 10  # within a lease
_MISSED: Final = 5  # so many looks in a row, and what was counted before them proves nothing


@dataclass(frozen=True, slots=True)
class _Seen:
    """A count of heartbeats, and when it was first seen."""

    lease: AgentLease
    beats: int
    since: float


class AgentLeases:
    """Remembers since when each agent's count is what it is."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._seen: dict[str, _Seen] = {}
        self._looked_at = 0.0

    def lost(self, agents: Iterable[Agent], now: float) -> list[Agent]:
        """Return those of the agents that hold something and are lost; `now` is monotonic. One that was removed is."""
        before = self._seen if now - self._looked_at < _MISSED * self.seconds / LOOKS else {}
        self._looked_at = now
        holders = [agent for agent in agents if agent.jobs_running]
        self._seen = {agent.id: _as_seen(agent, before.get(agent.id), now) for agent in holders}
        return [
            agent
            for agent in holders
            if agent.state is AgentState.REMOVED or now - self._seen[agent.id].since >= self.seconds
        ]


def _as_seen(agent: Agent, before: _Seen | None, now: float) -> _Seen:
    if before and (before.lease, before.beats) == (agent.lease, agent.beats):
        return before
    return _Seen(agent.lease, agent.beats, now)
