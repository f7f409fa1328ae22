"""Disk limits: the decisions, by tables; and the watch that feeds them, over the engine in memory."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ci_common import verdict as verdicts
from ci_common.disk_space import Space, readable_bytes, space_of
from ci_common.job_terms import JobStatus, Reason
from ci_controller.container_disk import block_writes, process_list, written_bytes
from ci_controller.container_runtime import DiskUse, start_and_feed
from ci_controller.disk_guard import (
    Blame,
    Floor,
    Shortage,
    Victim,
    choose_victim,
    explained,
    for_the_operator,
    low_places,
    over_limit,
    pressure_note,
    sizes_are_due,
)
from ci_controller.disk_watch import DATABASE, ENGINE, LOOKS_BEFORE_TELLING, DiskWatch
from ci_controller.executor import _why_not_kept  # pyright: ignore[reportPrivateUsage]
from ci_controller.lost_room import LostRoom
from ci_controller.observed_state import Work
from ci_controller.operations import render
from ci_controller.planner import plan
from ci_controller.policy import Policy
from ci_persistence.ballast import BALLAST_BYTES, Ballast
from tests.simulation.world import WorldClock
from tests.support.controlled import ControlledSystem, a_run, controlled_system
from tests.support.controller import NOW, POLICY, container, follows, running, sent, stopping, world
from tests.support.fake_runtime import FakeContainerRuntime, Step

MIB, GIB = 1024**2, 1024**3
FLOOR = Floor(GIB, 2.0)
ROOMY = Space(50 * GIB, 900, 1000)
FULL = Space(300 * MIB, 900, 1000)


# -- decisions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (int(4.3 * GIB), "4.3 GiB"),
        (1000 * MIB, "1000 MiB"),
    ],
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert readable_bytes(count) == text


def test_a_container_above_its_limit_is_told_how_much_it_wrote() -> None:
    sizes = {"small": 10, "exact": 4 * GIB, "large": int(4.3 * GIB)}
    assert over_limit(sizes, 4 * GIB) == {"large": "It wrote 4.3 GiB, its limit is 4 GiB."}


@pytest.mark.parametrize(
    ("space", "shortage"),
    [
        (ROOMY, None),
        (Space(GIB, 20, 1000), None),
        (FULL, Shortage.BYTES),
        (Space(50 * GIB, 19, 1000), Shortage.INODES),
        (Space(50 * GIB, 0, 0), None),  # btrfs counts none
    ],
)
def test_a_shortage_is_of_bytes_or_of_inodes(space: Space, shortage: Shortage | None) -> None:
    assert FLOOR.shortage(space) is shortage


def test_a_disk_that_was_low_needs_some_more_room_to_be_well_again() -> None:
    almost = {ENGINE: Space(GIB + MIB, 900, 1000)}
    assert low_places(almost, FLOOR, frozenset()) == frozenset()
    assert low_places(almost, FLOOR, frozenset({ENGINE})) == {ENGINE}
    assert low_places({ENGINE: ROOMY}, FLOOR, frozenset({ENGINE})) == frozenset()


def test_the_note_names_the_disks_and_stays_the_same_while_they_are_low() -> None:
    assert pressure_note(frozenset(), FLOOR, Blame.NOBODY) is None
    assert pressure_note(frozenset({ENGINE, DATABASE}), FLOOR, Blame.NOBODY) == (
        "too little room on the disk of Docker, the database: jobs start again once 1.1 GiB and 2.2 % "
        "of the inodes are free"
    )


def test_the_job_that_wrote_most_goes() -> None:
    uses = {"idle": DiskUse(MIB, 500), "hog": DiskUse(3 * GIB, 4), "files": DiskUse(70 * MIB, 90_000)}
    message = "The Docker disk ran low: 300 MiB free; this job had written most: 3 GiB."
    assert choose_victim(FULL, Shortage.BYTES, uses, 3 * GIB) == Victim("hog", message)
    message = "The Docker disk ran low: 7 inodes free; this job had made most files: 90000."
    assert choose_victim(Space(GIB, 7, 1000), Shortage.INODES, uses, 900) == Victim("files", message)


@pytest.mark.parametrize("shortage", Shortage)
@pytest.mark.parametrize("uses", [{}, {"idle": DiskUse(63 * MIB, 19_999)}, {"unknown": DiskUse(0, None)}])
def test_an_innocent_job_never_goes(shortage: Shortage, uses: dict[str, DiskUse]) -> None:
    assert choose_victim(FULL, shortage, uses, 0) is Blame.NOBODY


@pytest.mark.parametrize(
    ("what", "taken", "lost", "chosen"),
    [
        ("one that took all of it", {"hog": 4 * GIB, "idle": MIB}, 4 * GIB, "hog"),
        ("one that took half of it", {"hog": 2 * GIB}, 4 * GIB, "hog"),
        ("one that took less than half of it", {"honest": 2 * GIB - 1}, 4 * GIB, None),
        ("a hider's 10 GiB beside honest 3", {"hider": 72 * 1024, "honest": 3 * GIB}, 13 * GIB, None),
        ("a hider's 10 GiB, many honest ones", {str(n): 3 * GIB for n in range(6)}, 28 * GIB, None),
        ("many who share what was lost", {str(n): 2 * GIB - n for n in range(6)}, 12 * GIB, "0"),
        ("a hider that hides less than another took", {"hider": 0, "hog": 5 * GIB}, 8 * GIB, "hog"),
        ("nobody's: it went outside", {"idle": MIB}, 20 * GIB, None),
        ("one that wrote and deleted", {"hog": 9 * GIB}, 4 * GIB, "hog"),
        ("nothing known to be lost", {"hog": GIB}, 0, "hog"),
    ],
)
def test_nobody_is_blamed_for_less_than_another_may_have_hidden(
    what: str, taken: dict[str, int], lost: int, chosen: str | None
) -> None:
    """With one job: for less than half of what was lost."""
    uses = {container: DiskUse(written, written) for container, written in taken.items()}
    for shortage in Shortage:
        found = choose_victim(FULL, shortage, uses, lost)
        assert (found.container_id if isinstance(found, Victim) else None) == chosen, what
        assert isinstance(found, Victim) or found is Blame.UNEXPLAINED


def test_the_operator_is_told_what_is_known_and_the_largest_first() -> None:
    uses = {"small": DiskUse(MIB, 1), "large": DiskUse(GIB, 2)}
    told = for_the_operator(Shortage.BYTES, uses, 9 * GIB)
    assert told == {"short": "bytes", "lost": 9 * GIB, "known": {"large": GIB, "small": MIB}}
    assert list(told["known"]) == ["large", "small"]  # pyright: ignore[reportArgumentType, reportUnknownArgumentType, reportUnknownVariableType]


def test_what_was_lost_counts_from_the_best_moment_of_any_container_that_runs() -> None:
    def room(gib: int) -> Space:
        return Space(gib * GIB, gib, 100)

    lost = LostRoom()
    assert lost.lost(Shortage.BYTES) == 0, "nobody looked yet"
    lost.look(room(90))
    assert lost.lost(Shortage.BYTES) < 0, "nobody runs"
    lost.listed(["early"])
    lost.look(room(40))
    assert (lost.lost(Shortage.BYTES), lost.lost(Shortage.INODES)) == (50 * GIB, 50)
    lost.listed(["early", "late"])
    lost.look(room(20))
    assert lost.lost(Shortage.BYTES) == 70 * GIB
    lost.listed(["late"])
    assert lost.lost(Shortage.BYTES) == 70 * GIB, "it may have begun right after the list before its first"
    lost.look(room(35))
    lost.listed(["later still"])
    lost.look(room(5))
    assert lost.lost(Shortage.BYTES) == 30 * GIB, "room that came back counts"


@pytest.mark.parametrize("reason", [None, *Reason])
def test_what_failed_in_a_full_layer_failed_of_the_limit(reason: Reason | None) -> None:
    """Whoever stopped it, and whatever else ended it, keeps the word; so does a success."""
    before = verdicts.verdict(reason, "said", 1)
    symptoms = {"tests_failed", "collection_error", "internal_error", "install_failed", "crashed"}
    after = explained(before, 5 * GIB, 4 * GIB)
    if reason in symptoms:
        assert (after.status, after.reason) == (JobStatus.FAILED, Reason.DISK_LIMIT)
        assert after.message == "It wrote 5 GiB, its limit is 4 GiB."
    else:
        assert after == before
    assert explained(before, 4 * GIB, 4 * GIB) == before


# -- what engine and kernel tell ---------------------------------------------------------------------------

# As an engine on cgroup v1 gives it, shortened.
STATS_V1 = {
    "blkio_stats": {
        "io_service_bytes_recursive": [
            {"major": 254, "minor": 0, "op": "Read", "value": 4096},
            {"major": 254, "minor": 0, "op": "Write", "value": 1000},
            {"major": 254, "minor": 0, "op": "Sync", "value": 1000},
            {"major": 254, "minor": 0, "op": "Total", "value": 5096},
            {"major": 8, "minor": 0, "op": "Write", "value": 24},
        ]
    }
}
# The form an engine gives on cgroup v2; not seen at work here, because no such machine was at hand.
STATS_V2 = {
    "blkio_stats": {
        "io_service_bytes_recursive": [
            {"major": 259, "minor": 0, "op": "read", "value": 4096},
            {"major": 259, "minor": 0, "op": "write", "value": 2048},
        ],
        "io_serviced_recursive": None,
    }
}
MEMBER_V1 = "9:name=systemd:/docker/ab\n8:pids:/docker/ab\n7:blkio:/docker/ab\n0::/docker/ab\n"
MEMBER_V2 = "0::/system.slice/docker-ab.scope\n"
IO = "rchar: 9\nwchar: 9\nsyscr: 1\nsyscw: 1\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 4096\n"


@pytest.mark.parametrize(
    ("stats", "written"),
    [(STATS_V1, 1024), (STATS_V2, 2048), ({}, 0), ({"blkio_stats": {"io_service_bytes_recursive": None}}, 0)],
)
def test_block_writes_of_both_cgroup_versions(stats: dict[str, object], written: int) -> None:
    assert block_writes(stats) == written


@pytest.mark.parametrize(
    ("membership", "path"),
    [
        (MEMBER_V1, "pids/docker/ab/cgroup.procs"),
        (MEMBER_V2, "system.slice/docker-ab.scope/cgroup.procs"),
        ("", None),
    ],
)
def test_where_the_processes_of_a_container_are_listed(membership: str, path: str | None) -> None:
    assert process_list(membership) == path


def test_what_a_process_wrote_without_what_it_took_back() -> None:
    assert written_bytes(IO) == 4096


# -- the plan ----------------------------------------------------------------------------------------------


def test_a_container_that_has_to_go_is_stopped_with_the_sentence() -> None:
    one = container()
    work = replace(follows(one), over_disk={one.id: "It wrote 5 GiB."})
    [stop] = plan(world(running(), one, work=work), NOW, POLICY)
    assert str(stop) == "stop a/1 by SIGKILL (disk_limit): disk limit reached"
    assert getattr(stop, "message", None) == "It wrote 5 GiB."


def test_a_job_in_its_grace_does_not_fill_the_disk() -> None:
    one = container()
    attempt = stopping(running(), Reason.CANCELLED)
    work = replace(follows(one), signals=sent("SIGINT", 1))
    assert plan(world(attempt, one, work=work), NOW, POLICY) == []
    fills = replace(work, over_disk={one.id: "It wrote 5 GiB."})
    expected = "stop a/1 by SIGKILL (cancelled): it fills the disk in its grace"
    assert render(plan(world(attempt, one, work=fills), NOW, POLICY)) == expected


def test_nothing_is_claimed_while_a_disk_is_low() -> None:
    assert plan(world(claimable=5, work=Work(low_disk="too little room")), NOW, POLICY) == []


# -- the watch ---------------------------------------------------------------------------------------------


def hangs() -> Iterable[Step]:
    yield threading.Event()


@pytest.fixture
async def system(tmp_path: Path) -> AsyncGenerator[ControlledSystem]:
    async with controlled_system(tmp_path, a_run(threading.Event())) as made:
        yield made


async def test_a_job_above_its_limit_ends_as_disk_limit_and_no_other(system: ControlledSystem) -> None:
    hog, other = await system.submit(), await system.submit()
    async with system.running():
        await system.printed(hog)
        await system.printed(other)
        next(one for name, one in system.runtime.containers.items() if hog in name).layer_bytes = 5 * GIB
        job = await system.finished(hog)
        assert (job.status, job.reason) == (JobStatus.FAILED, Reason.DISK_LIMIT)
        assert job.message == "It wrote 5 GiB, its limit is 4 GiB."
        assert (await system.job(other)).status is JobStatus.RUNNING


async def test_a_job_that_failed_before_it_was_polled_has_the_same_verdict(system: ControlledSystem) -> None:
    end = threading.Event()
    system.runtime.script = a_run(end, exit_code=1)
    job_id = await system.submit()
    async with system.running():
        await system.printed(job_id)
        for one in system.runtime.containers.values():
            one.layer_bytes = 5 * GIB
        end.set()
        assert (await system.finished(job_id)).reason is Reason.DISK_LIMIT


class Wakes:
    """Counts how often a plan was asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def started(runtime: FakeContainerRuntime, number: int, written: int) -> str:
    """A container runs that wrote that much; returns its id."""
    from ci_controller import labels
    from ci_controller.container_runtime import ContainerSpec

    spec = ContainerSpec(
        name=f"job-{number}",
        image_id=next(iter(runtime.images.values())),
        command=("run",),
        labels=labels.run_labels("here", epoch=1),
    )
    container_id = await runtime.create(spec)
    await start_and_feed(runtime, container_id, [])
    runtime.containers[spec.name].written_bytes = written
    return container_id


