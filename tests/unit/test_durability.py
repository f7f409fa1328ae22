"""Row 53: what was acknowledged survives power loss. Here: the order in which things are made durable.

No machine loses power here. What the kernel was asked for is recorded, in this process by standing in front of the
functions of `os` and by SQLite's own trace, and, where strace is to be had, from outside of a real `ci-server`.
"""

import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ci_common.models import JobFilter
from ci_persistence.sqlite_database import SQLiteDatabase
from tests.support.controlled import a_run, controlled_system
from tests.support.eventually import eventually
from tests.support.server import Account, Site, client, serving, upload
from tests.support.server_process import CI_SERVER, answers, server_process

STRACE = shutil.which("strace")
FULL = 2  # what `PRAGMA synchronous` says of it


@dataclass
class Recorder:
    """What this process asked for, in the order in which it came back (of a COMMIT: in which it began)."""

    root: Path
    steps: list[str] = field(default_factory=list[str])

    def after(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function of `os`, which is recorded once it has done its work."""

        def call(*args: Any, **kwargs: Any) -> Any:
            said = " ".join([name, *(self._path(one) for one in args)])
            result = real(*args, **kwargs)
            self.steps.append(said)
            return result

        return call

    def connect(self, real: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        """Return `sqlite3.connect`, whose connections tell every statement before it is carried out."""

        def call(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            db = real(*args, **kwargs)
            db.set_trace_callback(lambda sql: self.steps.append(" ".join(sql.split())))
            return db

        return call

    def _path(self, one: object) -> str:
        path = Path(f"/proc/self/fd/{one}").readlink() if isinstance(one, int) else str(one)
        return os.path.relpath(path, self.root)


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(tmp_path)
    for name in ("fsync", "fdatasync", "rename", "replace"):
        monkeypatch.setattr(os, name, recorder.after(name, getattr(os, name)))
    monkeypatch.setattr(sqlite3, "connect", recorder.connect(sqlite3.connect))
    return recorder


def assert_order(steps: Iterable[str], *patterns: str) -> None:
    """Steps that match these patterns follow each other, with whatever between them; each is the first one
    behind the one before it, so none of them may come earlier only."""
    left = iter(steps)
    seen: list[str] = []
    for pattern in patterns:
        for step in left:
            seen.append(step)
            if re.fullmatch(pattern, step, re.DOTALL):
                break
        else:
            pytest.fail(f"no {pattern!r} behind what was before it:\n" + "\n".join(seen))


def first(steps: list[str], pattern: str) -> int:
    return next(index for index, step in enumerate(steps) if re.fullmatch(pattern, step, re.DOTALL))


async def test_fault_53_an_upload_is_on_disk_under_its_name_before_its_row(
    recorder: Recorder, site: Site, ada: Account
) -> None:
    with serving(site.settings) as url:
        async with client(url, ada) as http:
            recorder.steps.clear()
            assert (await http.post("/submit-async", files=upload())).status_code == 200
    [job] = (await site.repository.list_jobs(JobFilter())).jobs
    name = re.escape(f"data/archives/{job.archive_ref}")
    steps = recorder.steps
    row = first(steps, r"INSERT INTO jobs\b.*")
    assert_order(steps[:row], rf"fsync {name}\.part", rf"rename {name}\.part {name}", r"fsync data/archives")
    assert_order(steps[row:], "COMMIT")


async def test_fault_53_a_log_and_its_folders_are_on_disk_before_the_verdict(
    recorder: Recorder, tmp_path: Path
) -> None:
    async with controlled_system(tmp_path, a_run()) as system, system.running():
        recorder.steps.clear()
        job_id = await system.submit()
        assert (await system.finished(job_id)).success
    steps = recorder.steps
    [folder] = {
        str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("1.log") if job_id in str(path)
    }
    verdict = first(steps, r"WITH given .*VALUES \('[^']*', 'completed', .*UPDATE jobs SET .*")
    sealed = steps[:verdict]
    logs = str(Path(folder).parent)
    for synced in (f"{folder}/1.log", f"{folder}/1.events", folder, logs):
        assert f"fsync {synced}" in sealed, "\n".join(steps)
    assert_order(sealed, rf"fsync {folder}/1\.log", rf"fsync {folder}", rf"fsync {logs}")
    assert_order(steps[verdict:], "COMMIT")


async def test_fault_53_every_connection_that_lives_syncs_at_each_commit(site: Site, tmp_path: Path) -> None:
    def asked(db: sqlite3.Connection) -> tuple[int, str]:
        [level], [mode] = (
            db.execute(f"PRAGMA {name}").fetchone() for name in ("synchronous", "journal_mode")
        )
        return level, mode

    database = SQLiteDatabase(site.settings.db_path)
    try:
        assert await database.write(asked) == (FULL, "wal")
        assert await database.read(asked) == (FULL, "wal")
    finally:
        await database.close()


# -- from outside ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One system call of a trace: which lines of it say that it began and that it was done."""

    text: str
    begun: int
    done: int


def calls_of(trace: str) -> list[Call]:
    """Return the calls that came back, in the order in which they did; other threads' lines stand between."""
    open_calls: dict[str, tuple[str, int]] = {}
    calls: list[Call] = []
    for number, line in enumerate(trace.splitlines()):
        thread, _, said = line.partition(" ")
        said = said.strip()
        if said.endswith("<unfinished ...>"):
            open_calls[thread] = (said, number)
        elif said.startswith("<... "):
            text, begun = open_calls.pop(thread, (said, number))
            calls.append(Call(text + said, begun, number))
        else:
            calls.append(Call(said, number, number))
    return calls


def the_call(calls: Iterable[Call], pattern: str, behind: int = -1) -> Call:
    """Return the first call like that which began behind that line."""
    for call in calls:
        if call.begun > behind and re.match(pattern, call.text):
            return call
    raise AssertionError(f"no {pattern} behind line {behind}")


def test_calls_of_a_trace_with_threads_are_put_together() -> None:
    trace = "7 fsync(3</a>) = 0\n7 fsync(4</b> <unfinished ...>\n8 close(5) = 0\n7 <... fsync resumed>) = 0\n"
    fsync = the_call(calls_of(trace), r"fsync\(4</b>.* = 0", behind=0)
    assert (fsync.begun, fsync.done) == (1, 3)
    with pytest.raises(AssertionError):
        the_call(calls_of(trace), r"fsync\(4", behind=1)


@pytest.mark.skipif(STRACE is None, reason="strace is not on this machine; the recorders above need nothing")
async def test_fault_53_a_real_server_syncs_archive_folder_and_database_before_it_answers(
    site: Site, ada: Account, tmp_path: Path
) -> None:
    assert STRACE is not None
    trace = tmp_path / "trace"
    watched = "trace=fsync,fdatasync,rename,renameat,renameat2,sendto,write,writev,sendmsg"
    # -D: the server stays the process we started, and strace its grandchild.
    command = (STRACE, "-D", "-f", "-y", "-s", "256", "-e", watched, "-o", str(trace), *CI_SERVER)
    with server_process(site, command=command) as process:
        await answers(process)
        async with client(process.url, ada) as http:
            answer = await http.post("/submit-async", files=upload())
        assert answer.status_code == 200
        process.terminate()
    eventually(lambda: "+++ exited with" in trace.read_text(errors="replace"), what="the end of the trace")
    job_id = answer.json()["job_id"]
    [job] = (await site.repository.list_jobs(JobFilter())).jobs
    calls = calls_of(trace.read_text(errors="replace"))
    archive = re.escape(str(site.settings.data_path / "archives" / job.archive_ref))
    wal = re.escape(f"{site.settings.db_path}-wal")

    upload_synced = the_call(calls, rf"fsync\(\d+<{archive}\.part>.* = 0")
    renamed = the_call(calls, rf"rename\w*\(.*{archive}\.part.* = 0", upload_synced.done)
    folder_synced = the_call(calls, r"fsync\(\d+<[^>]*/archives>.* = 0", renamed.done)
    committed = the_call(calls, rf"f(data)?sync\(\d+<{wal}>.* = 0", folder_synced.done)
    acknowledged = the_call(calls, rf"(sendto|write|writev|sendmsg)\(\d+<(socket|TCP).*{job_id}")
    assert acknowledged.begun > committed.done
