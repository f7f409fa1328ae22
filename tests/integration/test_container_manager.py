"""ContainerManager against the real engine: the contract, and what only a real engine can show."""

import asyncio
import gc
import json
import os
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from ci_common.errors import EngineUnavailable
from ci_controller import labels
from ci_controller.container_manager import ContainerManager
from ci_controller.container_runtime import ContainerError, ContainerState, start_and_feed
from ci_controller.container_users import GROUP
from ci_controller.job_network import NetworkOptions
from ci_controller.log_recorder import LogRecorder
from ci_persistence.log_store import FileLogStore
from tests.support.docker_cli import RUNNER_IMAGE, docker, require_engine
from tests.support.runtime_contract import (
    COUNT,
    ECHO,
    EXIT_3,
    UNTIL_KILLED,
    Engine,
    RuntimeContract,
)
from tests.support.soak import SOAKING

pytestmark = pytest.mark.docker

LIMITS = """
import json, os, resource
from pathlib import Path
status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
group = Path("/sys/fs/cgroup")
two = (group / "cgroup.controllers").exists()
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "cwd": os.getcwd(), "host": os.uname().nodename,
    "capabilities": status["CapBnd"], "no_new_privileges": status["NoNewPrivs"],
    "seccomp": status["Seccomp"],
    "memory": int((group / ("memory.max" if two else "memory/memory.limit_in_bytes")).read_text()),
    "pids": int((group / ("pids.max" if two else "pids/pids.max")).read_text()),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
    "interfaces": sorted(os.listdir("/sys/class/net")),
}))
"""
BINARY = "import sys; sys.stdin.read(); sys.stdout.buffer.write(bytes(range(128)) * 1000 + b'\\n')"
LONG_LINES = "import sys; sys.stdin.read(); sys.stdout.write(('x' * 40_000 + '\\n') * 50)"
LISTEN = "import socket; s = socket.create_server(('', 8000)); print('listening', flush=True)\nwhile True: s.accept()"
CALL = """
import socket, sys
try:
    socket.create_connection((sys.stdin.read(), 8000), timeout=2)
    print("reached")
except OSError:
    print("unreachable")
"""
FRAMES = """
import sys
for n in range(1, 20_001):
    sys.stdout.write('{"n":%d,"t":"o","d":"LgAA"}\\n' % n)
    sys.stdout.flush()
"""
WRITE = "open('/workspace/module', 'w').write('installed'); open('/workspace/large', 'wb').write(bytes(5_000_000))"
READ = "print(open('/workspace/module').read())"
IGNORE_INPUT = "import time\nwhile True: time.sleep(1)"


@pytest.fixture(scope="module", autouse=True)
def _engine_is_there() -> None:
    require_engine()


@pytest.fixture
async def manager() -> AsyncIterator[ContainerManager]:
    manager = ContainerManager("contract-")
    yield manager
    await manager.close()


@pytest.fixture
async def engine(manager: ContainerManager) -> AsyncIterator[Engine]:
    engine = Engine(manager, docker("image", "inspect", "--format", "{{.Id}}", RUNNER_IMAGE))
    yield engine
    await engine.remove_all()


class TestDocker(RuntimeContract):
    """The one suite over the engine."""


async def _json_of(engine: Engine, program: str) -> dict[str, object]:
    container = await engine.start(program)
    return json.loads(await engine.output(container))


async def test_the_limits_hold_inside(engine: Engine) -> None:
    found = await _json_of(engine, LIMITS)
    [container] = await engine.runtime.list(engine.instance_id)
    assert found == {
        "uid": int(container.labels[labels.UID]),
        "gid": GROUP,
        "cwd": "/workspace",
        "host": "ci",
        "capabilities": "0000000000000000",
        "no_new_privileges": "1",
        "seccomp": "2",
        "memory": 64 * 1024**2,
        "pids": 512,
        "files": 4096,
        "core": 0,
        "interfaces": ["lo"],
    }


async def test_memory_beyond_the_limit_is_reported_as_such(engine: Engine) -> None:
    container = await engine.start("x = bytearray(300 * 1024**2); x[::4096] = b'1' * len(x[::4096])")
    ended = await engine.exit(container)
    assert (ended.exit_code, ended.oom_killed) == (137, True)


async def test_output_comes_as_bytes_exactly(engine: Engine) -> None:
    container = await engine.start(BINARY)
    assert await engine.output(container) == bytes(range(128)) * 1000 + b"\n"


async def test_lines_longer_than_the_engines_buffer_come_whole(engine: Engine) -> None:
    container = await engine.start(LONG_LINES)
    assert await engine.output(container) == (b"x" * 40_000 + b"\n") * 50


