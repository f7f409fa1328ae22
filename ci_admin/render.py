"""What `ci-admin` says: text for people, with wording that scripts may rely on, and JSON with stable keys.

Names come from people and databases: whatever is in them, a line stays one line and the terminal obeys none of it.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from ci_admin.accounts import Deactivated, IssuedKey, Rotated
from ci_common.job_terms import Reason
from ci_common.models import (
    Agent,
    AgentState,
    APIKey,
    AuditEvent,
    DailyTotal,
    PoolLimit,
    QueuePause,
    Role,
    User,
)
from ci_common.terminal import one_line
from ci_controller.retention import Prunable

NOTHING = "-"
_ONLY_NOW = ("⚠️  IMPORTANT: This is the only time you'll see this key!", "   Save it securely now.")


def as_json(value: object) -> str:
    """Return a value as indented JSON: other alphabets legible, what a terminal could obey or not show escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def user_fields(user: User) -> dict[str, Any]:
    """Return a user's JSON."""
    return {
        "id": user.id,
        "name": user.name,
        "email": user.email,
        "role": user.role.value,
        "is_active": user.is_active,
        "max_priority": user.limits.max_priority.value,
        "max_running": user.limits.max_running,
        "created_at": iso(user.created_at),
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
        "created_at": iso(key.created_at),
        "expires_at": iso(key.expires_at),
        "last_used_at": iso(key.last_used_at),
    }


def issued_fields(issued: IssuedKey) -> dict[str, Any]:
    """Return a new key's JSON: the only one that holds the secret."""
    return {"api_key": issued.secret, **key_fields(issued.key, issued.owner)}


def rotated_fields(rotated: Rotated) -> dict[str, Any]:
    """Return a rotation's JSON: the new key with its secret, and the one it replaces."""
    return {**issued_fields(rotated.new), "replaces": key_fields(rotated.old, rotated.new.owner)}


def audit_fields(event: AuditEvent) -> dict[str, Any]:
    """Return the JSON of a line of the audit trail."""
    return {
        "at": iso(event.at),
        "actor": event.actor,
        "action": event.action.value,
        "subject": event.subject,
        "request_id": event.request_id,
        "details": dict(event.details),
    }


def deactivated_fields(result: Deactivated) -> dict[str, Any]:
    """Return the JSON of a deactivation."""
    return {**user_fields(result.user), "cancelled_jobs": result.jobs}


def user_created(user: User) -> str:
    """Return what is said of a new user."""
    lines = [
        "✓ User created successfully",
        f"ID:    {one_line(user.id)}",
        f"Name:  {one_line(user.name)}",
        f"Email: {one_line(user.email)}",
    ]
    return "\n".join(lines + ([f"Role:  {user.role}"] if user.role is not Role.USER else []))


def user_details(user: User) -> str:
    """Return all that is known of a user."""
    return "\n".join(
        [
            f"ID:      {one_line(user.id)}",
            f"Name:    {one_line(user.name)}",
            f"Email:   {one_line(user.email)}",
            f"Role:    {user.role}",
            f"Active:  {_yes(user.is_active)}",
            f"Created: {minute(user.created_at)}",
            f"Highest priority: {user.limits.max_priority}",
            f"Jobs at the same time: {user.limits.max_running or 'any number'}",
        ]
    )


def user_activated(user: User) -> str:
    """Return what is said of a user who may work again."""
    return f"✓ User activated successfully\nID:    {one_line(user.id)}\nEmail: {one_line(user.email)}"


def user_deactivated(result: Deactivated) -> str:
    """Return what is said of a user who may not work any more."""
    jobs = f"\nJobs:  {result.jobs} unfinished cancelled" if result.jobs else ""
    user_id, email = one_line(result.user.id), one_line(result.user.email)
    return f"✓ User deactivated successfully\nID:    {user_id}\nEmail: {email}{jobs}"


def pause_fields(pause: QueuePause) -> dict[str, Any]:
    """Return the JSON of a pause of the queue."""
    return {"paused_at": iso(pause.at), "paused_by": pause.by, "reason": pause.reason}


def queue_paused(pause: QueuePause) -> str:
    """Return what is said of the pause in force."""
    lines = ["✓ Queue paused", f"Since:  {minute(pause.at)}", f"By:     {one_line(pause.by)}"]
    return "\n".join([*lines, *([f"Reason: {one_line(pause.reason)}"] if pause.reason else [])])


