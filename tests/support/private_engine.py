"""A Docker engine of a test's own, in network and mount namespaces of its own, to be stopped, killed and hung.

A second `dockerd` in the host's network namespace would take the first one's `docker0` away; here it cannot
see it. Its network reaches the outside through a pair of virtual cables and address translation.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.support.docker_cli import RUNNER_IMAGE
from tests.support.eventually import eventually
from tests.support.namespaces import children_of, inside, namespace_with_a_way_out, processes_in, run

_MOST_FILES = "2g"  # of an engine; a runner image takes 300 MB of it


@dataclass
class PrivateEngine:
    """One private `dockerd`, its files below `root`, its network in the namespace `name`."""

    name: str
    root: Path
    live_restore: bool = False
    options: tuple[str, ...] = ()  # of dockerd, beside those that keep it apart
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _holder: subprocess.Popen[bytes] | None = field(default=None, repr=False)  # of the mount namespace

    @property
    def url(self) -> str:
        return f"unix://{self.root}/docker.sock"

    @property
    def inside(self) -> list[str]:
        """What to put before a command that is to run in the engine's network."""
        return inside(self.name)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the engine was never started"
        return self._process

    def start(self) -> None:
        """The engine answers; one that gives up on a busy machine is started again, as a service manager does."""
        self._launch()
        eventually(self._answers, seconds=90, what="the private engine")

    def _launch(self) -> None:
        command = ["dockerd", "--data-root", f"{self.root}/root", "--exec-root", f"{self.root}/exec"]
        command += ["-H", self.url, "--pidfile", f"{self.root}/pid", *self.options]
        command += ["--live-restore"] if self.live_restore else []
        with (self.root / "dockerd.log").open("ab") as log:
            private = ["nsenter", f"--target={self._held()}", "--net", "--mount", *command]
            self._process = subprocess.Popen(private, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _held(self) -> int:
        """Return the process whose mount namespace every engine started here shares, as one host's engines do."""
        if self._holder is None:
            # `ip netns exec` would hide the control groups.
            holder = ["unshare", "--mount", "--propagation", "private", "sleep", "infinity"]
            self._holder = subprocess.Popen([*self.inside, *holder])
            eventually(lambda: _has_become("sleep", self._holder), what="the holder of the namespaces")
        return self._holder.pid

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            self._launch()
        return self._docker("version", "--format", "{{.Server.Version}}").returncode == 0

    def send(self, number: signal.Signals) -> None:
        """The engine's process gets a signal: SIGTERM, SIGKILL, SIGSTOP, SIGCONT."""
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """The engine's process has ended by that signal."""
        self.send(number)
        self.process.wait(timeout=60)
        # The engine's own containerd ends with it, a moment later; an engine that meets it half-dead gives up.
        eventually(lambda: not self.containerd, what="the end of containerd")
        (self.root / "pid").unlink(missing_ok=True)

    @property
    def containerd(self) -> list[int]:
        """The engine's own containerd; none once it has ended."""
        config = f"{self.root}/exec/containerd/containerd.toml"
        return [pid for pid, command in _processes() if config in command and "shim" not in command]

    def set_live_restore(self, wanted: bool) -> None:
        """The engine runs in that mode, as if it had never run in another."""
        if wanted != self.live_restore:
            self.stop()
            self.live_restore = wanted
            self.start()

    def power_cut(self) -> None:
        """Everything that ran is gone at once, and what the engine kept in memory file systems too."""
        self.stop(signal.SIGKILL)
        self._kill_left_over()
        shutil.rmtree(self.root / "exec", ignore_errors=True)

    def docker(self, *args: str, check: bool = True) -> str:
        """Return what `docker ARGS` prints, asked of this engine."""
        done = self._docker(*args)
        assert not check or done.returncode == 0, f"docker {args}: {done.stderr}"
        return done.stdout.strip()

    def inspect(self, container: str) -> dict[str, object]:
        """Return the engine's `State` of a container."""
        return json.loads(self.docker("inspect", "--format", "{{json .State}}", container))

    def load(self, image: str) -> None:
        """The engine has that image of the host's engine."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
            assert saving.stdout is not None
            self.load_from(saving.stdout)
        assert saving.returncode == 0, f"docker save {image}"

    def load_from(self, saved: IO[bytes]) -> None:
        """The engine has what `docker save` wrote."""
        loading = ["docker", "--host", self.url, "load", "--quiet"]
        subprocess.run(loading, stdin=saved, stdout=subprocess.DEVNULL, check=True, timeout=120)

    def _docker(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "--host", self.url, *args], capture_output=True, text=True, check=False, timeout=120
        )

    def close(self) -> None:
        """Nothing of the engine is left: no process, no container, no file."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(timeout=30)
        self._kill_left_over()

    def _kill_left_over(self) -> None:
        for pid in self._left_over():
            with suppress(ProcessLookupError):  # it ended with its parent, just now
                os.kill(pid, signal.SIGKILL)
        if self._holder is not None:
            self._holder.wait(timeout=30)
            self._holder = None
        eventually(lambda: not self._left_over(), what="the end of the engine's processes")

    def _left_over(self) -> list[int]:
        """Return the processes in the engine's network namespace or of its shims, wherever their files are."""
        found = processes_in(self.name)
        for pid, command in _processes():
            if str(self.root) in command:
                found |= {pid, *children_of(pid)}
        return sorted(found - {os.getpid()})


def _processes() -> list[tuple[int, str]]:
    """Return every process that runs, with its command."""
    found = [(entry, _command_line(entry)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [(int(entry.name), command) for entry, command in found if command]


def _has_become(program: str, process: subprocess.Popen[bytes] | None) -> bool:
    return process is not None and _command_line(Path(f"/proc/{process.pid}")).startswith(program)


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has ended
        return ""


@contextmanager
def private_engine(
    number: int, *, image: str = RUNNER_IMAGE, options: tuple[str, ...] = ()
) -> Generator[PrivateEngine]:
    """A running private engine with that image; `number` (0-99) keeps those of parallel tests apart."""
    assert os.geteuid() == 0, "a private engine needs root"
    name, subnet = f"ci-eng{number}", f"10.231.{number}"
    with namespace_with_a_way_out(name, subnet), engine_in(name, options) as engine:
        engine.load(image)
        yield engine


@contextmanager
def engine_in(namespace: str, options: tuple[str, ...] = ()) -> Generator[PrivateEngine]:
    """A running private engine without any image, in a network namespace that is there."""
    with _files(namespace) as root:
        engine = PrivateEngine(namespace, root, options=options)
        try:
            engine.start()
            yield engine
        finally:
            engine.close()


@contextmanager
def _files(name: str) -> Generator[Path]:
    """A folder in memory: an image is unpacked there without a wait for a disk, and gone at once."""
    remove_files_of_killed(name)
    root = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/tmp"))  # a socket's path has 108 bytes at most
    run("mount", "-t", "tmpfs", "-o", f"size={_MOST_FILES}", name, str(root))
    try:
        yield root
    finally:
        _remove_files(root)


def remove_files_of_killed(name: str) -> None:
    """No files are left of an engine of that name, or of those called NAME-…, by a test that was killed."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for what, where, *_ in mounts:
        if what == name or what.startswith(f"{name}-"):
            _remove_files(Path(where))


def _remove_files(root: Path) -> None:
    run("umount", "--lazy", str(root))
    root.rmdir()
