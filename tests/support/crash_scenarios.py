"""For every crash point the story in which a process reaches it, dies there, and is started again.

A scenario is run with the point and how many times it is reached before the death. It returns whether the
process died, and raises AssertionError when what came after the restart is not as if nothing had happened:
every job terminal with its right verdict, its log byte-identical, no container and no file left.
"""

import asyncio
import hashlib
import io
import multiprocessing
import os
import random
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx
from structlog.testing import capture_logs

from ci_common.api_keys import generate_api_key, hash_api_key, key_prefix
from ci_common.clock import utcnow
from ci_common.crash_points import CrashPoint, told_of_crash_points
from ci_common.job_terms import JobStatus, new_id
from ci_common.models import APIKey, Job, JobFilter
from ci_common.stores import BlobStore
from ci_controller.frames import Outcome
from ci_controller.image_retention import DEFAULT_IMAGE_LIMITS
from ci_persistence.factory import open_stores
from ci_server.app import create_app
from ci_server.settings import ServerSettings
from tests.support.admin_crashes import a_key_is_made, a_user_is_made
from tests.support.blobs import manifest_of, records
from tests.support.controlled import (
    GO,
    OUTPUT,
    ControlledSystem,
    Frames,
    Life,
    a_run,
    controlled_system,
    eventually,
    mortal,
)
from tests.support.fake_runtime import Step, UntilSignal
from tests.support.server import zipped


@dataclass(frozen=True, slots=True)
class Scenario:
    """How to come to a point; `hits` says how many times it is reached in that story at least."""

    run: Callable[[Path, CrashPoint, int], Awaitable[bool]]
    hits: int = 2


# -- the controller ----------------------------------------------------------------------------------------


async def two_jobs_run(path: Path, point: CrashPoint, nth: int, exit_code: int = 0) -> bool:
    """One job after the other, on an engine that has one slot for them."""
    async with controlled_system(path, a_run(exit_code=exit_code)) as system:
        system.policy = replace(system.policy, max_running_jobs=1)
        runs = times_run(system)
        jobs = [await system.submit() for _ in range(2)]
        died = await _first_life(system, point, nth, lambda: _all_over(system, jobs))
        async with system.running(0.05):
            for job_id in jobs:
                await system.finished(job_id)
        for job_id in jobs:
            assert (await system.job(job_id)).exit_code == exit_code, await system.job(job_id)
            await _has_one_whole_story(system, job_id, "completed")
        assert runs() == 2, "the user's code ran once for each job"
        return died


async def two_jobs_build_environments(path: Path, point: CrashPoint, nth: int) -> bool:
    """Each job needs another one; the third finds the first one's, whoever built it."""
    async with controlled_system(path, a_run()) as system:
        system.policy = replace(system.policy, max_running_jobs=1, environments=DEFAULT_IMAGE_LIMITS)
        runs = times_run(system)
        trees = [{"requirements.txt": name, "test_a.py": b"pass\n"} for name in (b"one\n", b"two\n")]
        jobs = [await system.submit(tree) for tree in trees]
        died = await _first_life(system, point, nth, lambda: _all_over(system, jobs))
        async with system.running(0.05):
            for job_id in jobs:
                await system.finished(job_id)
            jobs.append(await system.submit(trees[0]))
            assert (await system.finished(jobs[-1])).image_cached
        for job_id in jobs:
            assert (await system.job(job_id)).success, await system.job(job_id)
            await _has_one_whole_story(system, job_id, "completed")
        assert runs() == 3, "the user's code ran once for each job"
        images = await system.runtime.environment_images(await system.repository.instance_id())
        assert len({image.reference for image in images}) == len(images) == 2
        return died


async def a_second_job_gets_what_waited(path: Path, point: CrashPoint, nth: int) -> bool:
    """A job runs; then a container waits, which a second one is assigned; then another one waits."""
    async with controlled_system(path, a_run()) as system:
        cold = system.policy
        system.policy = replace(cold, warm_containers=1)
        runs = times_run(system)
        jobs = [await system.submit()]

        async def over() -> bool:
            terminal = [(await system.job(job_id)).status.is_terminal for job_id in jobs]
            waits = any(
                one.fed and name.startswith("waiting-") for name, one in system.runtime.containers.items()
            )
            if all(terminal) and waits and len(jobs) == 1:
                jobs.append(await system.submit())
                return False
            return all(terminal) and waits

        died = await _first_life(system, point, nth, over)
        if len(jobs) == 1:
            jobs.append(await system.submit())
        async with system.running(0.05, policy=cold):
            for job_id in jobs:
                await system.finished(job_id)
            await eventually(lambda: _all_over(system, jobs))
        for job_id in jobs:
            assert (await system.job(job_id)).success, await system.job(job_id)
            await _has_one_whole_story(system, job_id, "completed")
        assert runs() == len(jobs), "the user's code ran once for each job"
        return died