def key_created(issued: IssuedKey) -> str:
    """Return what is said of a new key, the key itself included."""
    return "\n".join(["✓ API key created successfully", "", *_new_key(issued), "", *_ONLY_NOW])


def key_rotated(rotated: Rotated) -> str:
    """Return what is said of a new key in the place of another."""
    replaces = f"Replaces: {one_line(rotated.old.prefix)}, which works until {minute(rotated.old.expires_at)}"
    lines = ["✓ API key rotated successfully", "", *_new_key(rotated.new), replaces, "", *_ONLY_NOW]
    return "\n".join(lines)


def _new_key(issued: IssuedKey) -> list[str]:
    lines = [
        f"API Key: {issued.secret}",
        f"Name:    {one_line(issued.key.name)}",
        f"User:    {one_line(issued.owner.email)}",
    ]
    return lines + ([f"Expires: {minute(issued.key.expires_at)}"] if issued.key.expires_at else [])


def key_revoked(key: APIKey) -> str:
    """Return what is said of a key that works no more."""
    lines = [
        f"ID:     {one_line(key.id)}",
        f"Prefix: {one_line(key.prefix)}",
        f"Name:   {one_line(key.name)}",
    ]
    return "\n".join(["✓ API key revoked successfully", *lines])


def user_table(users: Sequence[User]) -> str:
    """Return users, one per line."""
    header = ("ID", "NAME", "EMAIL", "ROLE", "ACTIVE", "CREATED")
    return table(
        header,
        [
            (user.id, user.name, user.email, user.role, _yes(user.is_active), minute(user.created_at))
            for user in users
        ],
    )


def key_table(keys: Sequence[APIKey], owners: Mapping[str, User], now: datetime) -> str:
    """Return keys, one per line."""
    header = ("ID", "PREFIX", "NAME", "USER", "SCOPES", "STATUS", "EXPIRES", "LAST USED")
    return table(
        header,
        [
            (
                key.id,
                key.prefix,
                key.name,
                owners[key.user_id].email,
                ",".join(sorted(key.scopes)),
                _state(key, now),
                minute(key.expires_at),
                minute(key.last_used_at),
            )
            for key in keys
        ],
    )


def audit_table(events: Sequence[AuditEvent]) -> str:
    """Return the audit trail, one event per line."""
    header = ("AT", "ACTOR", "ACTION", "SUBJECT", "REQUEST", "DETAILS")
    return table(
        header,
        [
            (
                second(event.at),
                event.actor,
                event.action.value,
                event.subject,
                event.request_id or NOTHING,
                " ".join(f"{name}={value}" for name, value in event.details.items() if value is not None),
            )
            for event in events
        ],
    )


def _state(key: APIKey, now: datetime) -> str:
    if not key.is_active:
        return "revoked"
    return "active" if key.is_usable(now) else "expired"


def prunable_fields(one: Prunable) -> dict[str, Any]:
    """Return the JSON of one thing that a prune takes."""
    return {"kind": one.kind, "name": one.name, "bytes": one.size, "why": one.why}


def prunable_table(prunables: Sequence[Prunable], *, dry_run: bool) -> str:
    """Return what a prune takes, one per line, and how much it is in all."""
    verb = "would go" if dry_run else "gone"
    if not prunables:
        return f"0 {verb}: everything is within what CI_KEEP_… says."
    header = ("KIND", "NAME", "BYTES", "WHY")
    listed = table(header, [(one.kind, one.name, str(one.size), one.why) for one in prunables])
    return f"{listed}\n{len(prunables)} {verb}, {sum(one.size for one in prunables)} bytes."


def stats_fields(totals: Sequence[DailyTotal], users: Mapping[str, User]) -> list[dict[str, Any]]:
    """Return the JSON of the daily totals, one object for each day and user."""
    return [
        {
            "day": day.isoformat(),
            "user_id": user_id,
            "email": users[user_id].email,
            "jobs": sum(outcomes.values()),
            "passed": outcomes.get(None, 0),
            "not_passed": {reason.value: count for reason, count in outcomes.items() if reason},
        }
        for (day, user_id), outcomes in _by_day_and_user(totals).items()
    ]


