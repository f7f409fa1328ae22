"""No secret in any log: what every end-to-end test is asked at its end."""

import mmap
from collections.abc import Iterable
from pathlib import Path

from tests.support.installation import Installation


def assert_no_secrets(system: Installation, more: Iterable[str] = ()) -> None:
    """No log of the installation's processes and none of its jobs (nor what is told beside it) holds the secret
    part of a key that the installation's people have, or of one of `more`."""
    logs = [path for pattern in ("*.log", "*.events") for path in system.root.rglob(pattern)]
    assert {daemon.log for daemon in system.daemons} <= set(logs), "there are logs to look into"
    secrets = [_secret_part(key).encode() for key in (*system.keys.values(), *more)]
    assert [str(path) for path in logs if _holds_any(path, secrets)] == []


def _secret_part(key: str) -> str:
    return key.split("_")[2] if key.count("_") == 3 else key


def _holds_any(path: Path, secrets: Iterable[bytes]) -> bool:
    """Mapped, not read: some tests leave logs as large as a log may be."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(secret) >= 0 for secret in secrets)
