"""Other CI systems on the same project: each submits the tiny project and waits for the verdict, as `ci submit` does.

`python -m bench.peers` (`make bench-peers`) installs what can be had, below `bench/.peers`; what is not there is
skipped with a line. Every peer runs the tests by `docker run` of the prepared image. Buildbot and Laminar are not
asked to bring the tree along: it lies where their worker can read it, which is in their favour.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from bench.alternate import alternating
from bench.floors import PYTEST, SECONDS, packed
from bench.place import Place, commit_all
from bench.report import Row
from tests.support.eventually import eventually

PEERS = Path(__file__).parent / ".peers"
BUILDBOT = ("buildbot==4.3.0", "buildbot-worker==4.3.0", "setuptools<81")
GITLAB_CI_LOCAL = "gitlab-ci-local@4.61.0"


class NotHere(Exception):
    """A peer that is not installed, or cannot be."""


def _row(place: Place, title: str, key: str, theirs: Callable[[], object]) -> list[Row]:
    project = place.project("tiny", "ours")
    actions = {"ours": lambda: place.submit(project), "theirs": theirs}
    found = alternating(actions, max(2, place.rounds // 2), before=place.rest)
    name = "`ci submit test`, tiny, warm"
    return [Row(name, "ms", found["ours"], title, found["theirs"], key)]


def _run(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _job_script(place: Place) -> Path:
    """Return a script that runs the tests of the tiny project in a fresh container of the prepared image."""
    tree = place.root / "peer.tar"
    tree.write_bytes(packed(place.project("tiny", "peers")))
    command = place.containers.command(place.containers.prepared, PYTEST)
    script = place.root / "peer.sh"
    quoted = " ".join(f"'{word}'" for word in command)
    script.write_text(f"#!/bin/sh\nexec {quoted} < {tree}\n")
    script.chmod(0o755)
    return script


# -- gitlab-ci-local -------------------------------------------------------------------------------------


def gitlab_ci_local(place: Place) -> list[Row]:
    """`gitlab-ci-local` with the prepared image."""
    command = PEERS / "npm" / "node_modules" / ".bin" / "gitlab-ci-local"
    if not command.exists():
        raise NotHere("not installed: `make bench-peers`")
    if not shutil.which("rsync"):
        raise NotHere("it needs rsync")
    project = place.project("tiny", "gitlab")
    # It takes the image's own shell and never a registry's image of that name.
    config = f"test:\n  image: {place.containers.prepared}\n  script:\n    - {PYTEST}\n"
    (project / ".gitlab-ci.yml").write_text(config)
    commit_all(project)
    _run(["git", "remote", "add", "origin", "https://gitlab.example.org/bench/tiny.git"], project)
    whole = [str(command), "--cwd", str(project), "--pull-policy", "if-not-present", "test"]
    return _row(
        place,
        "`gitlab-ci-local`, docker, prepared image",
        "peers/gitlab-ci-local",
        lambda: _run(whole, project),
    )


# -- Buildbot --------------------------------------------------------------------------------------------

_MASTER = """
from buildbot.plugins import schedulers, steps, util, worker

factory = util.BuildFactory([steps.ShellCommand(command=["{script}"], haltOnFailure=True)])
c = BuildmasterConfig = {{
    "workers": [worker.Worker("w", "secret")],
    "protocols": {{"pb": {{"port": "tcp:{worker_port}:interface=127.0.0.1"}}}},
    "schedulers": [
        schedulers.Try_Userpass(
            name="try", builderNames=["test"], port="tcp:{try_port}:interface=127.0.0.1", userpass=[("ada", "pw")]
        )
    ],
    "builders": [util.BuilderConfig(name="test", workernames=["w"], factory=factory)],
    "buildbotNetUsageData": None,
    "db": {{"db_url": "sqlite:///state.sqlite"}},
}}
"""
_WORKER = """
import os
from buildbot_worker.bot import Worker
from twisted.application import service

