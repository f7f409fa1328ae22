"""`ci-admin key …`: options in, `accounts` in the middle, `render` out."""

from datetime import datetime
from pathlib import Path

import click

from ci_admin import accounts, render
from ci_admin.accounts import IssuedKey
from ci_admin.session import answer, in_repository, with_database
from ci_common.clock import utcnow
from ci_common.models import DEFAULT_SCOPES, APIKey, Scope, User
from ci_common.repository import JobRepository


@click.group()
def key() -> None:
    """API keys: shown once, stored as hashes, revoked at once."""


@key.command()
@click.option("--email", required=True, help="E-mail address or id of the owner.")
@click.option("--name", required=True, help="What the key is for.")
@click.option("--expires", metavar="WHEN", help="90d, 12h, 4w, 1y, or an ISO date (UTC); by default never.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What the key may be used for, repeatable; by default submit and read.",
)
@with_database
def create(
    email: str, name: str, expires: str | None, scopes: tuple[str, ...], db_path: Path | None, as_json: bool
) -> None:
    """Create a key. The answer is the only place where it is ever shown."""
    now = utcnow()
    expires_at = accounts.parse_expiry(expires, now) if expires is not None else None
    chosen = frozenset(Scope(scope) for scope in scopes) or DEFAULT_SCOPES
    issued = in_repository(
        db_path, lambda repository: _issue(repository, email, name, chosen, expires_at, now)
    )
    answer(render.issued_fields(issued), render.key_created(issued), as_json=as_json)


@key.command("list")
@click.option("--email", help="Only the keys of this user (e-mail address or id).")
@with_database
def list_keys(email: str | None, db_path: Path | None, as_json: bool) -> None:
    """List keys, oldest first; never the keys themselves."""
    keys, owners = in_repository(db_path, lambda repository: _keys_and_owners(repository, email))
    fields = [render.key_fields(one, owners[one.user_id]) for one in keys]
    answer(fields, render.key_table(keys, owners, utcnow()), as_json=as_json)


@key.command()
@click.argument("key_id")
@with_database
def revoke(key_id: str, db_path: Path | None, as_json: bool) -> None:
    """Revoke a key with the next request on. KEY_ID is its id, or its prefix as `key list` shows it."""
    revoked, owner = in_repository(db_path, lambda repository: _revoke(repository, key_id))
    answer(render.key_fields(revoked, owner), render.key_revoked(revoked), as_json=as_json)


@key.command()
@click.argument("key_id")
@click.option(
    "--keep",
    metavar="DURATION",
    default="24h",
    show_default=True,
    help="How long the old key works on: 24h, 7d …; 0h ends it now.",
)
@click.option(
    "--expires",
    metavar="WHEN",
    help="When the new key expires; by default it lives as long as the old one was to.",
)
@with_database
def rotate(key_id: str, keep: str, expires: str | None, db_path: Path | None, as_json: bool) -> None:
    """Replace a key by a new one with the same name and scopes; both work for the time of `--keep`.

    KEY_ID is its id, or its prefix as `key list` shows it. A user has two live keys of one name at most this
    way. The answer is the only place where the new key is ever shown.
    """
    now = utcnow()
    keep_until = accounts.moment_after(keep, now)
    expires_at = accounts.parse_expiry(expires, now) if expires is not None else None
    rotated = in_repository(
        db_path, lambda repository: accounts.rotate_key(repository, key_id, keep_until, expires_at, now)
    )
    answer(render.rotated_fields(rotated), render.key_rotated(rotated), as_json=as_json)


async def _issue(
    repository: JobRepository,
    email: str,
    name: str,
    scopes: frozenset[Scope],
    expires_at: datetime | None,
    now: datetime,
) -> IssuedKey:
    owner = await accounts.find_user(repository, email)
    return await accounts.issue_key(repository, owner, name, scopes, expires_at, now)


async def _keys_and_owners(
    repository: JobRepository, email: str | None
) -> tuple[list[APIKey], dict[str, User]]:
    owner = await accounts.find_user(repository, email) if email is not None else None
    keys = await repository.list_api_keys(owner.id if owner else None)
    return keys, {one.id: one for one in await repository.list_users()}


async def _revoke(repository: JobRepository, key_id: str) -> tuple[APIKey, User]:
    revoked = await accounts.revoke_key(repository, key_id, utcnow())
    return revoked, await accounts.find_user(repository, revoked.user_id)