async def test_on_a_low_engine_disk_one_job_goes_at_a_time(tmp_path: Path) -> None:
    runtime, wakes = FakeContainerRuntime(script=lambda _: hangs()), Wakes()
    runtime.root = str(tmp_path)
    low = DiskWatch(runtime, "here", Policy(disk_min_free=2**60), {}, wakes)
    try:
        idle, large, largest = [await started(runtime, n, size) for n, size in enumerate((0, GIB, 3 * GIB))]
        await low.look_at_room()
        assert low.over_disk.keys() == {largest}
        assert low.low_disk is not None
        assert wakes.count == 2
        await low.look_at_room()
        assert low.over_disk.keys() == {largest}, "it is still there"
        await runtime.remove(largest)
        await low.look_at_room()
        assert low.over_disk.keys() == {large}
        await runtime.remove(large)
        await low.look_at_room()
        assert not low.over_disk, "the last one is idle"
        assert idle in {one.id for one in runtime.containers.values()}
    finally:
        await runtime.close()


async def test_where_no_job_explains_what_is_gone_nobody_goes_and_the_operator_is_told(
    tmp_path: Path,
) -> None:
    """A job that hides its writes is not seen; the honest one beside it must not pay for that."""
    runtime, wakes, room = FakeContainerRuntime(script=lambda _: hangs()), Wakes(), ROOMY
    runtime.root = str(tmp_path)
    policy = Policy(disk_min_free=GIB, disk_min_free_inodes=0)
    watch = DiskWatch(runtime, "here", policy, {}, wakes, measure=lambda _: room)
    try:
        await watch.look_at_room()
        honest, _ = [await started(runtime, n, size) for n, size in enumerate((3 * GIB, 72 * 1024))]
        await watch.look_at_sizes()
        room = FULL
        with capture_logs() as logs:
            await watch.look_at_room()
            assert (dict(watch.over_disk), wakes.count) == ({}, 2), "low, and why nobody goes"
            assert watch.low_disk is not None
            assert watch.low_disk.endswith(
                "; no running job is known to have taken that much, so none is stopped"
            )
            for _ in range(LOOKS_BEFORE_TELLING + 3):
                await watch.look_at_room()
        assert watch.low_disk.endswith("so none is stopped: the operator has to make room")
        [told] = [line for line in logs if line["log_level"] == "error"]
        assert (told["lost"], told["known"][honest]) == (50 * GIB - 300 * MIB, 3 * GIB)
        assert not watch.over_disk
        runtime.containers["job-0"].written_bytes = 30 * GIB
        await watch.look_at_room()
        assert watch.over_disk.keys() == {honest}, "that explains it"
        assert watch.low_disk.endswith("inodes are free")
        room = ROOMY
        await watch.look_at_room()
        assert (dict(watch.over_disk), watch.low_disk) == ({}, None)
    finally:
        await runtime.close()


