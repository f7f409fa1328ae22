"""`ci-admin audit`: who did what."""

from pathlib import Path

import click

from ci_admin import accounts, render
from ci_admin.session import answer, in_repository, with_database
from ci_common.clock import utcnow


@click.command(short_help="List who did what to users, keys, jobs and the database.")
@click.option("--since", metavar="DURATION", help="Only the last 24h, 7d, 4w …; by default all there is.")
@with_database
def audit(since: str | None, db_path: Path | None, as_json: bool) -> None:
    """List who did what to users, keys, jobs and the database, oldest first; never a secret.

    The trail is kept for ever: a row is small, and outlives the job or the key it tells of.
    """
    after = accounts.moment_before(since, utcnow()) if since is not None else None
    events = in_repository(db_path, lambda repository: repository.list_audit(after))
    answer([render.audit_fields(event) for event in events], render.audit_table(events), as_json=as_json)