application = service.Application("worker")
Worker("127.0.0.1", {port}, "w", "secret", os.path.dirname(__file__), 60, umask=None).setServiceParent(application)
"""


def buildbot(place: Place) -> list[Row]:
    """`buildbot try --wait`, a master and a worker on this machine."""
    command = PEERS / "venv" / "bin" / "buildbot"
    if not command.exists():
        raise NotHere("not installed: `make bench-peers`")
    project = place.project("tiny", "buildbot", git=True)
    with _buildbot_master(place, command.parent) as try_port:
        address = ["--connect=pb", f"--master=127.0.0.1:{try_port}", "--username=ada", "--passwd=pw"]
        what = ["--vc=git", "--branch=master", "--builder=test", "--wait", "--quiet"]
        whole = [str(command), "try", *address, *what]

        def submit() -> None:
            with (project / "test_tiny.py").open("a") as file:
                file.write("# edited\n")  # it does nothing without a difference
            _run(whole, project)

        eventually(lambda: _try(submit), seconds=60, what="Buildbot's first build")
        return _row(place, "`buildbot try --wait`, docker, prepared image", "peers/buildbot", submit)


def _try(action: Callable[[], None]) -> bool:
    try:
        action()
    except AssertionError:
        return False
    return True


@contextmanager
def _buildbot_master(place: Place, programs: Path) -> Generator[int]:
    """A master and its worker run; yields the port of `try`."""
    worker_port, try_port, script = _free_port(), _free_port(), _job_script(place)
    master, worker = place.root / "buildbot-master", place.root / "buildbot-worker"
    worker.mkdir()
    _run([str(programs / "buildbot"), "create-master", str(master)], place.root)
    config = _MASTER.format(script=script, worker_port=worker_port, try_port=try_port)
    (master / "master.cfg").write_text(config)
    (worker / "buildbot.tac").write_text(_WORKER.format(port=worker_port))
    with _daemon([str(programs / "twistd"), "--nodaemon", "--no_save", "-y", "buildbot.tac"], master):
        eventually(lambda: _listens(try_port), seconds=60, what="Buildbot's master")
        with _daemon([str(programs / "twistd"), "--nodaemon", "--no_save", "-y", "buildbot.tac"], worker):
            yield try_port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _daemon(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> Generator[None]:
    """The process runs meanwhile; its output is in `daemon.log`."""
    with (cwd / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# -- Laminar ---------------------------------------------------------------------------------------------


def laminar(place: Place) -> list[Row]:
    """`laminarc run`, whose job is the `docker run`."""
    if not shutil.which("laminard") or not shutil.which("laminarc"):
        raise NotHere("laminard is not installed, and this distribution may have no package of it")
    home = place.root / "laminar"
    (home / "cfg" / "jobs").mkdir(parents=True)
    shutil.copy(_job_script(place), home / "cfg" / "jobs" / "tiny.run")
    rpc = f"127.0.0.1:{_free_port()}"
    binds = {"LAMINAR_BIND_RPC": rpc, "LAMINAR_BIND_HTTP": f"127.0.0.1:{_free_port()}", "LAMINAR_HOST": rpc}
    env = {**os.environ, "LAMINAR_HOME": str(home), **binds}
    with _daemon(["laminard"], home, env):
        eventually(lambda: _listens(int(rpc.partition(":")[2])), seconds=30, what="laminard")
        return _row(
            place,
            "`laminarc run` of a `docker run`",
            "peers/laminar",
            lambda: _run(["laminarc", "run", "tiny"], home, env),
        )


# -- installing ------------------------------------------------------------------------------------------


def install() -> int:
    """What can be had is installed; what cannot is said."""
    PEERS.mkdir(exist_ok=True)
    venv, npm = PEERS / "venv", PEERS / "npm"
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", *BUILDBOT]
    _attempt("Buildbot", [[sys.executable, "-m", "venv", str(venv)], pip])
    _attempt("gitlab-ci-local", [["npm", "install", "--silent", "--prefix", str(npm), GITLAB_CI_LOCAL]])
    for package, program in (("rsync", "rsync"), ("laminar", "laminard")):
        if not shutil.which(program):
            _attempt(package, [["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]])
    return 0


def _attempt(name: str, commands: list[list[str]]) -> None:
    began = time.monotonic()
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error).encode()
            print(f"{name}: skipped, {said.decode(errors='replace').strip().splitlines()[-1]}")
            return
    print(f"{name}: installed in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    sys.exit(install())