@pytest.mark.parametrize(
    ("then", "now", "seconds", "due"),
    [
        (None, ROOMY, 0.0, True),
        (ROOMY, None, 0.0, True),
        (ROOMY, ROOMY, 4.9, False),
        (ROOMY, ROOMY, 5.0, True),
        (ROOMY, replace(ROOMY, free_bytes=ROOMY.free_bytes - 16 * MIB), 1.0, True),
        (ROOMY, replace(ROOMY, free_bytes=ROOMY.free_bytes - 15 * MIB), 1.0, False),
        (FULL, ROOMY, 1.0, False),
    ],
)
def test_layers_are_sized_when_the_disk_lost_room_and_now_and_then(
    then: Space | None, now: Space | None, seconds: float, due: bool
) -> None:
    assert sizes_are_due(then, now, seconds) is due


async def test_growth_is_found_by_the_room_it_takes_or_after_a_while(tmp_path: Path) -> None:
    runtime, clock, room = FakeContainerRuntime(script=lambda _: hangs()), WorldClock(), ROOMY
    runtime.root = str(tmp_path)
    watch = DiskWatch(runtime, "here", Policy(), {}, Wakes(), measure=lambda _: room, clock=clock)

    async def found() -> bool:
        await watch.look_at_room()
        await watch.look_for_growth()
        return bool(watch.over_disk)

    try:
        hog = await started(runtime, 1, 0)
        assert not await found()
        runtime.containers["job-1"].layer_bytes = 5 * GIB
        assert not await found(), "nothing tells of it yet"
        room = replace(ROOMY, free_bytes=45 * GIB)
        assert await found()
        runtime.containers["job-1"].layer_bytes = 0
        clock.advance(4)
        assert watch.over_disk.keys() == {hog}
        assert await found(), "as it was seen last"
        clock.advance(1)
        assert not await found()
    finally:
        await runtime.close()


