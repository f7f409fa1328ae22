"""Who may speak as an agent, and about which attempt: from key, epoch and a claim's token to what they open.

An agent sees what it holds and nothing else: a job that is not there, another agent's, a user's and one that it has
lost all get the same answer.
"""

import hmac
from collections.abc import AsyncGenerator
from typing import Annotated, Final

from fastapi import Depends, Header, Path, Request

from ci_common.errors import NotFound, StaleClaim
from ci_common.models import Agent, AgentState, Attempt, Scope
from ci_server.auth import Caller
from ci_server.dependencies import AnyCaller, JobId, KnownCaller, Server

AgentId = Annotated[str, Path(description="As `/api/agents/register` returns it.", max_length=100)]
Epoch = Annotated[
    int, Header(alias="Agent-Epoch", ge=1, le=2**62, description="As `/api/agents/register` returns it.")
]
Token = Annotated[
    str, Header(alias="Claim-Token", max_length=100, description="As the claim returns it, or `attempts`.")
]


async def _runner(caller: KnownCaller) -> Caller:
    caller.require(Scope.AGENT)
    return caller


async def _operator(caller: AnyCaller) -> Caller:
    caller.require(Scope.ADMIN)
    return caller


Runner = Annotated[Caller, Depends(_runner)]
Operator = Annotated[Caller, Depends(_operator)]


async def _reporter(caller: Runner, server: Server) -> Caller:
    server.rates.report_by(caller.key.id)
    return caller


async def _log_sender(caller: Runner, server: Server) -> Caller:
    server.rates.piece_by(caller.key.id)
    return caller


_Reporter = Annotated[Caller, Depends(_reporter)]
_LogSender = Annotated[Caller, Depends(_log_sender)]


# Counted is everything but heartbeats, claims and news, and logs apart from reports: a flood of either keeps the
# rest from nothing.
COUNTED: Final = Depends(_reporter)


async def _waits(caller: Runner, server: Server) -> AsyncGenerator[None]:
    with server.agent_waits.hold(caller.key.id):
        yield


async def _beats(caller: Runner, server: Server) -> AsyncGenerator[None]:
    with server.agent_beats.hold(caller.key.id):
        yield


BETWEEN_LOOKS: Final = 0.02  # seconds, of a request that waits: a burst of commits is one look
# Each holds a request open and asks the database again and again: a key has few of them at the same time.
MAY_WAIT: Final = Depends(_waits, scope="function")
MAY_BEAT: Final = Depends(_beats, scope="function")


async def _calling_agent(caller: Runner, server: Server, epoch: Epoch) -> Agent:
    agent = await server.repository.find_agent(caller.key.id)
    if agent is None or agent.state is AgentState.REMOVED or agent.lease.epoch != epoch:
        raise StaleClaim(
            "The agent of this key is not registered, or was registered anew since: register, and see what it holds."
        )
    return agent


CallingAgent = Annotated[Agent, Depends(_calling_agent)]


async def _named_agent(agent: CallingAgent, agent_id: AgentId) -> Agent:
    if agent.id != agent_id:
        raise unknown_agent(agent_id)
    return agent


NamedAgent = Annotated[Agent, Depends(_named_agent)]


def unknown_agent(agent_id: str) -> NotFound:
    """Return the one answer for an agent that never was and for one that somebody else is."""
    return NotFound(f"There is no agent {agent_id} here.")


async def _held(
    request: Request, agent: CallingAgent, server: Server, job_id: JobId, token: Token
) -> Attempt:
    for attempt in await server.repository.open_attempts(agent.id):
        same = hmac.compare_digest(attempt.fence.token.encode(), token.encode())
        if attempt.fence.job_id == job_id and same:
            request.state.job_id = job_id
            return attempt
    raise stale_claim(job_id)


_Held = Annotated[Attempt, Depends(_held)]


async def _reported(_: _Reporter, held: _Held) -> Attempt:
    return held


async def _logged(_: _LogSender, held: _Held) -> Attempt:
    return held


HeldAttempt = Annotated[Attempt, Depends(_reported)]
HeldForLog = Annotated[Attempt, Depends(_logged)]


async def require_held(attempt: Attempt, caller: Caller, server: Server) -> None:
    """The key is still good and the claim still stands; raises Unauthorized, StaleClaim."""
    await server.authenticator.recheck(caller)
    held = await server.repository.open_attempts(caller.key.id)
    if all(one.fence != attempt.fence for one in held):
        raise stale_claim(attempt.job.id)


def stale_claim(job_id: str) -> StaleClaim:
    """Return the one answer to whoever speaks of a job that he does not hold."""
    return StaleClaim(f"You do not hold job {job_id} by that token: leave it, and remove its container.")
