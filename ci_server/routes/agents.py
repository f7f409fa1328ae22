"""`/api/agents`: agents register and report; operators see and direct them."""

import asyncio
import time
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response

from ci_common.errors import ArchiveTooLarge, Conflict, InvalidRequest, NotFound, StaleClaim, TooManyRequests
from ci_common.job_terms import POOL_NAME
from ci_common.models import Agent, AgentState, PoolLimit
from ci_server.agent_access import (
    BETWEEN_LOOKS,
    COUNTED,
    MAY_BEAT,
    MAY_WAIT,
    AgentId,
    NamedAgent,
    Operator,
    Runner,
    unknown_agent,
)
from ci_server.agent_requests import said
from ci_server.agent_schemas import (
    AgentModel,
    ContainersRequest,
    EndedModel,
    HeartbeatRequest,
    HeldModel,
    ImagesModel,
    InstructionsModel,
    NewsModel,
    PoolModel,
    ProfileRequest,
    RegisteredModel,
    ScaleRequest,
    StatusRequest,
)
from ci_server.agents import (
    agent_document,
    attempt_document,
    instructions,
    is_healthy,
    news_of,
    pool_document,
    pool_documents,
    profile_of,
)
from ci_server.api_description import example, json_request, problems
from ci_server.dependencies import Server
from ci_server.rendering import json_response, timestamp

router = APIRouter(prefix="/api/agents", tags=["agents"])

_LONGEST_WAIT: Final = 25.0  # seconds; proxies lose patience after 30 or 60

Known = Annotated[str | None, Query(max_length=100, description="What the last answer said.")]
Wait = Annotated[
    float, Query(ge=0, le=_LONGEST_WAIT, description="Seconds to wait for another answer than that.")
]
PoolName = Annotated[str, Path(max_length=50, description="A pool's name.")]
NewPoolName = Annotated[str, Path(pattern=f"^{POOL_NAME}$", description="A pool's name.")]
BODY = (InvalidRequest, ArchiveTooLarge, TooManyRequests)


@router.post(
    "/register",
    summary="Register the agent of this key",
    description="A key has one agent. To register again is to take over from whoever used the key before: what it "
    "holds stays with the agent, under new tokens. 409: it was of another pool before, and stays there.",
    response_model=RegisteredModel,
    response_description="The agent.",
    responses={**example("registered"), **problems(Conflict, *BODY)},
    openapi_extra=json_request(ProfileRequest),
    dependencies=[COUNTED],
)
async def register(request: Request, caller: Runner, server: Server) -> Response:
    profile = profile_of(await said(request, caller, server, ProfileRequest))
    agent = await server.repository.register_agent(caller.key.id, profile, server.clock.now())
    lease = server.settings.agent_lease
    return json_response({"agent_id": agent.id, "epoch": agent.lease.epoch, "lease_seconds": lease})


@router.get(
    "",
    summary="List agents",
    description="Those that were not removed, by pool and name.",
    response_model=list[AgentModel],
    response_description="The agents.",
    responses={**example("agents"), **problems()},
)
async def list_agents(_: Operator, server: Server) -> Response:
    return json_response([_document(agent, server) for agent in await _present(server)])


@router.get(
    "/healthy",
    summary="List the agents that claim and are well",
    description="By pool and name.",
    response_model=list[AgentModel],
    response_description="The agents.",
    responses={**example("agents"), **problems()},
)
async def healthy(_: Operator, server: Server) -> Response:
    now, lease = server.clock.now(), _lease(server)
    agents = [agent for agent in await _present(server) if is_healthy(agent, now, lease)]
    return json_response([_document(agent, server) for agent in agents])


@router.get(
    "/pools",
    summary="List pools",
    description="A pool is there as long as an agent is in it, or a limit stands for it.",
    response_model=list[PoolModel],
    response_description="The pools.",
    responses={**example("pools"), **problems()},
)
async def pools(_: Operator, server: Server) -> Response:
    agents, limits = await _pools(server)
    return json_response(pool_documents(agents, limits, server.clock.now(), _lease(server)))


