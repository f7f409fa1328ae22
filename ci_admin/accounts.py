"""What the operator does with users and keys, over the abstract repository. No terminal, no database of its own."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ci_admin.operator_name import operator
from ci_common.api_keys import generate_api_key, hash_api_key, key_prefix
from ci_common.crash_points import crash_point
from ci_common.errors import Conflict, InvalidRequest, NotFound
from ci_common.job_terms import JobStatus, new_id
from ci_common.models import APIKey, JobFilter, LimitChange, Role, Scope, User, UserLimits
from ci_common.repository import JobRepository

_EMAIL = re.compile(r"""[^@\s,;:<>"'\\]+@[^@\s,;:<>"'\\]+""")
_MAX_LENGTH = 254
_DURATION = re.compile(r"(\d{1,6})\s*([hdwy])", re.IGNORECASE)
_UNITS = {
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "y": timedelta(days=365),
}
_OPEN = frozenset(status for status in JobStatus if not status.is_terminal)


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key at the only moment at which its secret is known."""

    key: APIKey
    secret: str
    owner: User


@dataclass(frozen=True, slots=True)
class Rotated:
    """A new key and the one it replaces, which works until `old.expires_at`."""

    new: IssuedKey
    old: APIKey


@dataclass(frozen=True, slots=True)
class Deactivated:
    """A user who can do nothing any more, and how many unfinished jobs ended with that."""

    user: User
    jobs: int


async def create_user(
    repository: JobRepository,
    name: str,
    email: str,
    role: Role,
    now: datetime,
    limits: UserLimits = UserLimits(),  # noqa: B008 - frozen
) -> User:
    """The user exists and is returned; raises InvalidRequest, AlreadyExists."""
    if not _EMAIL.fullmatch(email) or len(email) > _MAX_LENGTH or not email.isprintable():
        raise InvalidRequest(f"{email!r} is not an e-mail address.")
    user = User(new_id(), _valid_name(name), email, now, role=role, limits=limits)
    await repository.create_user(user, operator())
    crash_point("after_user_created")
    return user


async def find_user(repository: JobRepository, id_or_email: str) -> User:
    """Return the user with that id or e-mail address; raises NotFound."""
    user = await repository.get_user(id_or_email) or await repository.get_user_by_email(id_or_email)
    if user is None:
        raise NotFound(f"There is no user {id_or_email}; `ci-admin user list` shows them all.")
    return user


async def activate_user(repository: JobRepository, id_or_email: str, now: datetime) -> User:
    """The user's keys work again; raises NotFound."""
    return await _set_active(repository, id_or_email, now, active=True)


async def set_limits(repository: JobRepository, id_or_email: str, change: LimitChange, now: datetime) -> User:
    """What the change names holds for the user, who is returned; raises NotFound, InvalidRequest for no change."""
    if change == LimitChange():
        raise InvalidRequest("Say what to set: --max-priority, --max-running.")
    user = await find_user(repository, id_or_email)
    changed = await repository.set_user_limits(user.id, change, now, operator())
    assert changed is not None, "users are never deleted"
    return changed


async def deactivate_user(repository: JobRepository, id_or_email: str, now: datetime) -> Deactivated:
    """None of the user's keys works, and every unfinished job is cancelled or about to be; raises NotFound."""
    user = await find_user(repository, id_or_email)
    page = await repository.list_jobs(JobFilter(user_id=user.id, statuses=_OPEN))
    return Deactivated(await _set_active(repository, user.id, now, active=False), len(page.jobs))


async def issue_key(
    repository: JobRepository,
    owner: User,
    name: str,
    scopes: frozenset[Scope],
    expires_at: datetime | None,
    now: datetime,
) -> IssuedKey:
    """The key works from the next request on; only its hash is kept. Raises Conflict for an inactive owner."""
    if not owner.is_active:
        raise Conflict(f"{owner.email} is deactivated; `ci-admin user activate {owner.id}` comes first.")
    issued = _new_key(owner, name, scopes, expires_at, now)
    await repository.create_api_key(issued.key, operator())
    crash_point(
        "after_key_created"
    )  # a key whose secret nobody saw: `key list` shows it, `key revoke` ends it
    return issued


async def rotate_key(
    repository: JobRepository,
    id_or_prefix: str,
    keep_until: datetime,
    expires_at: datetime | None,
    now: datetime,
) -> Rotated:
    """A new key with the same name and scopes works, and the old one until then; raises NotFound, Conflict.

    Without an expiry the new one lives as long as the old one was made to.
    """
    old = await find_key(repository, id_or_prefix)
    owner = await find_user(repository, old.user_id)
    new = _new_key(owner, old.name, old.scopes, expires_at or _same_lifetime(old, now), now)
    kept = await repository.rotate_api_key(old.id, new.key, keep_until, operator())
    assert kept is not None, "keys are never deleted"
    crash_point("after_key_created")
    return Rotated(new, kept)


async def revoke_key(repository: JobRepository, id_or_prefix: str, now: datetime) -> APIKey:
    """The key (named by its id, or by the part of it that lists show) works no more; raises NotFound."""
    key = await find_key(repository, id_or_prefix)
    revoked = await repository.revoke_api_key(key.id, now, operator())
    assert revoked is not None, "keys are never deleted"
    return revoked


async def find_key(repository: JobRepository, id_or_prefix: str) -> APIKey:
    """Return the key with that id or public part; raises NotFound."""
    for key in await repository.list_api_keys():
        if id_or_prefix in (key.id, key.prefix):
            return key
    raise NotFound(f"There is no API key {id_or_prefix}; `ci-admin key list` shows the ids of all.")


def parse_expiry(text: str, now: datetime) -> datetime:
    """Return the time that `90d`, `12h`, `4w`, `1y` or an ISO date or time (UTC) names; raises InvalidRequest."""
    expires_at = _after(text, now) or _moment(text)
    if expires_at is None:
        raise InvalidRequest(f"{text!r} is no expiry: say 90d, 12h, 4w, 1y or a date such as 2030-01-31.")
    if expires_at <= now:
        raise InvalidRequest(f"{text} is not in the future: such a key would never work.")
    return expires_at


def moment_before(text: str, now: datetime) -> datetime:
    """Return the time that lies so long before now; raises InvalidRequest."""
    return _shifted(text, now, -1)


def moment_after(text: str, now: datetime) -> datetime:
    """Return the time that lies so long after now; raises InvalidRequest."""
    return _shifted(text, now, 1)


def _shifted(text: str, now: datetime, sign: int) -> datetime:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"{text!r} is no duration: say 12h, 7d, 4w or 1y.")
    try:
        return now + sign * int(match[1]) * _UNITS[match[2].lower()]
    except OverflowError as error:
        raise InvalidRequest(f"{text} is further away than calendars go.") from error