async def test_with_room_nobody_goes(tmp_path: Path) -> None:
    runtime, wakes = FakeContainerRuntime(script=lambda _: hangs()), Wakes()
    runtime.root = str(tmp_path)
    watch = DiskWatch(runtime, "here", Policy(disk_min_free=1, disk_min_free_inodes=0), {}, wakes)
    try:
        await started(runtime, 1, 3 * GIB)
        await watch.look_at_room()
        assert (dict(watch.over_disk), watch.low_disk, wakes.count) == ({}, None, 0)
    finally:
        await runtime.close()


async def test_an_engine_that_is_away_keeps_nobody_from_watching_the_other_disks(tmp_path: Path) -> None:
    runtime = FakeContainerRuntime()
    runtime.down = True
    watch = DiskWatch(runtime, "here", Policy(disk_min_free=2**60), {DATABASE: tmp_path}, lambda: None)
    await watch.look_at_room()
    assert watch.low_disk is not None
    assert "the database" in watch.low_disk
    await runtime.close()


async def test_a_disk_of_an_engine_elsewhere_is_not_mistaken_for_one_of_ours(tmp_path: Path) -> None:
    runtime = FakeContainerRuntime()
    runtime.root = str(tmp_path / "not" / "here")
    watch = DiskWatch(runtime, "here", Policy(disk_min_free=2**60), {}, lambda: None)
    await watch.look_at_room()
    assert watch.low_disk is None
    await runtime.close()


