"""`ci-admin user …`: options in, `accounts` in the middle, `render` out."""

from pathlib import Path
from typing import Literal

import click

from ci_admin import accounts, render
from ci_admin.session import answer, in_repository, with_database
from ci_common.clock import utcnow
from ci_common.job_terms import Priority
from ci_common.models import LimitChange, Role, UserLimits


@click.group()
def user() -> None:
    """People (and machines) who own jobs."""


@user.command()
@click.option("--name", required=True, help="What people call the user.")
@click.option("--email", required=True, help="E-mail address, unique without regard to case.")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default=Role.USER.value,
    show_default=True,
    help="What the user is to the installation.",
)
@click.option(
    "--max-running",
    type=click.IntRange(min=1),
    envvar="CI_MAX_RUNNING_PER_USER",
    show_envvar=True,
    help="Jobs of the user that run at the same time; by default any number.",
)
@with_database
def create(
    name: str, email: str, role: str, max_running: int | None, db_path: Path | None, as_json: bool
) -> None:
    """Create a user."""
    limits = UserLimits(max_running=max_running)
    made = in_repository(
        db_path,
        lambda repository: accounts.create_user(repository, name, email, Role(role), utcnow(), limits),
    )
    answer(render.user_fields(made), render.user_created(made), as_json=as_json)


@user.command("list")
@with_database
def list_users(db_path: Path | None, as_json: bool) -> None:
    """List all users, oldest first."""
    users = in_repository(db_path, lambda repository: repository.list_users())
    answer([render.user_fields(one) for one in users], render.user_table(users), as_json=as_json)


@user.command()
@click.option("--email", required=True, help="E-mail address or id of the user.")
@with_database
def get(email: str, db_path: Path | None, as_json: bool) -> None:
    """Show one user."""
    found = in_repository(db_path, lambda repository: accounts.find_user(repository, email))
    answer(render.user_fields(found), render.user_details(found), as_json=as_json)


def _number_or_none(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> int | Literal["none"] | None:
    if text is None or text == "none":
        return text
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise click.BadParameter(f"{text!r} is neither a number from 1 on nor the word none.")
    return int(text)


@user.command("set", short_help="Change what a user's jobs may take of the queue.")
@click.argument("user_id")
@click.option(
    "--max-priority",
    type=click.Choice([word.value for word in Priority]),
    help="The most urgent class that the user's jobs may have.",
)
@click.option(
    "--max-running",
    metavar="NUMBER",
    callback=_number_or_none,
    help="Jobs of the user that run at the same time; none: any number.",
)
@with_database
def set_limits(
    user_id: str,
    max_priority: str | None,
    max_running: int | Literal["none"] | None,
    db_path: Path | None,
    as_json: bool,
) -> None:
    """Change what a user's jobs may take of the queue; what is queued keeps its priority.

    USER_ID is an id or an e-mail address.
    """
    change = LimitChange(Priority(max_priority) if max_priority else None, max_running)
    changed = in_repository(
        db_path, lambda repository: accounts.set_limits(repository, user_id, change, utcnow())
    )
    answer(render.user_fields(changed), render.user_details(changed), as_json=as_json)


@user.command()
@click.argument("user_id")
@with_database
def activate(user_id: str, db_path: Path | None, as_json: bool) -> None:
    """Let a user work again. USER_ID is an id or an e-mail address."""
    changed = in_repository(db_path, lambda repository: accounts.activate_user(repository, user_id, utcnow()))
    answer(render.user_fields(changed), render.user_activated(changed), as_json=as_json)


@user.command()
@click.argument("user_id")
@with_database
def deactivate(user_id: str, db_path: Path | None, as_json: bool) -> None:
    """Lock a user out at once and cancel the user's unfinished jobs. USER_ID is an id or an e-mail address."""
    result = in_repository(
        db_path, lambda repository: accounts.deactivate_user(repository, user_id, utcnow())
    )
    answer(render.deactivated_fields(result), render.user_deactivated(result), as_json=as_json)
