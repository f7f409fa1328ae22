"""SQL about users and API keys. Each function runs inside a transaction that its caller opened."""

from datetime import datetime
from typing import Literal

from ci_common.errors import AlreadyExists, Conflict, NotFound
from ci_common.models import APIKey, AuditAction, AuditEvent, LimitChange, User
from ci_persistence import sql_jobs
from ci_persistence.dialect import LOCKED, NO_CLAIM_MEANWHILE
from ci_persistence.rows import api_key_from, optional_text, scopes_text, to_text, user_from
from ci_persistence.sql_audit import append_audit
from ci_persistence.sql_connection import Connection

_LIVE_KEYS_OF_ONE_NAME = 2  # the one in use and its successor


def create_user(db: Connection, user: User, by: str) -> None:
    """The user exists; raises AlreadyExists."""
    if get_user_by_email(db, user.email) is not None:
        raise AlreadyExists(f"There is a user with the e-mail address {user.email} already.")
    db.execute(
        "INSERT INTO users (id, name, email, email_folded, created_at, is_active, role, max_priority, "
        "max_running) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            user.id,
            user.name,
            user.email,
            user.email.casefold(),
            to_text(user.created_at),
            int(user.is_active),
            user.role,
            user.limits.max_priority.rank,
            user.limits.max_running,
        ),
    )
    details = {"email": user.email, "role": user.role.value}
    append_audit(db, AuditEvent(user.created_at, by, AuditAction.USER_CREATE, user.id, details))


def get_user(db: Connection, user_id: str) -> User | None:
    """Return the user with that id."""
    row = db.execute("SELECT * FROM users WHERE id = ?", (user_id,)).fetchone()
    return None if row is None else user_from(row)


def get_user_by_email(db: Connection, email: str) -> User | None:
    """Return the user with that address, compared without case."""
    row = db.execute("SELECT * FROM users WHERE email_folded = ?", (email.casefold(),)).fetchone()
    return None if row is None else user_from(row)


def list_users(db: Connection) -> list[User]:
    """Return all users, oldest first."""
    return [user_from(row) for row in db.execute("SELECT * FROM users ORDER BY created_at, id")]


def set_user_active(db: Connection, user_id: str, active: bool, now: datetime, by: str) -> User | None:
    """The user is (in)active; deactivating ends the user's jobs too."""
    row = db.execute(
        "UPDATE users SET is_active = ? WHERE id = ? RETURNING *", (int(active), user_id)
    ).fetchone()
    if row is None:
        return None
    user = user_from(row)
    action = AuditAction.USER_ACTIVATE if active else AuditAction.USER_DEACTIVATE
    append_audit(db, AuditEvent(now, by, action, user_id, {"email": user.email}))
    if not active:
        for job_id in sql_jobs.unfinished_jobs(db, user_id):
            sql_jobs.request_cancel(db, job_id, None, by, now)
    return user


def set_user_limits(db: Connection, user_id: str, change: LimitChange, now: datetime, by: str) -> User | None:
    """What the change names holds for the user, and for whatever is claimed from then on."""
    db.execute(NO_CLAIM_MEANWHILE)
    named = _columns(change)
    settings = ", ".join(f"{column} = ?" for column in named)
    row = db.execute(
        f"UPDATE users SET {settings} WHERE id = ? RETURNING *",  # noqa: S608 - names of columns
        (*named.values(), user_id),
    ).fetchone()
    if row is None:
        return None
    user = user_from(row)
    limits = user.limits
    told = {"email": user.email, "max_priority": limits.max_priority.value, "max_running": limits.max_running}
    append_audit(db, AuditEvent(now, by, AuditAction.USER_SET, user_id, told))
    return user


def _columns(change: LimitChange) -> dict[str, int | None]:
    """Return what the change writes, by column."""
    found: dict[str, int | None] = {}
    if change.max_priority is not None:
        found["max_priority"] = change.max_priority.rank
    if change.max_running is not None:
        found["max_running"] = None if change.max_running == "none" else change.max_running
    assert found, "a change names a limit"
    return found


def create_api_key(db: Connection, key: APIKey, by: str) -> None:
    """The key is stored; raises NotFound for an unknown owner."""
    owner = get_user(db, key.user_id)
    if owner is None:
        raise NotFound(f"There is no user {key.user_id}.")
    _insert_key(db, key)
    append_audit(db, AuditEvent(key.created_at, by, AuditAction.KEY_CREATE, key.id, _told(key, owner)))


