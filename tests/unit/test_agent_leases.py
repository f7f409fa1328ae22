"""Leases of agents by counted heartbeats: who is lost when, whatever clocks say."""

from dataclasses import replace

from ci_common.models import Agent, AgentLease, AgentProfile, AgentState
from ci_controller.agent_leases import AgentLeases
from tests.support.repository_contract.story import at

BUSY = Agent(AgentLease("rack", 1), AgentProfile("rack"), at(0), at(0), jobs_running=1)


def lost(leases: AgentLeases, now: float, *agents: Agent) -> list[str]:
    return [agent.id for agent in leases.lost(agents, now)]


def lost_within(leases: AgentLeases, start: int, end: int, agent: Agent) -> float | None:
    """When the agent was lost first, looked for every second."""
    return next((now for now in range(start, end) if lost(leases, now, agent)), None)


def test_an_agent_is_lost_when_its_count_stood_still_for_its_lease() -> None:
    assert lost_within(AgentLeases(30), 100, 200, BUSY) == 130


def test_each_heartbeat_and_each_registration_begin_it_anew() -> None:
    leases = AgentLeases(30)
    assert lost_within(leases, 100, 129, BUSY) is None
    beaten = replace(BUSY, beats=1)
    assert lost_within(leases, 129, 159, beaten) is None
    registered = replace(beaten, lease=AgentLease("rack", 2))
    assert lost_within(leases, 159, 200, registered) == 189


def test_nobody_is_lost_for_a_heartbeat_that_came_while_nobody_could_look() -> None:
    """The database was away, or the controller stood still: agents were not heard of either."""
    leases = AgentLeases(30)
    assert lost_within(leases, 100, 110, BUSY) is None
    assert lost_within(leases, 200, 300, BUSY) == 230


def test_what_the_wall_clock_says_of_it_does_not_matter() -> None:
    leases = AgentLeases(30)
    lost(leases, 100, BUSY)
    assert lost(leases, 101, replace(BUSY, last_heartbeat=at(-86_400))) == []


def test_nobody_is_lost_to_a_controller_that_has_just_started() -> None:
    assert lost(AgentLeases(30), 10**6, BUSY) == []


def test_who_was_removed_is_lost_at_once_and_who_holds_nothing_never() -> None:
    leases = AgentLeases(30)
    assert lost(leases, 100, replace(BUSY, state=AgentState.REMOVED)) == ["rack"]
    idle = replace(BUSY, jobs_running=0)
    lost(leases, 100, idle)
    assert lost_within(leases, 101, 201, idle) is None
    assert lost(leases, 201, BUSY) == []  # counted from when it came to hold something
