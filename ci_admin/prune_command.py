"""`ci-admin prune`: what is not to be kept any more, listed or removed; and `ci-admin stats`, which outlives it."""

from datetime import date, timedelta
from pathlib import Path

import click

from ci_admin import render
from ci_admin.session import answer, in_repository, record_act, settings_in_force, with_database
from ci_common.clock import utcnow
from ci_common.models import AuditAction, DailyTotal, User
from ci_common.repository import JobRepository


@click.command(short_help="Remove what need not be kept any longer.")
@click.option("--dry-run", is_flag=True, help="Say what would go and why; change nothing.")
@click.option(
    "--vacuum", is_flag=True, help="Then rewrite the database without gaps; writers wait meanwhile."
)
@with_database
def prune(dry_run: bool, vacuum: bool, db_path: Path | None, as_json: bool) -> None:
    """Remove uploads, logs, ended jobs and audited cancels that exceed what CI_KEEP_… says.

    The controller does the same every hour.

    Safe while controller and servers run. Give it the environment that the controller has.
    """
    # Here, not above: `--help` need not wait for the libraries of settings and database.
    from ci_controller.pruner import Pruner
    from ci_controller.retention import Prunable
    from ci_controller.settings import ControllerSettings
    from ci_persistence.factory import open_stores

    settings = settings_in_force(ControllerSettings, db_path)
    stores = open_stores(settings)

    async def work(repository: JobRepository) -> list[Prunable]:
        pruner = Pruner(repository, stores.logs, stores.archives, settings.retention)
        if dry_run:
            plan = await pruner.plan(utcnow())
            return [*plan.everything, *await pruner.plan_packs(utcnow())]
        gone = await pruner.prune(utcnow())
        if vacuum:
            await repository.rewrite()
        return gone

    gone = in_repository(db_path, work)
    if not dry_run:
        record_act(db_path, AuditAction.PRUNE, settings.database_name, removed=len(gone), vacuum=vacuum)
    fields = {"dry_run": dry_run, "pruned": [render.prunable_fields(one) for one in gone]}
    answer(fields, render.prunable_table(gone, dry_run=dry_run), as_json=as_json)


@click.command(short_help="Count jobs by day and user, pruned ones included.")
@click.option(
    "--days", type=click.IntRange(1), default=30, show_default=True, help="How many days (UTC) back."
)
@with_database
def stats(days: int, db_path: Path | None, as_json: bool) -> None:
    """Count the jobs that ended, by day (UTC) and user: how many, passed, and why the others did not.

    Counted by the transaction that ends a job, so pruning takes nothing from it.
    """
    since = utcnow().date() - timedelta(days=days - 1)
    totals, users = in_repository(db_path, lambda repository: _totals(repository, since))
    answer(render.stats_fields(totals, users), render.stats_table(totals, users), as_json=as_json)


async def _totals(repository: JobRepository, since: date) -> tuple[list[DailyTotal], dict[str, User]]:
    users = {user.id: user for user in await repository.list_users()}
    return await repository.daily_totals(since), users