def rotate_api_key(
    db: Connection, key_id: str, successor: APIKey, keep_until: datetime, by: str
) -> APIKey | None:
    """The successor is stored and the key ends then at the latest; raises Conflict."""
    found = _key_and_owner(db, "id", key_id)
    if found is None:
        return None
    key, owner = found
    now = successor.created_at
    db.execute(f"SELECT 1 FROM users WHERE id = ? {LOCKED}", (owner.id,))  # noqa: S608
    _require_room_for_successor(db, key, owner, now)
    _insert_key(db, successor)
    until = min(keep_until, key.expires_at or keep_until)
    row = db.execute(
        "UPDATE api_keys SET expires_at = ? WHERE id = ? RETURNING *", (to_text(until), key_id)
    ).fetchone()
    details = {"successor": successor.id, "kept_until": to_text(until), **_told(successor, owner)}
    append_audit(db, AuditEvent(now, by, AuditAction.KEY_ROTATE, key_id, details))
    return api_key_from(row)


def _require_room_for_successor(db: Connection, key: APIKey, owner: User, now: datetime) -> None:
    if not owner.is_active:
        raise Conflict(f"{owner.email} is deactivated: none of the keys works.")
    if not key.is_usable(now):
        raise Conflict(
            f"Key {key.prefix} is revoked or expired already; `ci-admin key create` makes a new one."
        )
    live = [one for one in list_api_keys(db, owner.id) if one.name == key.name and one.is_usable(now)]
    if len(live) >= _LIVE_KEYS_OF_ONE_NAME:
        raise Conflict(
            f"{owner.email} has {len(live)} live keys named {key.name!r} already; "
            "wait until one expires, or `ci-admin key revoke` one."
        )


def _told(key: APIKey, owner: User) -> dict[str, str | None]:
    """Return what the audit trail tells of a key: enough to recognise it, nothing to use it by."""
    return {
        "prefix": key.prefix,
        "name": key.name,
        "email": owner.email,
        "scopes": scopes_text(key.scopes),
        "expires_at": optional_text(key.expires_at),
    }


def _insert_key(db: Connection, key: APIKey) -> None:
    db.execute(
        "INSERT INTO api_keys (id, user_id, name, key_hash, prefix, scopes, created_at, expires_at, last_used_at, "
        "is_active) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key.id,
            key.user_id,
            key.name,
            key.key_hash,
            key.prefix,
            scopes_text(key.scopes),
            to_text(key.created_at),
            optional_text(key.expires_at),
            optional_text(key.last_used_at),
            int(key.is_active),
        ),
    )


def list_api_keys(db: Connection, user_id: str | None) -> list[APIKey]:
    """Return the keys of a user, or all, oldest first."""
    if user_id is None:
        rows = db.execute("SELECT * FROM api_keys ORDER BY created_at, id")
    else:
        rows = db.execute("SELECT * FROM api_keys WHERE user_id = ? ORDER BY created_at, id", (user_id,))
    return [api_key_from(row) for row in rows]


def find_api_key(db: Connection, prefix: str) -> tuple[APIKey, User] | None:
    """Return the key with that public part and its owner."""
    return _key_and_owner(db, "prefix", prefix)


def revoke_api_key(db: Connection, key_id: str, now: datetime, by: str) -> APIKey | None:
    """The key is inactive, and is returned."""
    db.execute("UPDATE api_keys SET is_active = 0 WHERE id = ?", (key_id,))
    found = _key_and_owner(db, "id", key_id)
    if found is None:
        return None
    key, owner = found
    append_audit(db, AuditEvent(now, by, AuditAction.KEY_REVOKE, key_id, _told(key, owner)))
    return key


def _key_and_owner(db: Connection, column: Literal["id", "prefix"], value: str) -> tuple[APIKey, User] | None:
    row = db.execute(f"SELECT * FROM api_keys WHERE {column} = ?", (value,)).fetchone()  # noqa: S608  (two words)
    if row is None:
        return None
    owner = get_user(db, row["user_id"])
    assert owner is not None, "a foreign key guarantees the owner"
    return api_key_from(row), owner


def touch_api_key(db: Connection, key_id: str, at: datetime) -> None:
    """`last_used_at` is at least that."""
    text = to_text(at)
    db.execute(
        "UPDATE api_keys SET last_used_at = :at WHERE id = :id AND (last_used_at IS NULL OR last_used_at < :at)",
        {"id": key_id, "at": text},
    )