@router.get(
    "/pools/{pool}",
    summary="Read one pool",
    description="As in the list of them.",
    response_model=PoolModel,
    response_description="The pool.",
    responses={**example("pool"), **problems(NotFound, InvalidRequest)},
)
async def read_pool(_: Operator, server: Server, pool: PoolName) -> Response:
    document = await _pool_named(pool, server)
    if not document["agents"] and document["max_running"] is None:
        raise NotFound(f"No agent is in a pool {pool}, and no limit stands for it.")
    return json_response(document)


@router.post(
    "/pools/{pool}/scale",
    summary="Limit how many jobs of a pool run at the same time",
    description="Beside the slots of its agents. What runs goes on; a pool may be limited before it has an agent.",
    response_model=PoolModel,
    response_description="The pool.",
    responses={**example("pool"), **problems(*BODY)},
    openapi_extra=json_request(ScaleRequest),
)
async def scale(request: Request, caller: Operator, server: Server, pool: NewPoolName) -> Response:
    asked = await said(request, caller, server, ScaleRequest)
    await server.repository.limit_pool(pool, asked.max_running, server.clock.now(), caller.user.email)
    return json_response(await _pool_named(pool, server))


@router.get(
    "/{agent_id}",
    summary="Read one agent",
    description="As in the list of them.",
    response_model=AgentModel,
    response_description="The agent.",
    responses={**example("agent"), **problems(NotFound, InvalidRequest)},
)
async def read_agent(_: Operator, server: Server, agent_id: AgentId) -> Response:
    agent = await server.repository.find_agent(agent_id)
    if agent is None:
        raise unknown_agent(agent_id)
    return json_response(_document(agent, server))


@router.patch(
    "/{agent_id}/status",
    summary="Drain, resume or remove an agent",
    description="`draining`: it ends what it holds and claims no more. `removed`: its key is revoked, and what it "
    "holds is queued again.",
    response_model=AgentModel,
    response_description="The agent.",
    responses={**example("agent"), **problems(NotFound, *BODY)},
    openapi_extra=json_request(StatusRequest),
)
async def set_status(request: Request, caller: Operator, server: Server, agent_id: AgentId) -> Response:
    asked = await said(request, caller, server, StatusRequest)
    state, now = AgentState(asked.status), server.clock.now()
    agent = await server.repository.set_agent_state(agent_id, state, now, caller.user.email)
    if agent is None:
        raise unknown_agent(agent_id)
    return json_response(_document(agent, server))


@router.post(
    "/{agent_id}/heartbeat",
    summary="Renew the leases of all that the agent holds",
    description="Several times within `lease_seconds`; without one, what it holds is queued again.",
    response_model=InstructionsModel,
    response_description="What the agent is to do.",
    responses={**example("instructions"), **problems(NotFound, StaleClaim, *BODY)},
    openapi_extra=json_request(HeartbeatRequest),
    dependencies=[MAY_BEAT],
)
async def heartbeat(request: Request, agent: NamedAgent, caller: Runner, server: Server) -> Response:
    how = await said(request, caller, server, HeartbeatRequest)
    repository, now = server.repository, server.clock.now()
    found = await repository.heartbeat_agent(agent.lease, how.note, how.disk_free, now)
    if found is None:
        raise StaleClaim("The agent was removed or registered anew meanwhile.")
    return json_response(instructions(found, await repository.open_attempts(agent.id)))


@router.post(
    "/{agent_id}/deregister",
    summary="Leave",
    description="Once nothing is held any more. To register again is to come back.",
    status_code=204,
    response_class=Response,
    responses=problems(NotFound, StaleClaim, Conflict, InvalidRequest),
    dependencies=[COUNTED],
)
async def deregister(agent: NamedAgent, server: Server) -> Response:
    await server.repository.deregister_agent(agent.lease, server.clock.now())
    return Response(status_code=204)


