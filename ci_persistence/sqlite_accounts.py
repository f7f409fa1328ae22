"""SQL about users and API keys. Each function runs inside a transaction that its caller opened."""

import sqlite3
from datetime import datetime

from ci_common.errors import AlreadyExists, NotFound
from ci_common.models import APIKey, User
from ci_persistence import sqlite_jobs
from ci_persistence.rows import api_key_from, optional_text, scopes_text, to_text, user_from

BY_OPERATOR = "operator"


def create_user(db: sqlite3.Connection, user: User) -> None:
    """The user exists; raises AlreadyExists."""
    if get_user_by_email(db, user.email) is not None:
        raise AlreadyExists(f"There is a user with the e-mail address {user.email} already.")
    db.execute(
        "INSERT INTO users (id, name, email, email_folded, created_at, is_active, role) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            user.id,
            user.name,
            user.email,
            user.email.casefold(),
            to_text(user.created_at),
            int(user.is_active),
            user.role,
        ),
    )


def get_user(db: sqlite3.Connection, user_id: str) -> User | None:
    """Return the user with that id."""
    row = db.execute("SELECT * FROM users WHERE id = ?", (user_id,)).fetchone()
    return None if row is None else user_from(row)


def get_user_by_email(db: sqlite3.Connection, email: str) -> User | None:
    """Return the user with that address, compared without case."""
    row = db.execute("SELECT * FROM users WHERE email_folded = ?", (email.casefold(),)).fetchone()
    return None if row is None else user_from(row)


def list_users(db: sqlite3.Connection) -> list[User]:
    """Return all users, oldest first."""
    return [user_from(row) for row in db.execute("SELECT * FROM users ORDER BY created_at, id")]


def set_user_active(db: sqlite3.Connection, user_id: str, active: bool, now: datetime) -> User | None:
    """The user is (in)active; deactivating ends the user's jobs too."""
    row = db.execute(
        "UPDATE users SET is_active = ? WHERE id = ? RETURNING *", (int(active), user_id)
    ).fetchone()
    if row is None:
        return None
    if not active:
        for job_id in sqlite_jobs.unfinished_jobs(db, user_id):
            sqlite_jobs.request_cancel(db, job_id, None, BY_OPERATOR, now)
    return user_from(row)


def create_api_key(db: sqlite3.Connection, key: APIKey) -> None:
    """The key is stored; raises NotFound for an unknown owner."""
    if get_user(db, key.user_id) is None:
        raise NotFound(f"There is no user {key.user_id}.")
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


def list_api_keys(db: sqlite3.Connection, user_id: str | None) -> list[APIKey]:
    """Return the keys of a user, or all, oldest first."""
    if user_id is None:
        rows = db.execute("SELECT * FROM api_keys ORDER BY created_at, id")
    else:
        rows = db.execute("SELECT * FROM api_keys WHERE user_id = ? ORDER BY created_at, id", (user_id,))
    return [api_key_from(row) for row in rows]


def find_api_key(db: sqlite3.Connection, key_hash: str) -> tuple[APIKey, User] | None:
    """Return the key with that hash and its owner."""
    row = db.execute("SELECT * FROM api_keys WHERE key_hash = ?", (key_hash,)).fetchone()
    if row is None:
        return None
    owner = get_user(db, row["user_id"])
    assert owner is not None, "a foreign key guarantees the owner"
    return api_key_from(row), owner


def revoke_api_key(db: sqlite3.Connection, key_id: str) -> APIKey | None:
    """The key is inactive, and is returned."""
    row = db.execute("UPDATE api_keys SET is_active = 0 WHERE id = ? RETURNING *", (key_id,)).fetchone()
    return None if row is None else api_key_from(row)


def touch_api_key(db: sqlite3.Connection, key_id: str, at: datetime) -> None:
    """`last_used_at` is at least that."""
    text = to_text(at)
    db.execute(
        "UPDATE api_keys SET last_used_at = :at WHERE id = :id AND (last_used_at IS NULL OR last_used_at < :at)",
        {"id": key_id, "at": text},
    )