async def test_it_goes_on_watching_whatever_the_engine_says(tmp_path: Path) -> None:
    """An engine that comes back finds its jobs watched again."""
    runtime, woken = FakeContainerRuntime(script=lambda _: hangs()), asyncio.Event()
    watch = DiskWatch(runtime, "here", Policy(), {}, woken.set)
    await started(runtime, 1, 0)
    runtime.down = True
    task = asyncio.create_task(watch.run())
    try:
        while ("layer_sizes", "") not in runtime.calls:  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0.005)
        runtime.containers["job-1"].layer_bytes = 5 * GIB
        runtime.down = False
        await asyncio.wait_for(woken.wait(), 10)
        assert watch.over_disk
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runtime.close()


# -- the ballast -------------------------------------------------------------------------------------------


def test_a_ballast_takes_its_room_once_and_gives_it_back(tmp_path: Path) -> None:
    ballast, file = Ballast(tmp_path / "ci.db"), tmp_path / "ci.db.ballast"
    ballast.take_on()
    ballast.take_on()
    assert file.stat().st_blocks * 512 >= BALLAST_BYTES
    assert ballast.throw_off()
    assert not file.exists()
    assert not ballast.throw_off()


def test_room_is_measured_where_a_path_will_be(tmp_path: Path) -> None:
    found = space_of(tmp_path / "a" / "b")
    assert found.free_bytes > 0
    assert 0 < found.free_inodes_percent <= 100


def test_the_owner_is_told_what_kept_the_log_from_being_written() -> None:
    assert _why_not_kept(OSError(5, "Input/output error", "/secret")) == (
        "Its output could not be kept: Input/output error."
    )
