"""What a probe of the network is to reach: listeners of this host, and another container, for as long as it tries."""

import asyncio
import re
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Final

from ci_controller.container_manager import ContainerManager
from ci_controller.container_runtime import start_and_feed
from ci_controller.probe_container import PROBE_SECONDS, clean_up, probe_spec

_POLL_SECONDS: Final = 0.05
_SOMEWHERE: Final = ("192.0.2.1", 9)  # never sent to: what would be the way out to it tells our address
_PEER: Final = b"""\
import socket
with socket.create_server(("", 0)) as listener:
    print("at", socket.gethostbyname(socket.gethostname()), listener.getsockname()[1], flush=True)
    while True:
        listener.accept()
"""
_ADDRESS: Final = re.compile(rb"at ([\d.]+) (\d+)\n")


@asynccontextmanager
async def network_targets(manager: ContainerManager, image_id: str) -> AsyncGenerator[dict[str, str]]:
    """Each of them listens; gives where, by name. Those of the host are missing where the engine is elsewhere.

    Raises TimeoutError, EngineUnavailable, ContainerError, ContainerGone.
    """
    async with _peer(manager, image_id) as peer:  # the jobs' network exists from here on
        with _host(await manager.gateway()) as listening:
            yield {"peer": peer, **listening}


@asynccontextmanager
async def _peer(manager: ContainerManager, image_id: str) -> AsyncGenerator[str]:
    """A container like a job's listens; gives where."""
    spec = probe_spec(manager.container_name_prefix, image_id)
    creating = asyncio.ensure_future(manager.create(spec))
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            container = await asyncio.shield(creating)
            await start_and_feed(manager, container, [_PEER])
            while not (found := await asyncio.to_thread(_said, manager, container)):  # noqa: ASYNC110 - only the engine knows
                await asyncio.sleep(_POLL_SECONDS)
        yield found
    finally:
        await asyncio.shield(asyncio.ensure_future(clean_up(manager, creating)))


def _said(manager: ContainerManager, container: str) -> str | None:
    with manager.read_output(container) as output:
        found = _ADDRESS.search(b"".join(output))
    return f"{found[1].decode()}:{found[2].decode()}" if found else None


@contextmanager
def _host(gateway: str | None) -> Generator[dict[str, str]]:
    """This host listens at the jobs' gateway and at its own address; gives where, by name."""
    with ExitStack() as listeners:
        found: dict[str, str] = {}
        try:
            if gateway is not None:
                found["gateway"] = listeners.enter_context(_listening(gateway))
                found["host"] = listeners.enter_context(_listening(_own_address()))
        except OSError:  # the engine is on another machine, or this one has no way out
            pass
        yield found


@contextmanager
def _listening(address: str) -> Generator[str]:
    with socket.create_server((address, 0)) as listener:
        yield f"{address}:{listener.getsockname()[1]}"


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(_SOMEWHERE)
        return asking.getsockname()[0]