async def test_a_log_that_the_engine_rotates_holds_no_raw_frames_and_says_what_is_missing(
    manager: ContainerManager, engine: Engine, tmp_path: Path
) -> None:
    """A small limit of the engine's, which single bytes in frames of their own pass many times over."""
    small = ContainerManager("contract-", job_log_bytes=1000)
    container = await small.create(engine.spec(FRAMES))
    writer = FileLogStore(tmp_path).writer("job", 1)
    await start_and_feed(small, container, [])
    await asyncio.to_thread(_record, manager.follow_output(container), LogRecorder(writer, 10**7))
    # Where the live reading ends is the engine's whim; the last one, as after every exit, is what counts.
    last = LogRecorder(writer, 10**7)
    await asyncio.to_thread(_record, manager.read_output(container), last)
    text = writer.read(0, writer.size())
    writer.close()
    await small.close()
    assert last.result.truncated
    assert b"[ci]" in text
    assert b'{"n"' not in text


def _record(reading: AbstractContextManager[Iterator[bytes]], recorder: LogRecorder) -> None:
    with reading as output:
        for chunk in output:
            recorder.feed(chunk)
    recorder.finish()


async def test_a_command_that_does_not_exist_is_the_containers_error(engine: Engine) -> None:
    spec = replace(engine.spec(ECHO), command=("/no/such/program",))
    container = await engine.runtime.create(spec)
    with pytest.raises(ContainerError, match="no such file"):
        await start_and_feed(engine.runtime, container, [])
    assert (await engine.only()).state is ContainerState.CREATED


async def test_a_container_that_does_not_read_is_given_up_in_time(engine: Engine) -> None:
    manager = ContainerManager(send_timeout=0.3)
    container = await manager.create(engine.spec(IGNORE_INPUT))
    with pytest.raises(ContainerError, match="input"):
        await start_and_feed(manager, container, [b"x" * 1_000_000] * 20)
    await manager.close()


async def test_a_cancelled_start_leaves_no_input_open(engine: Engine) -> None:
    """Whenever it comes: the container was never started, or reads the end of its input."""
    container = await engine.runtime.create(engine.spec(COUNT))
    starting = asyncio.create_task(engine.runtime.start(container))
    await asyncio.sleep(0)  # it is on its way
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    if (await engine.only()).state is not ContainerState.CREATED:
        assert await engine.output(container) == b"got 0\n"


async def test_an_image_holds_what_the_containers_files_were(engine: Engine) -> None:
    image = engine.image("files")
    made = await engine.runtime.commit(await _ended(engine, WRITE), image)
    container = await engine.runtime.create(replace(engine.spec(READ), image_id=made))
    await start_and_feed(engine.runtime, container, [])
    assert await engine.output(container) == b"installed\n"
    [found] = await engine.runtime.environment_images(engine.instance_id)
    base = int(docker("image", "inspect", "--format", "{{.Size}}", engine.image_id))
    assert 5_000_000 <= found.size - base <= 6_000_000


async def _ended(engine: Engine, program: str) -> str:
    container = await engine.start(program)
    assert (await engine.exit(container)).exit_code == 0
    return container


async def test_a_closed_manager_leaves_nothing_open(engine: Engine) -> None:
    await engine.output(await engine.start(ECHO))  # whatever is opened once and for all
    await engine.remove_all()
    gc.disable()  # what only the collector closes is a leak
    try:
        before = _descriptors()
        used = Engine(ContainerManager(), engine.image_id)
        for _ in range(10 if SOAKING else 3):
            container = await used.start(ECHO, (b"text\n",))
            assert await used.output(container) == b"text\n"
            with used.runtime.watch(used.instance_id, lambda: None):
                await used.runtime.remove(container)
        await used.runtime.close()
        assert _descriptors() == before
    finally:
        gc.enable()


async def test_followers_that_are_left_leave_nothing_open(engine: Engine) -> None:
    container = await engine.start(UNTIL_KILLED)
    await engine.until(container, b"ready\n")
    gc.disable()
    try:
        before = _descriptors()
        for _ in range(30):
            await engine.until(container, b"ready\n")
        assert _descriptors() == before
    finally:
        gc.enable()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts, needs no paths


async def test_closing_ends_followers_and_threads(engine: Engine) -> None:
    container = await engine.start(UNTIL_KILLED)
    manager = ContainerManager()
    with manager.follow_output(container) as output:
        assert await asyncio.to_thread(next, output) == b"ready\n"
        reading = asyncio.create_task(asyncio.to_thread(list, output))
        await manager.ping()
        await manager.close()
        assert await asyncio.wait_for(reading, 2) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("docker-close")]


async def test_fifty_followers_at_once(engine: Engine) -> None:
    container = await engine.start(UNTIL_KILLED)
    readers = [asyncio.create_task(engine.until(container, b"ready\n")) for _ in range(50)]
    await asyncio.wait_for(asyncio.gather(*readers), 30)


@pytest.fixture
async def network(engine: Engine) -> AsyncIterator[str]:
    name = f"ci-t{uuid.uuid4().hex[:8]}"
    yield name
    await engine.remove_all()
    docker("network", "rm", name)


