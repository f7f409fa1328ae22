"""What the engine tells of a job's disk, for real; and disks that fill up under a controller, as small mounts."""

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ci_common.disk_space import Space
from ci_common.errors import StorageFull
from ci_common.job_terms import JobStatus, Reason
from ci_common.settings import StorageSettings
from ci_controller.container_manager import ContainerManager
from ci_controller.container_runtime import DiskUse, start_and_feed
from ci_controller.disk_guard import Blame, Shortage, Victim, choose_victim
from ci_controller.disk_watch import DATA, DATABASE
from ci_controller.policy import Policy
from ci_persistence.ballast import Ballast
from ci_persistence.factory import open_stores
from tests.support.controlled import OUTPUT, ControlledSystem, a_run, controlled_system, eventually
from tests.support.docker_cli import RUNNER_IMAGE, require_engine
from tests.support.runtime_contract import Engine
from tests.support.small_disk import fill, small_disk

MIB = 1024**2

HOLD = "\nprint('ready', flush=True)\nwhile True: time.sleep(60)\n"
IDLE = "import time" + HOLD
FILES = "import time\nfor n in range(30): open(f'/tmp/{n}', 'wb').write(b'x' * 2**20)" + HOLD
UNLINKED = (
    "import os, time\nf = open('/tmp/hidden', 'wb')\nos.unlink('/tmp/hidden')\n"
    "for n in range(30): f.write(b'x' * 2**20)\nf.flush()" + HOLD
)
RESERVED = (
    "import os, time\nf = open('/tmp/hidden', 'wb')\nos.unlink('/tmp/hidden')\n"
    "os.posix_fallocate(f.fileno(), 0, 30 * 2**20)" + HOLD
)
CHILD = "import os; f = open('/tmp/x', 'wb', 0); f.write(bytes(30 * 2**20)); os.fsync(f); os.unlink('/tmp/x')"
OF_A_CHILD = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {CHILD!r}])" + HOLD
IN_MEMORY = (
    "import os, time\nf = open(os.memfd_create('m'), 'wb')\nf.write(bytes(30 * 2**20))\nf.flush()" + HOLD
)
# A child that nobody waits for writes 200 MiB, and leaves the only way to them in a message that nobody reads.
IN_FLIGHT = """
import array, os, signal, socket, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
ours, theirs = socket.socketpair()
if not (child := os.fork()):
    f = open('/tmp/hidden', 'wb', 0)
    os.unlink('/tmp/hidden')
    for n in range(200): f.write(bytes(2**20))
    ours.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [f.fileno()]))])
    os._exit(0)
while os.path.exists(f'/proc/{child}'): os.sched_yield()
print('ready', flush=True)
while True: time.sleep(60)
"""
HONEST = "import time\nfor n in range(80): open(f'/tmp/{n}', 'wb').write(b'x' * 2**20)" + HOLD
MANY = "import time\nfor n in range(3000): open(f'/tmp/{n}', 'w').close()" + HOLD
ONE_FILE = """
import errno
try:
    with open('/tmp/large', 'wb', buffering=0) as file:
        while True: file.write(b'x' * 2**20)
except OSError as error:
    print(errno.errorcode[error.errno], error.filename)
import os
print(os.path.getsize('/tmp/large'))
"""


# -- the engine --------------------------------------------------------------------------------------------


@pytest.fixture
async def manager() -> AsyncIterator[ContainerManager]:
    require_engine()
    made = ContainerManager("disk-")
    yield made
    await made.close()


@pytest.fixture
async def engine(manager: ContainerManager) -> AsyncIterator[Engine]:
    image = await manager.image_id(RUNNER_IMAGE)
    assert image is not None
    made = Engine(manager, image)
    yield made
    await made.remove_all()


async def _use(engine: Engine, program: str) -> DiskUse:
    container = await engine.start(program)
    await engine.until(container, b"ready\n")
    return (await engine.runtime.disk_uses(engine.instance_id))[container]


