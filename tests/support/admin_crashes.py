"""The stories in which `ci-admin` dies between an act and its answer; see `tests.support.crash_scenarios`."""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ci_common.crash_points import CrashPoint
from tests.support.forked import fork_server

_CRASHED = 137
_ROOT = Path(__file__).parents[2]
_EVE = ("user", "create", "--name", "Eve", "--email", "eve@example.org")
_KEY = ("key", "create", "--email", "eve@example.org", "--name", "laptop")


class Admin:
    """`ci-admin` in processes of its own (which need no start), on that database."""

    def __init__(self, database: Path) -> None:
        self._database = database

    async def run(self, *arguments: str, crash_at: str = "") -> subprocess.CompletedProcess[str]:
        """Return the command that ended, well or not."""
        environment = {**os.environ, "CI_DB_PATH": str(self._database)}
        environment |= {"CI_CRASH_AT": crash_at} if crash_at else {}
        server = fork_server("ci_admin.cli")
        done = await asyncio.to_thread(server.run, *arguments, environment=environment, cwd=_ROOT, timeout=60)
        return subprocess.CompletedProcess(
            arguments, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    async def json(self, *arguments: str) -> Any:
        """Return the JSON answer of a command that goes well."""
        done = await self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    async def told(self) -> list[str]:
        """Return the actions in the audit trail."""
        return [event["action"] for event in await self.json("audit")]


async def a_user_is_made(path: Path, point: CrashPoint, nth: int) -> bool:
    """Before the commit there is neither user nor trail; after it both, and whoever asks again is told so."""
    admin = Admin(path / "ci_jobs.db")
    died = await admin.run(*_EVE, crash_at=f"{point}:{nth}")
    committed = died.returncode != _CRASHED or point == "after_user_created"
    users = await admin.json("user", "list")
    assert [user["email"] for user in users] == ["eve@example.org"] * committed
    assert await admin.told() == ["user.create"] * committed
    again = await admin.run(*_EVE)
    assert again.returncode == (65 if committed else 0), again.stderr
    return died.returncode == _CRASHED


async def a_key_is_made(path: Path, point: CrashPoint, nth: int) -> bool:
    """A key whose secret nobody saw is listed, told of, and revoked like any other."""
    admin = Admin(path / "ci_jobs.db")
    await admin.json(*_EVE)
    died = await admin.run(*_KEY, crash_at=f"{point}:{nth}")
    if died.returncode != _CRASHED:
        return False
    await _can_be_revoked(admin, died)
    return True


async def a_key_is_rotated(path: Path, point: CrashPoint, nth: int) -> bool:
    """The old key works on, and the new one that nobody saw can be revoked to try again."""
    admin = Admin(path / "ci_jobs.db")
    await admin.json(*_EVE)
    old = await admin.json(*_KEY)
    died = await admin.run("key", "rotate", old["id"], crash_at=f"{point}:{nth}")
    if died.returncode != _CRASHED:
        return False
    await _can_be_revoked(admin, died)
    renewed = await admin.json("key", "rotate", old["id"])
    assert renewed["api_key"]
    return True


async def _can_be_revoked(admin: Admin, died: subprocess.CompletedProcess[str]) -> None:
    assert died.stdout == "", "the secret was not shown"
    lost = (await admin.json("key", "list"))[-1]
    assert lost["is_active"]
    assert await admin.told() != []
    assert (await admin.json("key", "revoke", lost["prefix"]))["is_active"] is False
