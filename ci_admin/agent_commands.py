"""`ci-admin agent …`: who runs jobs on other hosts, and what operators decide about them."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ci_admin import render
from ci_admin.operator_name import operator
from ci_admin.session import answer, in_repository, settings_in_force, with_database
from ci_common.clock import utcnow
from ci_common.errors import Conflict, NotFound
from ci_common.models import Agent, AgentState

if TYPE_CHECKING:
    from ci_common.repository import JobRepository

_agent_argument = click.argument("agent", metavar="AGENT")


@click.group()
def agent() -> None:
    """Runners on other hosts: list, drain and remove them.

    AGENT is its name or its id. A new one is made by a key: ci-admin key create --scope agent.
    """


@agent.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that were removed.")
@with_database
def list_(everything: bool, db_path: Path | None, as_json: bool) -> None:
    """List agents with their pools, slots, health and jobs."""
    agents = in_repository(db_path, lambda repository: repository.list_agents())
    shown = [one for one in agents if everything or one.state is not AgentState.REMOVED]
    now, lease = utcnow(), _lease(db_path)
    fields = [render.agent_fields(one, now, lease) for one in shown]
    answer(fields, render.agent_table(shown, now, lease), as_json=as_json)


@agent.command()
@_agent_argument
@with_database
def drain(agent: str, db_path: Path | None, as_json: bool) -> None:
    """Let an agent end what it runs and claim no more, also after a restart."""
    _decide(agent, AgentState.DRAINING, "✓ {} claims no more", db_path, as_json=as_json)


@agent.command()
@_agent_argument
@with_database
def resume(agent: str, db_path: Path | None, as_json: bool) -> None:
    """Let an agent claim again that was drained."""
    _decide(agent, AgentState.ACTIVE, "✓ {} claims again", db_path, as_json=as_json)


@agent.command()
@_agent_argument
@with_database
def remove(agent: str, db_path: Path | None, as_json: bool) -> None:
    """Revoke an agent's key; it removes its containers and ends, and its jobs are queued again."""
    _decide(agent, AgentState.REMOVED, "✓ {} is removed, and its key revoked", db_path, as_json=as_json)


def _decide(named: str, state: AgentState, said: str, db_path: Path | None, *, as_json: bool) -> None:
    async def act(repository: "JobRepository") -> Agent:
        found = _the_one(named, await repository.list_agents())
        changed = await repository.set_agent_state(found.id, state, utcnow(), operator())
        assert changed is not None, "no agent's row ever goes"
        return changed

    changed = in_repository(db_path, act)
    fields = render.agent_fields(changed, utcnow(), _lease(db_path))
    answer(fields, said.format(changed.profile.name), as_json=as_json)


def _the_one(named: str, agents: list[Agent]) -> Agent:
    present = [one for one in agents if one.state is not AgentState.REMOVED]
    found = [one for one in present if named in (one.id, one.profile.name)]
    if not found:
        raise NotFound(f"There is no agent {named}; `ci-admin agent list` shows who there is.")
    if len(found) > 1:
        ids = ", ".join(one.id for one in found)
        raise Conflict(f"{len(found)} agents are called {named}: name one by its id, {ids}.")
    return found[0]


def _lease(db_path: Path | None) -> timedelta:
    from ci_common.settings import ServiceSettings

    return timedelta(seconds=settings_in_force(ServiceSettings, db_path).agent_lease)
