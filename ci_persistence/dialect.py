"""What our SQL says differently to SQLite and to PostgreSQL, which otherwise get the same statements.

A statement is written for SQLite, with `?` and `:name` for its values. What only PostgreSQL must hear, a lock
above all, stands in it as a comment of the form that `for_postgresql` opens: SQLite has one writer at a time.
"""

import re
from functools import lru_cache
from typing import Final

# Others may go on referring to the row (which FOR UPDATE would forbid), and wait with changing it.
LOCKED: Final = "/*postgresql: FOR NO KEY UPDATE */"
# Who is just changing a row is not waited for: to a claim another job is next, a verdict or an expiry comes again.
UNLOCKED: Final = "/*postgresql: FOR NO KEY UPDATE SKIP LOCKED */"
# A statement of its own: what claims or wants to be the controller ends first, and none begins until the end.
NO_CLAIM_MEANWHILE: Final = "/*postgresql: LOCK TABLE controller IN EXCLUSIVE MODE */"

_DIFFERENT: Final = re.compile(
    r"""(?P<positional>\?)
      | (?<!:):(?P<named>[a-z]\w*)
      | /\*postgresql:(?P<opened>.*?)\*/
      | (?P<ordered>CROSS\ JOIN)  # to SQLite: join in this order; PostgreSQL chooses the order itself
      | (?P<percent>%)""",
    re.VERBOSE,
)


@lru_cache(maxsize=512)
def for_postgresql(sql: str) -> bytes:
    """Return the statement as psycopg takes it."""
    return _DIFFERENT.sub(_said_otherwise, sql).encode()


def _said_otherwise(found: re.Match[str]) -> str:
    match found.lastgroup:
        case "positional":
            return "%s"
        case "named":
            return f"%({found['named']})s"
        case "opened":
            return found["opened"].strip()
        case "ordered":
            return "JOIN"
        case _:
            return "%%"