async def test_several_creators_of_the_network_end_with_one(engine: Engine, network: str) -> None:
    managers = [ContainerManager(network=NetworkOptions(network)) for _ in range(4)]
    specs = [replace(engine.spec(ECHO), network="internet") for _ in range(4)]
    await asyncio.gather(*(manager.create(spec) for manager, spec in zip(managers, specs, strict=True)))
    for manager in managers:
        await manager.close()
    [found] = docker("network", "ls", "--no-trunc", "-q", "--filter", f"name=^{network}$").split()
    options = json.loads(docker("network", "inspect", "--format", "{{json .Options}}", found))
    assert options["com.docker.network.bridge.enable_icc"] == "false"


async def test_a_network_that_is_gone_at_the_start_is_an_error_not_a_gone_container(
    engine: Engine, network: str
) -> None:
    manager = ContainerManager(network=NetworkOptions(network))
    container = await manager.create(replace(engine.spec(ECHO), network="internet"))
    docker("network", "rm", network)
    with pytest.raises(ContainerError, match=network):
        await start_and_feed(manager, container, [])
    assert (await engine.only()).state is ContainerState.CREATED
    await manager.create(replace(engine.spec(ECHO), network="internet"))  # makes both anew
    await manager.close()


async def test_a_foreign_network_of_that_name_is_not_used(engine: Engine, network: str) -> None:
    docker("network", "create", network)
    manager = ContainerManager(network=NetworkOptions(network))
    with pytest.raises(EngineUnavailable, match="docker network rm"):
        await manager.create(replace(engine.spec(ECHO), network="internet"))
    await manager.close()


@pytest.mark.skipif(
    os.geteuid() == 0 and not SOAKING,
    reason="CI_SOAK=1: who is root has it from test_another_jobs_port_is_out_of_reach_by_the_fence_alone",
)
async def test_containers_on_the_network_cannot_reach_each_other(engine: Engine, network: str) -> None:
    manager = ContainerManager(network=NetworkOptions(network))
    listener, caller = replace(engine.spec(LISTEN), network="internet"), engine.spec(CALL)
    listening = await manager.create(listener)
    await start_and_feed(manager, listening, [])
    await engine.until(listening, b"listening\n")
    [address] = json.loads(
        docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", listening)
    ).values()
    calling = await manager.create(replace(caller, network="internet"))
    await start_and_feed(manager, calling, [address["IPAddress"].encode()])
    assert await engine.output(calling) == b"unreachable\n"
    await manager.close()


async def test_a_container_on_the_jobs_network_has_an_interface(engine: Engine) -> None:
    spec = replace(engine.spec(LIMITS), network="internet")
    container = await engine.runtime.create(spec)
    await start_and_feed(engine.runtime, container, [])
    assert json.loads(await engine.output(container))["interfaces"] == ["eth0", "lo"]


async def test_without_an_engine_everything_says_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    manager = ContainerManager()
    calls = (
        manager.ping(),
        manager.list(engine.instance_id),
        manager.image_id("x"),
        manager.create(engine.spec(ECHO)),
        manager.signal("x", "SIGINT"),
        manager.remove("x"),
    )
    for call in calls:
        with pytest.raises(EngineUnavailable, match="DOCKER_HOST"):
            await call
    with pytest.raises(EngineUnavailable), manager.follow_output("x"):
        pass
    with manager.watch(engine.instance_id, lambda: None):
        pass
    await manager.close()


async def test_an_engine_that_hangs_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/hangs.sock")
    manager = ContainerManager(call_timeout=0.2)
    with socket.socket(socket.AF_UNIX) as engine_that_never_answers:
        engine_that_never_answers.bind(f"{tmp_path}/hangs.sock")
        engine_that_never_answers.listen()
        with pytest.raises(EngineUnavailable, match="hangs"):
            await manager.ping()
    await manager.close()


async def test_it_recovers_when_the_engine_comes_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manager = ContainerManager()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(EngineUnavailable):
        await manager.ping()
    monkeypatch.delenv("DOCKER_HOST")
    await manager.ping()
    assert await manager.list(engine.instance_id) == []
    await manager.close()


async def test_the_watch_is_told_without_a_poll(engine: Engine) -> None:
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def on_change() -> None:
        loop.call_soon_threadsafe(changed.set)

    with engine.runtime.watch(engine.instance_id, on_change):
        await asyncio.wait_for(changed.wait(), 5)  # connected
        changed.clear()
        container = await engine.start(EXIT_3)
        await asyncio.wait_for(changed.wait(), 5)
    assert (await engine.exit(container)).exit_code == 3


async def test_the_engine_tells_about_itself(manager: ContainerManager) -> None:
    info = await manager.info()
    assert info.version == docker("version", "--format", "{{.Server.Version}}")
    assert info.cgroup_version in {"1", "2"}