@pytest.mark.docker
async def test_files_count_and_only_those_of_running_containers(engine: Engine) -> None:
    container = await engine.start(FILES)
    await engine.until(container, b"ready\n")
    assert (await engine.runtime.layer_sizes(engine.instance_id))[container] >= 30 * MIB
    await engine.runtime.signal(container, "SIGKILL")
    await engine.exit(container)
    assert await engine.runtime.layer_sizes(engine.instance_id) == {}
    assert await engine.runtime.layer_size(container) >= 30 * MIB


@pytest.mark.docker
@pytest.mark.parametrize("program", [FILES, UNLINKED, RESERVED, OF_A_CHILD])
async def test_what_a_job_writes_is_known_whatever_became_of_the_file(engine: Engine, program: str) -> None:
    """As root, which sees the processes of containers; cgroup v1 charges none of these writes."""
    assert (await _use(engine, program)).written_bytes >= 30 * MIB


@pytest.mark.docker
@pytest.mark.parametrize("program", [IDLE, IN_MEMORY])
async def test_who_writes_nothing_wrote_next_to_nothing(engine: Engine, program: str) -> None:
    assert (await _use(engine, program)).written_bytes < 4 * MIB


@pytest.mark.docker
async def test_nobody_is_stopped_for_what_a_job_wrote_that_hides_it_well(engine: Engine) -> None:
    hider = await engine.start(IN_FLIGHT)
    honest = await engine.start(HONEST)
    for container in (hider, honest):
        await engine.until(container, b"ready\n")
    uses = await engine.runtime.disk_uses(engine.instance_id)
    low, lost = Space(0, 0, 0), 280 * MIB
    found = choose_victim(low, Shortage.BYTES, uses, lost)
    if uses[hider].written_bytes < 200 * MIB:  # as under cgroup v1
        assert found is Blame.UNEXPLAINED
    else:
        assert isinstance(found, Victim)
        assert found.container_id == hider
    known = choose_victim(low, Shortage.BYTES, uses, uses[hider].written_bytes + 80 * MIB)
    assert isinstance(known, Victim), "of what is known, somebody is"


@pytest.mark.docker
async def test_files_without_content_are_counted(engine: Engine) -> None:
    files = (await _use(engine, MANY)).files
    assert files is not None
    assert 3000 <= files < 3100


@pytest.mark.docker
async def test_a_single_file_is_bounded_at_once(engine: Engine) -> None:
    container = await engine.runtime.create(replace(engine.spec(ONE_FILE), disk_bytes=8 * MIB))
    await start_and_feed(engine.runtime, container, [])
    assert await engine.output(container) == b"EFBIG None\n8388608\n"


@pytest.mark.docker
async def test_whether_there_are_quotas_is_known_once_a_container_was_made(
    engine: Engine, manager: ContainerManager
) -> None:
    """Either way the container exists, and the next one is made without asking again."""
    assert manager.has_quotas is None
    await engine.runtime.create(engine.spec(IDLE))
    assert manager.has_quotas in {True, False}
    await engine.runtime.create(engine.spec(IDLE))


# -- disks that fill up ------------------------------------------------------------------------------------

SMALL = Policy(max_running_jobs=2, disk_min_free=2 * MIB, log_patience=timedelta(0))
BIG = b"x" * (6 * MIB)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "16m") as mounted:
        yield mounted


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[ControlledSystem]:
    async with controlled_system(tmp_path, a_run()) as made:
        made.runtime.root = str(tmp_path)
        made.policy = SMALL
        yield made


async def _until(check: Callable[[], bool]) -> None:
    async def ask() -> bool:
        return check()

    await eventually(ask)


async def _note(system: ControlledSystem, part: str) -> None:
    async def says() -> bool:
        state = await system.repository.controller_state()
        return state is not None and part in (state.note or "")

    await eventually(says)


@pytest.mark.parametrize("place", ["engine", "data", "database"])
async def test_on_a_low_disk_nothing_is_claimed_until_there_is_room(
    system: ControlledSystem, disk: Path, place: str
) -> None:
    places = {} if place == "engine" else {{"data": DATA, "database": DATABASE}[place]: disk}
    name = {"engine": "Docker", "data": "the data directory", "database": "the database"}[place]
    if place == "engine":
        system.runtime.root = str(disk)
    filler = fill(disk, leave=MIB)
    async with system.running(places=places):
        await _note(system, f"too little room on the disk of {name}")
        job_id = await system.submit()
        await _note(system, "too little room")
        assert (await system.job(job_id)).status is JobStatus.QUEUED
        filler.unlink()
        assert (await system.finished(job_id)).success
        await system.noted(None)