async def two_jobs_are_cancelled(path: Path, point: CrashPoint, nth: int) -> bool:
    """Each of two jobs hangs until it is cancelled."""
    async with controlled_system(path, _until_sigint) as system:
        system.policy = replace(system.policy, max_running_jobs=2)
        jobs = [await system.submit() for _ in range(2)]
        async with system.running(0.05):
            for job_id in jobs:
                await system.printed(job_id)
        for job_id in jobs:
            await system.cancel(job_id)
        died = await _first_life(system, point, nth, lambda: _all_over(system, jobs))
        async with system.running(0.05):
            for job_id in jobs:
                await system.finished(job_id)
        for job_id in jobs:
            assert (await system.job(job_id)).status is JobStatus.CANCELLED
            await _has_one_whole_story(system, job_id, "cancelled")
        return died


def _until_sigint(fed: bytes) -> Iterator[Step]:
    frames = Frames()
    yield frames.begun()
    yield frames.output(OUTPUT)
    yield UntilSignal("SIGINT")
    yield frames.trailer(Outcome.STOPPED)


async def _first_life(
    system: ControlledSystem, point: CrashPoint, nth: int, over: Callable[[], Awaitable[bool]]
) -> bool:
    """A controller runs until it dies at that point, or until all is over; returns whether it died."""
    life = Life(point, nth)
    with told_of_crash_points(life.effect), capture_logs():
        controller = system.controller(0.05, **mortal(system, life))
        running = asyncio.create_task(controller.run())

        async def ended() -> bool:
            return life.died.is_set() or await over()

        await eventually(ended)
        controller.stop()
        await asyncio.gather(running, return_exceptions=True)
    return life.died.is_set()


async def _all_over(system: ControlledSystem, jobs: Sequence[str]) -> bool:
    terminal = [(await system.job(job_id)).status.is_terminal for job_id in jobs]
    return all(terminal) and not system.runtime.containers


async def _has_one_whole_story(system: ControlledSystem, job_id: str, final: str) -> None:
    job = await system.job(job_id)
    assert await system.verdicts(job_id) == [final]
    assert system.log(job_id, job.attempt) == OUTPUT
    assert (job.log_size, job.log_sha256) == (len(OUTPUT), hashlib.sha256(OUTPUT).hexdigest())
    assert not job.log_truncated
    assert not system.runtime.containers


def times_run(system: ControlledSystem) -> Callable[[], int]:
    """Count the containers whose script got a whole feed: how often the user's code ran."""
    runs: list[bytes] = []
    script = system.runtime.script

    def counted(fed: bytes) -> Iterable[Step]:
        if fed.endswith(GO):
            runs.append(fed)
        return script(fed)

    system.runtime.script = counted
    return lambda: len(runs)


# -- the server --------------------------------------------------------------------------------------------

_CRASHED: Final = 137
_KEY: Final = "the-same-submission"
Submit = Callable[[Path, str], Coroutine[Any, Any, str]]


async def a_job_is_submitted(path: Path, point: CrashPoint, nth: int) -> bool:
    """The server is a process of its own and really dies; the client submits again, with its idempotency key."""
    async with _submitted_twice(path, point, nth, _submit) as (_, died):
        return died


async def a_tree_is_submitted(path: Path, point: CrashPoint, nth: int) -> bool:
    """The same of a tree whose contents came apart; the client sends what it sent again, all of it."""
    async with _submitted_twice(path, point, nth, _submit_tree) as (system, died):
        packs = {pack.name for pack in await system.repository.packs()}
        stored = {item.name for item in _blobs(path).items()}
        assert stored == packs, "no pack without a row, no row without its pack"
        assert len(packs) == 1
        return died


@asynccontextmanager
async def _submitted_twice(
    path: Path, point: CrashPoint, nth: int, submit: Submit
) -> AsyncGenerator[tuple[ControlledSystem, bool]]:
    """The first submission met a server that may have died of it; the second one's job ran, and is the only one."""
    async with controlled_system(path, a_run()) as system:
        secret = await _issue_key(system)
        arguments = (submit, path, secret, f"{point}:{nth}")
        child = multiprocessing.get_context("spawn").Process(target=_submit_and_die, args=arguments)
        child.start()
        await asyncio.to_thread(child.join)
        died = child.exitcode == _CRASHED
        child.close()
        job_id = await submit(path, secret)
        jobs = (await system.repository.list_jobs(JobFilter())).jobs
        assert [job.id for job in jobs] == [job_id], "one job, however often it is submitted"
        async with system.running(0.05):
            job = await system.finished(job_id)
        assert job.success
        await _nothing_is_left_but(path, system, job)
        yield system, died


