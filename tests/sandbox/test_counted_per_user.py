"""What Linux counts per user: a hostile job uses it up, and another job still has its own.

The control gives both containers one user, and shows what the second one loses.
"""

import json
from collections.abc import AsyncIterator
from typing import Final

import pytest

from ci_controller.container_manager import ContainerManager
from ci_controller.container_users import GROUP, USERS
from tests.support.docker_cli import RUNNER_IMAGE, docker
from tests.support.eventually import eventually
from tests.support.runtime_contract import Engine

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine"), pytest.mark.timeout(120)]

# Beside the jobs' own users: the control takes nothing from jobs that run meanwhile.
SAME: Final = f"--user={USERS[-1] + 1}:{GROUP}"
FILES: Final = 4096  # as a job has, and as many descriptors one user may have in flight

_BOTH: Final = """
import array, ctypes, errno, json, os, signal, socket
LIBC = ctypes.CDLL(None, use_errno=True)

def watch():
    if LIBC.inotify_init1(0) < 0:
        raise OSError(ctypes.get_errno(), "inotify")

def send(to, count):
    descriptors = array.array("i", [0] * count)
    to.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
"""

# Processes, because each may have no more open files than there may be instances.
HOSTILE: Final = (
    _BOTH
    + """
def take_all(take):
    taken = 0
    try:
        while True:
            take()
            taken += 1
    except OSError as error:
        return taken, errno.errorcode[error.errno]

with open("/proc/sys/fs/inotify/max_user_instances") as file:
    takers = int(file.read()) // 3000 + 1
for _ in range(takers):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(take_all(watch)).encode())
        signal.pause()
    print("inotify", os.read(reader, 100).decode())
pairs = [socket.socketpair() for _ in range(40)]
left = iter(pair[0] for pair in pairs for _ in range(5))
print("descriptors", take_all(lambda: send(next(left), 200)))
print("all taken", flush=True)
signal.pause()
"""
)

INNOCENT: Final = (
    _BOTH
    + """
def fares(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

pair = socket.socketpair()
print(json.dumps({"inotify": fares(watch), "descriptors": fares(lambda: send(pair[0], 1))}))
"""
)


@pytest.fixture
async def containers() -> AsyncIterator[Engine]:
    manager = ContainerManager("sandbox-")
    engine = Engine(manager, docker("image", "inspect", "--format", "{{.Id}}", RUNNER_IMAGE))
    yield engine
    await engine.remove_all()
    await manager.close()


async def test_a_job_that_takes_all_its_user_may_have_takes_nothing_from_another(containers: Engine) -> None:
    hostile = await containers.start(HOSTILE)
    await containers.until(hostile, b"all taken")
    innocent = await containers.start(INNOCENT)
    assert json.loads(await containers.output(innocent)) == {"inotify": "ok", "descriptors": "ok"}
    assert await containers.runtime.exit_state(hostile) is None, "it still holds all of it"


def test_with_one_user_for_both_the_other_gets_nothing() -> None:
    options = ("--network=none", "--cap-drop=ALL", f"--ulimit=nofile={FILES}:{FILES}", SAME)
    hostile = docker("run", "-d", *options, RUNNER_IMAGE, "python3", "-u", "-c", HOSTILE)
    try:
        eventually(lambda: "all taken" in docker("logs", hostile), what="the end of taking", seconds=30)
        lost = json.loads(docker("run", "--rm", *options, RUNNER_IMAGE, "python3", "-c", INNOCENT))
    finally:
        docker("rm", "-f", hostile)
    assert lost == {"inotify": "EMFILE", "descriptors": "ETOOMANYREFS"}
