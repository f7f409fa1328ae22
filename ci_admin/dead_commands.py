"""`ci-admin queue dead …`: the jobs that infrastructure lost too often."""

from pathlib import Path

import click

from ci_admin import queue_render
from ci_admin.operator_name import operator
from ci_admin.session import answer, in_repository, with_database
from ci_common.clock import utcnow
from ci_common.errors import JobNotFound
from ci_common.job_terms import new_id


@click.group()
def dead() -> None:
    """Jobs that infrastructure lost as often as CI_MAX_ATTEMPTS says."""


@dead.command("list")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many at most."
)
@with_database
def list_dead(limit: int, db_path: Path | None, as_json: bool) -> None:
    """List dead-lettered jobs, the one that ended last first."""
    found = in_repository(db_path, lambda repository: repository.dead_letters(limit))
    answer([queue_render.dead_fields(one) for one in found], queue_render.dead_table(found), as_json=as_json)


@dead.command()
@click.argument("job_id")
@with_database
def show(job_id: str, db_path: Path | None, as_json: bool) -> None:
    """Show a dead-lettered job and what became of each of its attempts."""
    found = in_repository(db_path, lambda repository: repository.dead_letter(job_id))
    if found is None:
        raise JobNotFound(f"There is no dead-lettered job {job_id}; `ci-admin queue dead list` lists them.")
    answer(queue_render.dead_with_history(found), queue_render.dead_details(found), as_json=as_json)


@dead.command(short_help="Queue dead-lettered jobs again, each as a new job.")
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...")
@with_database
def requeue(job_ids: tuple[str, ...], db_path: Path | None, as_json: bool) -> None:
    """Queue dead-lettered jobs again, all of them or none: each as a new job of the same owner, tree and options.

    The old job stays what it is; the timeline of the new one names it. A job is requeued once.
    """
    again = {job_id: new_id() for job_id in job_ids}
    in_repository(db_path, lambda repository: repository.requeue_dead(again, utcnow(), operator()))
    fields = [{"job_id": job_id, "requeued_as": as_id} for job_id, as_id in again.items()]
    answer(fields, queue_render.requeued(again), as_json=as_json)
