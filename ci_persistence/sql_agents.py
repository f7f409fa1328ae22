"""SQL of agents: who registered, who was heard of, what each may claim, and what one that is lost gives back.

The row of an agent is locked by whoever claims for it, registers it anew or takes its attempts away: one after the
other.
"""

from datetime import datetime

from ci_common.errors import Conflict, NotFound, Unauthorized
from ci_common.job_terms import Reason
from ci_common.models import (
    Agent,
    AgentLease,
    AgentProfile,
    AgentState,
    Attempt,
    AuditAction,
    AuditEvent,
    ControllerLease,
)
from ci_persistence.dialect import LOCKED
from ci_persistence.rows import agent_from, from_text, to_text
from ci_persistence.sql_accounts import revoke_api_key
from ci_persistence.sql_attempts import free_attempts, release_attempt
from ci_persistence.sql_audit import append_audit
from ci_persistence.sql_connection import Connection, Row
from ci_persistence.sql_control import Claimant, claim_for, holds, open_attempts, renew_tokens

_RUNNING = "(SELECT count(*) FROM attempts WHERE attempts.agent_id = agents.id AND attempts.ended_at IS NULL)"
AGENTS = f"SELECT agents.*, {_RUNNING} AS jobs_running FROM agents"  # noqa: S608  (constants of this module)
_LOCKED_AGENT = f"SELECT * FROM agents WHERE id = ? AND epoch = ? {LOCKED}"  # noqa: S608
_DECISIONS = {
    AgentState.ACTIVE: AuditAction.AGENT_RESUME,
    AgentState.DRAINING: AuditAction.AGENT_DRAIN,
    AgentState.REMOVED: AuditAction.AGENT_REMOVE,
}


def register_agent(db: Connection, key_id: str, profile: AgentProfile, now: datetime) -> Agent:
    """The key's agent is there under a new epoch, and whoever used the key before writes nothing any more.

    Raises Unauthorized for a key that was revoked meanwhile, Conflict for one that says it is of another pool than at
    first.
    """
    earlier = db.execute(f"SELECT pool FROM agents WHERE id = ? {LOCKED}", (key_id,)).fetchone()  # noqa: S608
    _require_good_key(db, key_id)
    if earlier is not None and earlier["pool"] != profile.pool:  # else any agent could read any pool's trees
        raise Conflict(
            f"This key's agent is of pool {earlier['pool']}, and stays there; for pool {profile.pool} make another key."
        )
    told = {
        "name": profile.name,
        "pool": profile.pool,
        "slots": profile.slots,
        "labels": " ".join(profile.labels),
        "version": profile.version,
    }
    db.execute(
        "INSERT INTO agents (id, name, pool, slots, labels, version, state, registered_at, last_heartbeat) "
        "VALUES (:id, :name, :pool, :slots, :labels, :version, 'active', :now, :now) "
        "ON CONFLICT (id) DO UPDATE SET name = :name, slots = :slots, labels = :labels, "
        "version = :version, epoch = agents.epoch + 1, beats = agents.beats + 1, registered_at = :now, "
        "last_heartbeat = :now, note = NULL, "
        "state = CASE WHEN agents.state = 'removed' THEN 'active' ELSE agents.state END",
        {"id": key_id, "now": to_text(now), **told},
    )
    renew_tokens(db, key_id, profile.name)
    return _agent(db, key_id)


def _require_good_key(db: Connection, key_id: str) -> None:
    """The key is not revoked until the transaction ends: else who was just removed would be back by this."""
    row = db.execute(f"SELECT is_active FROM api_keys WHERE id = ? {LOCKED}", (key_id,)).fetchone()  # noqa: S608
    if row is None:
        raise NotFound(f"There is no key {key_id}.")
    if not row["is_active"]:
        raise Unauthorized("This agent's key was revoked.")


def find_agent(db: Connection, agent_id: str) -> Agent | None:
    """Return the agent that registered with the key of that id."""
    row = db.execute(f"{AGENTS} WHERE id = ?", (agent_id,)).fetchone()
    return None if row is None else agent_from(row)


def list_agents(db: Connection) -> list[Agent]:
    """Return every agent."""
    return [agent_from(row) for row in db.execute(f"{AGENTS} ORDER BY pool, name, id")]


