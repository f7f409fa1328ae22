"""What `ci-admin` says: text for people, with wording that scripts may rely on, and JSON with stable keys."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ci_admin.accounts import Deactivated, IssuedKey
from ci_common.models import APIKey, Role, User

_NOTHING = "-"


def as_json(value: object) -> str:
    """Return a value as indented JSON, other alphabets legible."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def user_fields(user: User) -> dict[str, Any]:
    """Return a user's JSON."""
    return {
        "id": user.id,
        "name": user.name,
        "email": user.email,
        "role": user.role.value,
        "is_active": user.is_active,
        "created_at": _iso(user.created_at),
    }


def key_fields(key: APIKey, owner: User) -> dict[str, Any]:
    """Return a key's JSON, without anything that would let one use it."""
    return {
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "user_id": key.user_id,
        "email": owner.email,
        "scopes": sorted(key.scopes),
        "is_active": key.is_active,
        "created_at": _iso(key.created_at),
        "expires_at": _iso(key.expires_at),
        "last_used_at": _iso(key.last_used_at),
    }


def issued_fields(issued: IssuedKey) -> dict[str, Any]:
    """Return a new key's JSON: the only one that holds the secret."""
    return {"api_key": issued.secret, **key_fields(issued.key, issued.owner)}


def deactivated_fields(result: Deactivated) -> dict[str, Any]:
    """Return the JSON of a deactivation."""
    return {**user_fields(result.user), "cancelled_jobs": result.jobs}


def user_created(user: User) -> str:
    """Return what is said of a new user."""
    lines = [
        "✓ User created successfully",
        f"ID:    {user.id}",
        f"Name:  {user.name}",
        f"Email: {user.email}",
    ]
    return "\n".join(lines + ([f"Role:  {user.role}"] if user.role is not Role.USER else []))


def user_details(user: User) -> str:
    """Return all that is known of a user."""
    return "\n".join(
        [
            f"ID:      {user.id}",
            f"Name:    {user.name}",
            f"Email:   {user.email}",
            f"Role:    {user.role}",
            f"Active:  {_yes(user.is_active)}",
            f"Created: {_minute(user.created_at)}",
        ]
    )


def user_activated(user: User) -> str:
    """Return what is said of a user who may work again."""
    return f"✓ User activated successfully\nID:    {user.id}\nEmail: {user.email}"


def user_deactivated(result: Deactivated) -> str:
    """Return what is said of a user who may not work any more."""
    jobs = f"\nJobs:  {result.jobs} unfinished cancelled" if result.jobs else ""
    return f"✓ User deactivated successfully\nID:    {result.user.id}\nEmail: {result.user.email}{jobs}"


def key_created(issued: IssuedKey) -> str:
    """Return what is said of a new key, the key itself included."""
    lines = [
        "✓ API key created successfully",
        "",
        f"API Key: {issued.secret}",
        f"Name:    {issued.key.name}",
        f"User:    {issued.owner.email}",
    ]
    if issued.key.expires_at:
        lines.append(f"Expires: {_minute(issued.key.expires_at)}")
    lines += [
        "",
        "⚠️  IMPORTANT: This is the only time you'll see this key!",
        "   Save it securely now.",
    ]
    return "\n".join(lines)


def key_revoked(key: APIKey) -> str:
    """Return what is said of a key that works no more."""
    return f"✓ API key revoked successfully\nID:     {key.id}\nPrefix: {key.prefix}\nName:   {key.name}"


def user_table(users: Sequence[User]) -> str:
    """Return users, one per line."""
    header = ("ID", "NAME", "EMAIL", "ROLE", "ACTIVE", "CREATED")
    return _table(
        header,
        [
            (user.id, user.name, user.email, user.role, _yes(user.is_active), _minute(user.created_at))
            for user in users
        ],
    )


def key_table(keys: Sequence[APIKey], owners: Mapping[str, User], now: datetime) -> str:
    """Return keys, one per line."""
    header = ("ID", "PREFIX", "NAME", "USER", "SCOPES", "STATUS", "EXPIRES", "LAST USED")
    return _table(
        header,
        [
            (
                key.id,
                key.prefix,
                key.name,
                owners[key.user_id].email,
                ",".join(sorted(key.scopes)),
                _state(key, now),
                _minute(key.expires_at),
                _minute(key.last_used_at),
            )
            for key in keys
        ],
    )


def _state(key: APIKey, now: datetime) -> str:
    if not key.is_active:
        return "revoked"
    return "active" if key.is_usable(now) else "expired"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    head = "   ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)).rstrip()
    return "\n".join([head, "-" * (sum(widths) + 3 * (len(widths) - 1)), *lines])


def _yes(value: bool) -> str:
    return "✓" if value else "✗"


def _iso(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z") if moment else None


def _minute(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if moment else _NOTHING
