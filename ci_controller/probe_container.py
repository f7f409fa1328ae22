"""A container of the doctor's, made like a job's: it runs one program to its end and leaves nothing behind."""

import asyncio
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ci_controller import labels
from ci_controller.container_manager import ContainerManager
from ci_controller.container_runtime import ContainerSpec, start_and_feed

PROBE_SECONDS: Final = 60.0
STALE_AFTER: Final = timedelta(minutes=10)  # far beyond any probe whose doctor lives
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Ran:
    """What a container's program wrote, and the runtime that the engine says it had."""

    output: bytes
    runtime: str


def probe_spec(prefix: str, image_id: str, command: tuple[str, ...] = ("python3", "-")) -> ContainerSpec:
    """Return a container like a job's, but for its labels: it belongs to no installation."""
    probe_id = str(uuid.uuid4())
    return ContainerSpec(
        name=f"{prefix}probe-{probe_id}",
        image_id=image_id,
        command=command,
        labels={labels.INSTANCE: f"probe-{probe_id}", labels.KIND: labels.KIND_PROBE},
    )


async def remove_stale_probes(manager: ContainerManager, now: datetime) -> None:
    """No probe is left of a doctor that was killed: it belongs to no installation, so nobody else removes it."""
    for probe in await manager.probes():
        if now - probe.created_at > STALE_AFTER:
            await manager.remove(probe.id)


async def run_program(manager: ContainerManager, spec: ContainerSpec, program: bytes) -> Ran:
    """Return what came of a program given to a container's standard input.

    Raises TimeoutError, EngineUnavailable, ContainerError, ContainerGone.
    """
    creating = asyncio.ensure_future(manager.create(spec))
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            container = await asyncio.shield(creating)
            return await _run(manager, container, program)
    finally:
        # A cancelled caller leaves nothing behind either, even where the engine was still creating.
        await asyncio.shield(asyncio.ensure_future(clean_up(manager, creating)))


async def _run(manager: ContainerManager, container: str, program: bytes) -> Ran:
    await start_and_feed(manager, container, [program])
    while await manager.exit_state(container) is None:  # noqa: ASYNC110 - the engine is asked, nobody tells
        await asyncio.sleep(_POLL_SECONDS)
    output = await asyncio.to_thread(_output, manager, container)
    return Ran(output, await manager.runtime_of(container))


def _output(manager: ContainerManager, container: str) -> bytes:
    with manager.read_output(container) as output:
        return b"".join(output)


async def clean_up(manager: ContainerManager, creating: asyncio.Future[str]) -> None:
    """The container is gone, should it ever have come to be."""
    await asyncio.wait([creating])
    if creating.exception() is None:
        await manager.remove(creating.result())