@router.get(
    "/{agent_id}/attempts",
    summary="Read what the agent holds",
    description="With their tokens, and with cancel requests as they stand now. What it runs and is not in here is no "
    "longer its own.",
    response_model=HeldModel,
    response_description="The attempts.",
    responses={**example("held"), **problems(NotFound, StaleClaim, InvalidRequest)},
    dependencies=[COUNTED],
)
async def attempts(agent: NamedAgent, server: Server) -> Response:
    held = await server.repository.open_attempts(agent.id)
    now = server.clock.now()
    expires_at = agent.last_heartbeat + _lease(server)
    return json_response(
        {
            "now": timestamp(now),
            "attempts": [attempt_document(one, expires_at) for one in held],
            "claimable": await _claimable(agent, server),
        }
    )


@router.get(
    "/{agent_id}/news",
    summary="Wait for something to do",
    description="Answers as soon as it has another word than the one you know: a job to claim, a cancel, a decision.",
    response_model=NewsModel,
    response_description="The word for how things are.",
    responses={**example("news"), **problems(NotFound, StaleClaim, InvalidRequest, TooManyRequests)},
    dependencies=[MAY_WAIT],
)
async def news(agent: NamedAgent, server: Server, known: Known = None, wait: Wait = 0.0) -> Response:
    deadline = time.monotonic() + wait
    with server.hub.database() as changes:
        while (word := await _news(agent, server)) == known:
            left = deadline - time.monotonic()
            if left <= 0 or server.shutdown.has_begun:
                break
            await changes.wait(min(left, 1.0))
            await asyncio.sleep(BETWEEN_LOOKS)
    return json_response({"news": word})


@router.post(
    "/{agent_id}/ended",
    summary="Ask which containers' attempts have ended",
    description="Only of attempts that the agent itself held.",
    response_model=EndedModel,
    response_description="Those that have.",
    responses={**example("ended"), **problems(NotFound, StaleClaim, *BODY)},
    openapi_extra=json_request(ContainersRequest),
    dependencies=[COUNTED],
)
async def ended(request: Request, agent: NamedAgent, caller: Runner, server: Server) -> Response:
    asked = await said(request, caller, server, ContainersRequest)
    found = await server.repository.ended_attempts(asked.containers, agent.id)
    rows = {name: {"job_id": job_id, "attempt": number} for name, (job_id, number) in found.items()}
    return json_response({"ended": rows})


@router.get(
    "/{agent_id}/images",
    summary="Read which images the agent started jobs from",
    description="For its own decisions about which to keep.",
    response_model=ImagesModel,
    response_description="By their ids.",
    responses={**example("images"), **problems(NotFound, StaleClaim, InvalidRequest)},
    dependencies=[COUNTED],
)
async def images(agent: NamedAgent, server: Server) -> Response:
    uses = await server.repository.image_uses(agent.id)
    rows = {name: {"last_at": timestamp(use.last_at), "is_open": use.is_open} for name, use in uses.items()}
    return json_response({"images": rows})


def _lease(server: Server) -> timedelta:
    return timedelta(seconds=server.settings.agent_lease)


def _document(agent: Agent, server: Server) -> dict[str, Any]:
    return agent_document(agent, server.clock.now(), _lease(server))


async def _present(server: Server) -> list[Agent]:
    agents = await server.repository.list_agents()
    return [agent for agent in agents if agent.state is not AgentState.REMOVED]


async def _pools(server: Server) -> tuple[list[Agent], list[PoolLimit]]:
    return await _present(server), await server.repository.pool_limits()


async def _pool_named(pool: str, server: Server) -> dict[str, Any]:
    return pool_document(pool, *await _pools(server), server.clock.now(), _lease(server))


async def _claimable(agent: Agent, server: Server) -> int:
    if agent.state is not AgentState.ACTIVE:
        return 0
    return await server.repository.count_queued(server.clock.now(), agent.profile.pool)


async def _news(asked: Agent, server: Server) -> str:
    agent = await server.repository.find_agent(asked.id)
    if agent is None:
        raise unknown_agent(asked.id)
    if agent.lease != asked.lease:  # who registered since asks for himself, and needs the place
        raise StaleClaim("The agent was registered anew meanwhile.")
    return news_of(agent, await server.repository.open_attempts(agent.id), await _claimable(agent, server))
