"""`ci-admin queue …`: what operators do with the queue."""

from pathlib import Path

import click

from ci_admin import render
from ci_admin.operator_name import operator
from ci_admin.session import answer, in_repository, with_database
from ci_common.clock import utcnow
from ci_common.errors import InvalidRequest

_LONGEST_REASON = 200


@click.group()
def queue() -> None:
    """What waits: pause it and let it go on."""


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