def _after(text: str, now: datetime) -> datetime | None:
    try:
        return moment_after(text, now)
    except InvalidRequest:
        return None


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _valid_name(name: str) -> str:
    stripped = name.strip()
    if not stripped or len(stripped) > _MAX_LENGTH or not stripped.isprintable():
        raise InvalidRequest(f"A name has 1 to {_MAX_LENGTH} printable characters.")
    return stripped


async def _set_active(repository: JobRepository, id_or_email: str, now: datetime, *, active: bool) -> User:
    user = await find_user(repository, id_or_email)
    changed = await repository.set_user_active(user.id, active=active, now=now, by=operator())
    assert changed is not None, "users are never deleted"
    return changed


def _new_key(
    owner: User, name: str, scopes: frozenset[Scope], expires_at: datetime | None, now: datetime
) -> IssuedKey:
    secret = generate_api_key()
    key = APIKey(
        id=new_id(),
        user_id=owner.id,
        name=_valid_name(name),
        key_hash=hash_api_key(secret),
        created_at=now,
        prefix=key_prefix(secret),
        scopes=scopes,
        expires_at=expires_at,
    )
    return IssuedKey(key, secret, owner)


def _same_lifetime(key: APIKey, now: datetime) -> datetime | None:
    return None if key.expires_at is None else now + (key.expires_at - key.created_at)