async def test_a_running_job_goes_on_while_a_disk_is_low(system: ControlledSystem, disk: Path) -> None:
    goes_on = threading.Event()
    system.runtime.script = a_run(goes_on)
    async with system.running(places={DATA: disk}):
        job_id = await system.submit()
        await system.printed(job_id)
        fill(disk, leave=MIB)
        await _note(system, "too little room")
        goes_on.set()
        assert (await system.finished(job_id)).success


async def test_a_log_that_the_disk_does_not_take_is_not_sealed_and_the_job_runs_again(
    system: ControlledSystem, disk: Path, tmp_path: Path
) -> None:
    """Row 48: infrastructure, never a verdict; after freeing, the whole log."""
    stores = open_stores(StorageSettings(db_path=disk / "ci.db"))
    filler = fill(disk)
    try:
        async with system.running(logs=stores.logs):
            job_id = await system.submit()

            async def released() -> bool:
                return any(one.type == "released" for one in await system.repository.get_events(job_id))

            await eventually(released)
            assert _first_attempt(tmp_path / "ci_jobs.db") == (
                Reason.INFRA,
                "The disk of the logs is full: its output could not be kept.",
                None,
                None,
            )
            filler.unlink()
            job = await system.finished(job_id, seconds=30)
            assert job.success
            assert job.log_size == len(OUTPUT)
            assert stores.logs.read(job_id, job.attempt, 0, 10**6) == OUTPUT
    finally:
        with suppress(FileNotFoundError):
            filler.unlink()


def _first_attempt(database: Path) -> tuple[object, ...]:
    connection = sqlite3.connect(database)
    try:
        query = "SELECT reason, message, log_size, log_sha256 FROM attempts WHERE number = 1"
        return connection.execute(query).fetchone()
    finally:
        connection.close()


async def test_room_that_comes_soon_costs_the_job_nothing(system: ControlledSystem, disk: Path) -> None:
    goes_on = threading.Event()
    system.runtime.script = a_run(goes_on)
    system.policy = replace(SMALL, log_patience=timedelta(minutes=1))
    stores = open_stores(StorageSettings(db_path=disk / "ci.db"))
    filler = fill(disk)
    async with system.running(logs=stores.logs):
        job_id = await system.submit()
        await _until(lambda: bool(system.runtime.containers))
        goes_on.set()
        await _until(lambda: all(one.exit for one in system.runtime.containers.values()))
        filler.unlink()
        job = await system.finished(job_id, seconds=30)
        assert stores.logs.read(job_id, job.attempt, 0, 10**6) == OUTPUT
        assert job.success


async def test_with_its_disk_full_the_database_is_read_and_running_jobs_end_in_it(
    tmp_path: Path, disk: Path
) -> None:
    """Row 47: submitting is refused, the controller survives, and the ballast is enough for who runs already."""
    goes_on = threading.Event()
    async with controlled_system(disk, a_run(goes_on)) as system:
        system.policy, system.runtime.root = SMALL, str(tmp_path)
        ballast = disk / "ci_jobs.db.ballast"
        async with system.running(places={DATABASE: disk}, reserve=Ballast(disk / "ci_jobs.db")):
            await _until(ballast.exists)
            job_id = await system.submit()
            await system.printed(job_id)
            filler = fill(disk)
            await _until(lambda: not ballast.exists())
            goes_on.set()
            assert (await system.finished(job_id)).success, "recorded in the room of the ballast"
            fill(disk, "more")
            with pytest.raises(StorageFull):
                await _submit_until_refused(system)
            assert (await system.job(job_id)).success
            filler.unlink()
            later = await system.submit()
            assert (await system.finished(later)).success
            await _until(ballast.exists)


async def _submit_until_refused(system: ControlledSystem) -> None:
    """The write-ahead log may have room of its own left."""
    while True:
        await system.submit()