async def _nothing_is_left_but(path: Path, system: ControlledSystem, job: Job) -> None:
    """What a dead server left behind is pruned once it is old, and the job's own upload stays."""
    long_ago = time.time() - 86_400
    for file in (*_uploads(path), *_server(path).data_path.joinpath("blobs").iterdir()):
        os.utime(file, (long_ago, long_ago))
    controller = system.controller()
    await controller.start()
    await controller.prune()
    await controller.close()
    assert [file.name for file in _uploads(path)] == [job.archive_ref]


def _uploads(path: Path) -> list[Path]:
    return sorted(_server(path).data_path.joinpath("archives").iterdir())


def _server(path: Path) -> ServerSettings:
    return ServerSettings(db_path=path / "ci_jobs.db", min_free_bytes=0)


async def _issue_key(system: ControlledSystem) -> str:
    secret = generate_api_key()
    key = APIKey(new_id(), system.user.id, "test", hash_api_key(secret), utcnow(), key_prefix(secret))
    await system.repository.create_api_key(key)
    return secret


def _submit_and_die(submit: Submit, path: Path, secret: str, crash_at: str) -> None:
    """The entry of the other process."""
    os.environ["CI_CRASH_AT"] = crash_at
    asyncio.run(submit(path, secret))


async def _submit(path: Path, secret: str) -> str:
    """The same upload as every time, in one submission; returns its job's id."""
    app = create_app(_server(path))
    noise = random.Random(1).randbytes(300_000).hex()  # several reads long
    content = zipped({"test_a.py": "def test_a(): pass\n", "noise.txt": noise})
    headers = {"Authorization": f"Bearer {secret}", "Idempotency-Key": _KEY}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as http,
    ):
        answer = await http.post(
            "/submit-async", files={"file": ("project.zip", io.BytesIO(content))}, headers=headers
        )
    answer.raise_for_status()
    return answer.json()["job_id"]


def _blobs(path: Path) -> BlobStore:
    return open_stores(_server(path)).archives.blobs


async def _submit_tree(path: Path, secret: str) -> str:
    app = create_app(_server(path))
    contents = {"test_a.py": b"def test_a(): pass\n", "b.txt": b"text"}
    headers = {"Authorization": f"Bearer {secret}", "Idempotency-Key": _KEY}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://server", headers=headers
        ) as http,
    ):
        media = {"Content-Type": "application/vnd.ci.blobs"}
        (await http.put("/blobs", content=records(*contents.values()), headers=media)).raise_for_status()
        answer = await http.post("/submit-manifest", json={"files": manifest_of(contents)})
    answer.raise_for_status()
    return answer.json()["job_id"]


# -- the list ----------------------------------------------------------------------------------------------

_RUN: Final = Scenario(two_jobs_run)
_CANCEL: Final = Scenario(two_jobs_are_cancelled)

SCENARIOS: Final[Mapping[CrashPoint, Scenario]] = MappingProxyType(
    {
        "after_take_over": Scenario(two_jobs_run, hits=1),
        "after_claim": _RUN,
        "before_create": _RUN,
        "after_create": _RUN,
        "after_start": _RUN,
        "after_waiting": Scenario(a_second_job_gets_what_waited),
        "after_taken": Scenario(a_second_job_gets_what_waited, hits=1),
        "after_mark_started": _RUN,
        "after_rename": _RUN,
        "during_feed": _RUN,
        "after_prepared": Scenario(two_jobs_build_environments),
        "after_commit": Scenario(two_jobs_build_environments),
        "after_feed": _RUN,
        "after_mark_begun": _RUN,
        "during_pump": _RUN,
        "after_record_stop": _CANCEL,
        "after_stop_signal": _CANCEL,
        "after_exit": Scenario(
            partial(two_jobs_run, exit_code=1)
        ),  # a success stands before its container's end
        "after_seal": _RUN,
        "after_finish": _RUN,
        "before_remove": _RUN,
        "after_remove": _RUN,
        "during_upload": Scenario(a_job_is_submitted),
        "after_pack_saved": Scenario(a_tree_is_submitted, hits=1),
        "after_pack_added": Scenario(a_tree_is_submitted, hits=1),
        "after_archive_saved": Scenario(a_job_is_submitted, hits=1),
        "after_job_created": Scenario(a_job_is_submitted, hits=1),
        "during_audited_write": Scenario(a_user_is_made, hits=1),
        "after_user_created": Scenario(a_user_is_made, hits=1),
        "after_key_created": Scenario(a_key_is_made, hits=1),
    }
)
