"""SQL about packs and what lies in them. Each function runs inside a transaction that its caller opened."""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

from ci_common.blobs import BlobPlace, Pack, PackUse
from ci_common.errors import MissingBlobs
from ci_common.models import ControllerLease, Idempotency, Job, QueueLimits
from ci_persistence.rows import from_text, to_text
from ci_persistence.sql_connection import Connection
from ci_persistence.sql_control import holds
from ci_persistence.sql_jobs import create_job, require_active_owner

_AT_ONCE = 1000  # values in one statement: each of them is one seek in the index
_FIND = (
    'SELECT sha256, name, "offset", stored, blobs.size, encoding FROM blobs JOIN packs ON packs.id = pack_id '
    "WHERE blobs.user_id = ? AND sha256 IN "
)
# Beside its bytes a pack takes a block of its disk and rows of ours: a million packs of one byte are not a megabyte.
_BYTES_PER_PACK = 4096
_BYTES_PER_BLOB = 256
_FORGOTTEN_AT_ONCE = 5_000  # rows: others wait meanwhile
_NEEDED = "SELECT 1 FROM job_packs WHERE job_packs.pack_id = packs.id"


def find_blobs(db: Connection, user_id: str, hashes: Collection[bytes]) -> dict[bytes, BlobPlace]:
    """Return where those of the contents lie that the user has stored."""
    cursor = db.cursor()
    cursor.row_factory = None  # plain tuples: looking columns up by name would double the time
    found: dict[bytes, BlobPlace] = {}
    for some in slices(hashes):
        rows = cursor.execute(_FIND + _marks(some), (user_id, *some))
        found |= {sha256: BlobPlace(*place) for sha256, *place in rows}
    return found


def add_pack(db: Connection, user_id: str, pack: Pack, now: datetime) -> int:
    """What the user did not have is found in the pack; returns how much. 0: the pack is not known."""
    require_active_owner(db, user_id)
    known = find_blobs(db, user_id, [blob.sha256 for blob in pack.blobs])
    fresh = sorted(blob for blob in pack.blobs if blob.sha256 not in known)
    if not fresh:
        return 0
    moment = to_text(now)
    pack_id = db.execute(
        "INSERT INTO packs (user_id, name, size, created_at, used_at) VALUES (?, ?, ?, ?, ?) RETURNING id",
        (user_id, pack.name, pack.size + _BYTES_PER_PACK + _BYTES_PER_BLOB * len(fresh), moment, moment),
    ).fetchone()["id"]
    db.executemany(
        'INSERT INTO blobs (user_id, pack_id, sha256, "offset", stored, size, encoding) VALUES (?, ?, ?, ?, ?, ?, ?)',
        ((user_id, pack_id, *blob) for blob in fresh),
    )
    return len(fresh)


def create_job_of_packs(
    db: Connection,
    job: Job,
    idempotency: Idempotency | None,
    limits: QueueLimits | None,
    names: Collection[str],
) -> Job:
    """The job is queued and none of those packs can go while its archive is kept; the rest as `create_job`.

    Raises MissingBlobs when one of them is not there, or not the owner's.
    """
    created = create_job(db, job, idempotency, limits)
    if created.id == job.id:
        for name in sorted(names):
            _need(db, job, name)
    return created


def _need(db: Connection, job: Job, name: str) -> None:
    # In one statement: who prunes waits from here on, and then finds the claim.
    moment = to_text(job.created_at)
    row = db.execute(
        "UPDATE packs SET used_at = CASE WHEN used_at > :at THEN used_at ELSE :at END "
        "WHERE name = :name AND user_id = :user RETURNING id",
        {"at": moment, "name": name, "user": job.user_id},
    ).fetchone()
    if row is None:
        raise MissingBlobs("Contents of the tree are not there any more; ask which are missing.")
    db.execute("INSERT INTO job_packs (job_id, pack_id) VALUES (?, ?)", (job.id, row["id"]))


def pack_bytes(db: Connection, user_id: str) -> int:
    """Return what the packs of the user take."""
    query = "SELECT coalesce(sum(size), 0) FROM packs WHERE user_id = ?"
    return int(db.execute(query, (user_id,)).fetchone()[0])


def forgettings(db: Connection, user_id: str) -> int:
    """Return what is another number once contents of the user's that were found before are missing."""
    row = db.execute("SELECT forgettings FROM users WHERE id = ?", (user_id,)).fetchone()
    return int(row[0]) if row else 0


def forget_packs(db: Connection, user_id: str, names: Collection[str]) -> None:
    """What lies in those packs of the user's is missing from now on."""
    db.execute("UPDATE users SET forgettings = forgettings + 1 WHERE id = ?", (user_id,))
    for name in names:
        db.execute(
            "DELETE FROM blobs WHERE user_id = :user AND pack_id = "
            "(SELECT id FROM packs WHERE name = :name AND user_id = :user)",
            {"user": user_id, "name": name},
        )


def packs(db: Connection) -> list[PackUse]:
    """Return all packs, the one that was used last first, of those used at the same time the newest."""
    query = (
        f"SELECT name, user_id, size, created_at, used_at, EXISTS ({_NEEDED}) AS needed FROM packs "  # noqa: S608
        "ORDER BY used_at DESC, id DESC"
    )
    return [
        PackUse(
            row["name"],
            row["user_id"],
            row["size"],
            from_text(row["created_at"]),
            from_text(row["used_at"]),
            needed=bool(row["needed"]),
        )
        for row in db.execute(query)
    ]


def forget_some(db: Connection, lease: ControllerLease | None, names: Sequence[str]) -> bool:
    """Something of what lies in the packs is missing from now on; False: all of it is, or the lease is stale."""
    if lease is not None and not holds(db, lease):
        return False
    left = _FORGOTTEN_AT_ONCE
    delete = (
        "DELETE FROM blobs WHERE (user_id, sha256) IN (SELECT user_id, sha256 FROM blobs "
        "WHERE pack_id = (SELECT id FROM packs WHERE name = ?) LIMIT ?)"
    )
    for name in names:
        db.execute(
            "UPDATE users SET forgettings = forgettings + 1 WHERE id = (SELECT user_id FROM packs WHERE name = ?)",
            (name,),
        )
        left -= db.execute(delete, (name, left)).rowcount
        if left <= 0:
            return True
    return False


def remove_packs(db: Connection, lease: ControllerLease | None, names: Sequence[str]) -> list[str]:
    """Those of the packs that no job needs are gone and returned; what lay in them was forgotten before."""
    if lease is not None and not holds(db, lease):
        return []
    delete = f"DELETE FROM packs WHERE name = ? AND NOT EXISTS ({_NEEDED})"  # noqa: S608
    return [name for name in names if db.execute(delete, (name,)).rowcount]


def known_packs(db: Connection, names: Collection[str]) -> set[str]:
    """Return those of the names that are packs."""
    query = "SELECT 1 FROM packs WHERE name = ?"
    return {name for name in names if db.execute(query, (name,)).fetchone() is not None}


def slices(hashes: Collection[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield them in order, as many at a time as one statement takes."""
    values = sorted(hashes)
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def _marks(values: Sequence[bytes]) -> str:
    return f"({', '.join('?' * len(values))})"