def pool_heartbeats(db: Connection) -> dict[str, datetime]:
    """Return when an agent that claims was last heard of, by pool."""
    latest = "SELECT pool, max(last_heartbeat) AS at FROM agents WHERE state = 'active' GROUP BY pool"
    return {row["pool"]: from_text(row["at"]) for row in db.execute(latest)}


def heartbeat_agent(
    db: Connection, lease: AgentLease, note: str | None, disk_free: int | None, now: datetime
) -> Agent | None:
    """The agent's lease is renewed; None: it is another one's by now, or nobody's."""
    changed = db.execute(
        "UPDATE agents SET beats = beats + 1, last_heartbeat = ?, note = ?, disk_free = ? "
        "WHERE id = ? AND epoch = ? AND state <> 'removed'",
        (to_text(now), note, disk_free, lease.agent_id, lease.epoch),
    )
    return _agent(db, lease.agent_id) if changed.rowcount else None


def set_agent_state(db: Connection, agent_id: str, state: AgentState, now: datetime, by: str) -> Agent | None:
    """The decision stands; who is removed has no key any more."""
    found = db.execute(
        "UPDATE agents SET state = ? WHERE id = ? RETURNING name, pool", (state, agent_id)
    ).fetchone()
    if found is None:
        return None
    told = {"name": found["name"], "pool": found["pool"]}
    append_audit(db, AuditEvent(now, by, _DECISIONS[state], agent_id, told))
    if state is AgentState.REMOVED:
        revoke_api_key(db, agent_id, now, by)
    return _agent(db, agent_id)


def deregister_agent(db: Connection, lease: AgentLease, now: datetime) -> bool:
    """The agent is removed by its own word, a drained one stays that; raises Conflict while it holds a job."""
    row = _locked(db, lease)
    if row is None or row["state"] == AgentState.REMOVED:
        return False
    if running := _agent(db, lease.agent_id).jobs_running:
        raise Conflict(
            f"The agent still holds {running} jobs: report their ends first, or let its lease pass."
        )
    db.execute(
        "UPDATE agents SET state = CASE WHEN state = 'draining' THEN state ELSE 'removed' END, "
        "last_heartbeat = ? WHERE id = ?",
        (to_text(now), lease.agent_id),
    )
    return True


# Nobody else claims, and no controller's heartbeat gets through, until the transaction ends: an agent with more slots
# asks again.
MOST_AT_ONCE = 32


def claim_for_agent(db: Connection, lease: AgentLease, limit: int, now: datetime) -> list[Attempt]:
    """Up to `limit` jobs of its pool are the agent's, within its slots."""
    # One after the other with the controller's claims: users' limits are looked at in one statement, and hold.
    db.execute(f"SELECT 1 FROM controller {LOCKED}")  # noqa: S608
    row = _locked(db, lease)
    if row is None or row["state"] != AgentState.ACTIVE:
        return []
    free = row["slots"] - _agent(db, lease.agent_id).jobs_running
    return claim_for(
        db, Claimant(row["name"], lease.agent_id, row["pool"]), min(limit, free, MOST_AT_ONCE), now
    )


def expire_agent(
    db: Connection, lease: ControllerLease | None, agent: Agent, max_attempts: int, now: datetime
) -> list[str]:
    """What the agent holds is given back, unless it was heard of since it was looked at.

    But not what somebody is just changing: it may be ending by the agent's own word, which is counted in the agent's
    row, locked by then. What is left over the next expiry finds.
    """
    if lease is not None and not holds(db, lease):
        return []
    row = _locked(db, agent.lease)
    if row is None or row["beats"] != agent.beats:
        return []
    message = f"Agent {agent.profile.name} was lost."
    free = free_attempts(db, agent.id)
    # In the order of their users, as daily totals are always counted, or two who count could wait for each other.
    return [
        attempt.job.id
        for attempt in sorted(open_attempts(db, agent.id), key=lambda one: one.job.user_id)
        if attempt.job.id in free
        and release_attempt(db, attempt.fence, Reason.AGENT_LOST, message, max_attempts, None, now, None)
    ]


def _locked(db: Connection, lease: AgentLease) -> Row | None:
    return db.execute(_LOCKED_AGENT, (lease.agent_id, lease.epoch)).fetchone()


def _agent(db: Connection, agent_id: str) -> Agent:
    return agent_from(db.execute(f"{AGENTS} WHERE id = ?", (agent_id,)).fetchone())
