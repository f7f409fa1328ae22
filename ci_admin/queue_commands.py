"""`ci-admin queue …`: what operators do with the queue."""

from pathlib import Path

import click

from ci_admin import accounts, queue_render, render
from ci_admin.dead_commands import dead
from ci_admin.operator_name import operator
from ci_admin.session import answer, in_repository, with_database
from ci_common.clock import utcnow
from ci_common.errors import InvalidRequest
from ci_common.queue_stats import LONGEST_WINDOW, stats_document

_LONGEST_REASON = 200


@click.group()
def queue() -> None:
    """What waits: look at it, pause it and let it go on."""


queue.add_command(dead)


@queue.command()
@click.option("--reason", help="Why; people who wait read it.")
@with_database
def pause(reason: str | None, db_path: Path | None, as_json: bool) -> None:
    """Let nothing be claimed until `resume`; what runs goes on, and jobs are still accepted.

    A pause outlives restarts. An earlier one stands, with its reason.
    """
    if reason is not None and (len(reason) > _LONGEST_REASON or not reason.strip().isprintable()):
        raise InvalidRequest(f"A reason is one line of at most {_LONGEST_REASON} characters.")
    given = (reason or "").strip() or None
    paused = in_repository(db_path, lambda repository: repository.pause_queue(given, utcnow(), operator()))
    answer(render.pause_fields(paused), render.queue_paused(paused), as_json=as_json)


@queue.command()
@with_database
def resume(db_path: Path | None, as_json: bool) -> None:
    """Let jobs be claimed again; how long they may wait in the queue counts anew."""
    resumed = in_repository(db_path, lambda repository: repository.resume_queue(utcnow(), operator()))
    text = "✓ Queue resumed" if resumed else "The queue was not paused."
    answer({"resumed": resumed}, text, as_json=as_json)


@queue.command()
@click.option(
    "--window",
    "back",
    metavar="DURATION",
    default="1h",
    show_default=True,
    help="Of what ended in the last 1h, 12h, 7d …",
)
@with_database
def stats(back: str, db_path: Path | None, as_json: bool) -> None:
    """Show what the queue holds now, and waits, runs and failures of the jobs that ended in a window of time.

    A wait lasts from the submission to the start of the attempt that counted. Cancelled jobs count in no rate.
    """
    now = utcnow()
    since = accounts.moment_before(back, now)
    if not now - LONGEST_WINDOW <= since < now:
        raise InvalidRequest(f"A window is at least 1h and at most {LONGEST_WINDOW.days}d long.")
    figures = in_repository(db_path, lambda repository: repository.queue_figures(since))
    document = stats_document(figures, now - since, now)
    answer(document, queue_render.queue_stats(document), as_json=as_json)