def stats_table(totals: Sequence[DailyTotal], users: Mapping[str, User]) -> str:
    """Return the daily totals, one line for each day and user."""
    rows = [
        (
            fields["day"],
            fields["email"],
            str(fields["jobs"]),
            str(fields["passed"]),
            ", ".join(f"{count} {reason}" for reason, count in fields["not_passed"].items()) or NOTHING,
        )
        for fields in stats_fields(totals, users)
    ]
    return table(("DAY", "USER", "JOBS", "PASSED", "NOT PASSED"), rows)


def _by_day_and_user(totals: Sequence[DailyTotal]) -> dict[tuple[date, str], dict[Reason | None, int]]:
    found: dict[tuple[date, str], dict[Reason | None, int]] = {}
    for total in totals:
        found.setdefault((total.day, total.user_id), {})[total.reason] = total.jobs
    return found


def agent_fields(agent: Agent, now: datetime, lease: timedelta) -> dict[str, Any]:
    """Return the JSON of an agent."""
    return {
        "agent_id": agent.id,
        "name": agent.profile.name,
        "pool": agent.profile.pool,
        "labels": list(agent.profile.labels),
        "slots": agent.profile.slots,
        "version": agent.profile.version,
        "state": agent.state.value,
        "health": agent.health(now, lease).value,
        "note": agent.note,
        "last_heartbeat": iso(agent.last_heartbeat),
        "disk_free": agent.disk_free,
        "jobs_running": agent.jobs_running,
        "jobs_completed": agent.jobs_completed,
    }


def agent_table(agents: Sequence[Agent], now: datetime, lease: timedelta) -> str:
    """Return agents, one per line."""
    if not agents:
        return "No agent has registered: `ci-admin key create --scope agent` makes a key for one."
    rows = [
        (
            agent.profile.name,
            agent.profile.pool,
            agent.state.value,
            agent.health(now, lease).value,
            f"{agent.jobs_running}/{agent.profile.slots}",
            str(agent.jobs_completed),
            minute(agent.last_heartbeat),
            agent.note or NOTHING,
        )
        for agent in agents
    ]
    header = ("NAME", "POOL", "STATE", "HEALTH", "RUNNING", "COMPLETED", "LAST HEARTBEAT", "NOTE")
    return table(header, rows)


def pool_fields(agents: Sequence[Agent], limits: Sequence[PoolLimit]) -> list[dict[str, Any]]:
    """Return the JSON of the pools that these agents make up, and of those that have a limit."""
    present = [one for one in agents if one.state is not AgentState.REMOVED]
    most = {limit.pool: limit.max_running for limit in limits}
    return [
        {
            "pool": pool,
            "agents": sum(one.profile.pool == pool for one in present),
            "slots": sum(one.profile.slots for one in present if one.profile.pool == pool),
            "jobs_running": sum(one.jobs_running for one in present if one.profile.pool == pool),
            "max_running": most.get(pool),
        }
        for pool in sorted({one.profile.pool for one in present} | set(most))
    ]


def pool_table(pools: Sequence[dict[str, Any]]) -> str:
    """Return pools, one per line."""
    if not pools:
        return "No agent has registered, and no pool has a limit."
    rows = [
        (
            one["pool"],
            str(one["agents"]),
            f"{one['jobs_running']}/{one['slots']}",
            str(one["max_running"] or "any number"),
        )
        for one in pools
    ]
    return table(("POOL", "AGENTS", "RUNNING", "AT MOST"), rows)


def table(header: Sequence[str], raw_rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a header, in columns; whatever a cell holds, a row stays one line."""
    rows = [[one_line(cell) for cell in row] for row in raw_rows]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    head = "   ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)).rstrip()
    return "\n".join([head, "-" * (sum(widths) + 3 * (len(widths) - 1)), *lines])


def _yes(value: bool) -> str:
    return "✓" if value else "✗"


def iso(moment: datetime | None) -> str | None:
    """Return ISO 8601 in UTC with a Z."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z") if moment else None


def minute(moment: datetime | None) -> str:
    """Return a time to the minute, for people."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if moment else NOTHING


def second(moment: datetime) -> str:
    """Return a time to the second, for people."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
