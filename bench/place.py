"""Where everything is measured: a CI system of its own, and what the floors need; all of it goes at the end."""

import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.floors import Containers, Virtual
from ci_controller.labels import INSTANCE
from ci_controller.policy import DEFAULTS
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation

PROJECTS = Path(__file__).parent / "projects"
# Limits that protect a shared system and are not what is measured here.
RAISED = {
    "CI_MAX_STREAMS_PER_USER": "2000",
    "CI_MAX_CONNECTIONS": "10000",
    "CI_MAX_CONNECTIONS_PER_ADDRESS": "10000",
}


@dataclass
class Place:
    """Handed to each measurement: how much to do, and what there is."""

    rounds: int
    quick: bool
    root: Path
    opened: ExitStack  # what is opened on first use is closed with it
    jobs: int = 0  # submitted so far

    @cached_property
    def system(self) -> Installation:
        """A controller and a server of ours run, with images of their own."""
        system = Installation(_folder(self.root / "system"), prefix="bench-", keeps_environments=True)
        self.opened.callback(_remove, system)
        return system

    @cached_property
    def controller(self) -> Daemon:
        return self.system.start_controller(CI_WARM_CONTAINERS=str(DEFAULTS.warm_containers))

    @cached_property
    def server(self) -> Daemon:
        """The server answers, and the controller serves it."""
        assert self.controller.running, self.controller.tail()
        server = self.system.start_server(workers=1, **RAISED)
        try:
            self.system.wait_ready(server)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.controller.tail()}") from error
        return server

    @cached_property
    def containers(self) -> Containers:
        """`docker run`, with images that are prepared."""
        containers = Containers(f"ci-bench-{os.getpid()}")
        self.opened.callback(containers.remove)
        return containers

    @cached_property
    def virtual(self) -> Virtual:
        """A virtual environment with pytest and tox."""
        return Virtual(self.root / "venv")

    def project(self, name: str, user: str, *, git: bool = False) -> Path:
        """Return a copy of one of the projects for one who works on it, made on first use."""
        copy = self.root / "projects" / f"{name}-{user}"
        if not copy.exists():
            copy.mkdir(parents=True)
            for file in (PROJECTS / name).iterdir():
                if file.is_file():
                    (copy / file.name).write_bytes(file.read_bytes())
            if git:
                commit_all(copy)
        return copy

    def submit(self, project: Path, *args: str, user: str = "ada") -> None:
        """`ci submit test` has passed, start to end."""
        self.jobs += 1
        done = self.system.ci(self.server, "submit", "test", *args, project=project, user=user)
        assert done.code == 0, done.text[-2000:] + done.err

    def rest(self) -> None:
        """As many containers wait as before the last job: as it is when a person has read its verdict and made
        another edit. Nothing of ours runs beside a floor then, either."""
        wanted = min(self.jobs, DEFAULTS.warm_containers)
        eventually(lambda: self._waiting() >= wanted, seconds=60, what=f"{wanted} containers that wait")

    def _waiting(self) -> int:
        shown = ["--filter", f"name={self.system.prefix}waiting-", "--format", "{{.ID}}"]
        return len(self.system.docker("ps", *shown).split())


def commit_all(project: Path) -> None:
    """The directory is a git repository with one commit of all that is in it."""
    who = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    who += ["-c", "gc.auto=0"]  # nothing goes on behind a measurement
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=project, check=True, capture_output=True, timeout=300)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _remove(system: Installation) -> None:
    """Nothing is left of it: processes, containers, images of environments."""
    instance = system.instance_id()
    system.stop()
    if instance:
        images = system.docker("images", "-q", "--filter", f"label={INSTANCE}={instance}").split()
        for image in dict.fromkeys(images):
            with suppress(AssertionError):  # somebody uses it: the next one's pruning is not ours
                system.docker("rmi", "-f", image)


@contextmanager
def place(rounds: int, *, quick: bool) -> Generator[Place]:
    """Yield where to measure; whatever was made there is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="ci-bench-", ignore_cleanup_errors=True) as root,
        ExitStack() as opened,
    ):
        yield Place(rounds, quick, Path(root), opened)


@contextmanager
def running() -> Generator[tuple[Installation, Daemon, Daemon]]:
    """A CI system of our own runs; yields it, its controller and its server."""
    with place(1, quick=True) as here:
        server = here.server
        yield here.system, here.controller, server
