"""What honest tests do still works under the same list of system calls, in parallel and with numpy."""

from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation, make_project

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

_TESTS = """\
import asyncio, concurrent.futures, ctypes, mmap, multiprocessing, os, resource, shutil, signal, socket, sqlite3
import subprocess, sys
import numpy
import pytest

def square(x):
    return x * x

@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools(method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(square, range(4)) == [0, 1, 4, 9]

def test_shared_memory_and_locks():
    from multiprocessing import shared_memory
    block = shared_memory.SharedMemory(create=True, size=64)
    block.close(); block.unlink()
    with multiprocessing.Lock(), multiprocessing.Semaphore(2):
        pass

def test_executors():
    for kind in (concurrent.futures.ThreadPoolExecutor, concurrent.futures.ProcessPoolExecutor):
        with kind(2) as pool:
            assert list(pool.map(square, range(3))) == [0, 1, 4]

def test_subprocesses():
    assert subprocess.check_output(["sh", "-c", "echo $((6 * 7)) | cat"], text=True) == "42\\n"
    assert subprocess.run([sys.executable, "-c", "pass"], start_new_session=True, preexec_fn=os.getpid).returncode == 0

def test_asyncio_with_servers_signals_and_children():
    async def main():
        loop, got = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, got.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await got.wait()
        async def echo(reader, writer):
            writer.write(await reader.readline()); await writer.drain(); writer.close()
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\\n")
        assert await reader.readline() == b"hello\\n"
        writer.close(); server.close()
        child = await asyncio.create_subprocess_exec("true")
        assert await child.wait() == 0
    asyncio.run(main())

def test_sockets_of_every_common_kind():
    for family in (socket.AF_INET, socket.AF_UNIX):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            socket.socket(family, kind).close()
    left, right = socket.socketpair()
    left.send(b"x"); assert right.recv(1) == b"x"
    left.close(); right.close()
    assert "lo" in [name for _, name in socket.if_nameindex()]

def test_the_machine_and_ones_own_limits():
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    os.nice(1)
    os.setpriority(os.PRIO_PROCESS, 0, 5)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
    resource.prlimit(0, resource.RLIMIT_NOFILE)
    resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE)  # reading

def test_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"x" * 4096); file.flush(); os.fsync(file.fileno())
        with mmap.mmap(file.fileno(), 0) as view:
            assert view[:1] == b"x"
        os.posix_fallocate(file.fileno(), 0, 8192)
    shutil.copyfile(tmp_path / "file", tmp_path / "copy")
    os.memfd_create("memory")
    sqlite3.connect(tmp_path / "database").execute("PRAGMA journal_mode=WAL").connection.close()

def test_timers_and_signals():
    previous = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    signal.pause()
    signal.signal(signal.SIGALRM, previous)
    assert signal.sigtimedwait([signal.SIGUSR2], 0) is None

def test_code_that_is_made_at_run_time():
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(square)
    assert callback(3) == 9

def test_numpy_with_threads():
    numbers = numpy.random.default_rng(1).random((300, 300))
    assert numpy.allclose(numbers @ numpy.linalg.inv(numbers), numpy.eye(300))
"""


def test_an_honest_project_does_not_notice(shared: tuple[Installation, Daemon], tmp_path: Path) -> None:
    system, server = shared
    files = {"test_ordinary.py": _TESTS, "requirements.txt": "numpy\npytest\npytest-xdist\n"}
    project = make_project(tmp_path / "project", dict(files))
    done = system.ci(server, "submit", "test", "--", "-n", "2", project=project)
    assert done.code == 0, done.text[-4000:] + done.err
    assert "13 passed" in done.text, done.text[-2000:]
    eventually(lambda: not system.containers(), what="the container's removal")
