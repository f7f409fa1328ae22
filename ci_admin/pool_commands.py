"""`ci-admin pool …`: the pools that agents make up, and how many of their jobs run at the same time."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ci_admin import render
from ci_admin.operator_name import operator
from ci_admin.session import answer, in_repository, with_database
from ci_common.clock import utcnow
from ci_common.job_terms import POOL_NAME
from ci_common.models import Agent, PoolLimit

if TYPE_CHECKING:
    from ci_common.repository import JobRepository


def _limit(_: click.Context, __: click.Parameter, said: str) -> int | None:
    if said == "none":
        return None
    if not re.fullmatch("[1-9][0-9]{0,5}", said):
        raise click.BadParameter(
            "say 1 or more, or none; a pool that is to run nothing has its agents drained"
        )
    return int(said)


def _pool_name(_: click.Context, __: click.Parameter, name: str) -> str:
    if not re.fullmatch(POOL_NAME, name):
        raise click.BadParameter("a pool's name has lower-case letters, digits, - and _, at most 50")
    return name


@click.group()
def pool() -> None:
    """Pools of agents: list them, and limit how many of their jobs run at the same time."""


@pool.command("list")
@with_database
def list_(db_path: Path | None, as_json: bool) -> None:
    """List pools with their agents, slots, jobs and limits."""

    async def look(repository: "JobRepository") -> tuple[list[Agent], list[PoolLimit]]:
        return await repository.list_agents(), await repository.pool_limits()

    fields = render.pool_fields(*in_repository(db_path, look))
    answer(fields, render.pool_table(fields), as_json=as_json)


@pool.command()
@click.argument("pool", callback=_pool_name)
@click.argument("limit", callback=_limit)
@with_database
def limit(pool: str, limit: int | None, db_path: Path | None, as_json: bool) -> None:
    """Let no more than LIMIT jobs of the pool run at the same time; "none" lets any number.

    It counts beside the slots of the agents and the limits of the users; what runs goes on. The pool "default" may be
    limited, too.
    """
    in_repository(db_path, lambda repository: repository.limit_pool(pool, limit, utcnow(), operator()))
    said = f"✓ Pool {pool} runs {'any number of jobs' if limit is None else f'at most {limit} jobs'} at the same time"
    answer({"pool": pool, "max_running": limit}, said, as_json=as_json)
