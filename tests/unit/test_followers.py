"""Draining what an exited container wrote, whatever the engine does with its streams."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from ci_common.clock import SystemClock
from ci_common.models import ControllerLease
from ci_controller.container_runtime import ContainerSpec, ExitState, start_and_feed
from ci_controller.followers import Followers
from ci_controller.job_source import RepositoryJobSource
from ci_controller.policy import Policy
from tests.support.controlled import ControlledSystem, controlled_system, eventually
from tests.support.controller import running
from tests.support.fake_runtime import Step
from tests.support.framed import framed

WHOLE = framed([b"text\n"]).bytes()
ATTEMPT = running("a")


@asynccontextmanager
async def _following(
    tmp_path: Path, *steps: Step, endless: bool = False
) -> AsyncGenerator[tuple[Followers, ControlledSystem, str]]:
    """A container that does those steps, and followers with a short patience that follow it."""
    async with controlled_system(tmp_path, lambda fed: steps) as system:
        system.runtime.endless = endless
        jobs = RepositoryJobSource(
            system.repository,
            system.stores.logs,
            system.stores.archives,
            ControllerLease(1, "holder"),
            "instance",
            max_attempts=1,
            queue_timeout=system.policy.queue_timeout,
            retention=system.policy.retention,
        )
        policy = Policy(log_limit=1024**2, output_patience=timedelta(seconds=1))
        followers = Followers(jobs, system.runtime, SystemClock(), policy, lambda: None)
        image = next(iter(system.runtime.images.values()))
        spec = ContainerSpec(name="c", image_id=image, command=("x",), labels={})
        container = await system.runtime.create(spec)
        await start_and_feed(system.runtime, container, [])
        await followers.follow(ATTEMPT, container)
        yield followers, system, container
        await followers.close()


async def test_a_stream_that_the_engine_leaves_open_is_not_waited_for(tmp_path: Path) -> None:
    async with _following(tmp_path, WHOLE, endless=True) as (followers, system, container):
        await eventually(lambda: system.runtime.exit_state(container))
        result = await asyncio.wait_for(followers.drain(ATTEMPT, container, ExitState(0)), 10)
        assert result.trailer is not None
        assert system.log("a") == b"text\n"


async def test_a_pump_that_comes_to_its_end_is_waited_for(tmp_path: Path) -> None:
    gate = threading.Event()
    async with _following(tmp_path, gate, WHOLE) as (followers, system, container):
        draining = asyncio.create_task(followers.drain(ATTEMPT, container, ExitState(0)))
        gate.set()
        assert (await draining).trailer is not None
        assert ("read_output", "c") not in system.runtime.calls
        assert system.log("a") == b"text\n"
