"""Where the core-seconds of a drained job go: CPU of everybody involved, ours beside `xargs -P` of `docker run`.

`python -m bench.core_seconds [JOBS [ROUNDS]]`, as root, on a host with version 1 of the control groups. The engine is
a private one, so that what others do with the host's is not counted; each party has a group of the kernel's own
accounting, which also has what had ended by the time one looks. What the kernel does by itself afterwards (taking
network namespaces apart, writing to disk) is nobody's and not in it.
"""

import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench.drain import drained_floor, drained_ours, tiny_archive, tiny_tree
from bench.place import Place, place
from tests.support.private_engine import PrivateEngine, private_engine

_ACCOUNTING = Path("/sys/fs/cgroup/cpuacct")
_TICKS = os.sysconf("SC_CLK_TCK")
_PARALLEL = 2
_NUMBER = 98  # of the private engine; tests have the low ones


class Group:
    """A control group that counts the CPU of whoever was put into it, and of all their children."""

    def __init__(self, name: str) -> None:
        self._path = _ACCOUNTING / name
        self._path.mkdir(parents=True, exist_ok=True)

    def take(self, process: int) -> None:
        """The process is in it, with all its threads."""
        (self._path / "cgroup.procs").write_text(str(process))

    def seconds(self) -> float:
        return int((self._path / "cpuacct.usage").read_text()) / 1e9

    def remove(self) -> None:
        """The group is gone; whoever is left in it is in the outermost one."""
        for left in (self._path / "cgroup.procs").read_text().split():
            (_ACCOUNTING / "cgroup.procs").write_text(left)
        self._path.rmdir()


def _seconds_of(process: int) -> float:
    """Return the CPU of a process that runs, its own and nobody else's."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Parties:
    """Who is counted: what each has used so far."""

    def __init__(self, root: str) -> None:
        self.jobs = Group(f"{root}/jobs")
        self.engine = Group(f"{root}/engine")
        self.server = Group(f"{root}/server")
        self.controller = Group(f"{root}/controller")
        self.floor = Group(f"{root}/floor")
        self._groups = (self.jobs, self.engine, self.server, self.controller, self.floor)
        self._root = _ACCOUNTING / root
        self.daemons: dict[str, int] = {}
        self.runner = 0  # the controller's process

    def used(self) -> dict[str, float]:
        daemons = {name: _seconds_of(pid) for name, pid in self.daemons.items()}
        return {
            **daemons,
            "shims, runc, hooks": self.engine.seconds() - sum(daemons.values()),
            "in the containers": self.jobs.seconds(),
            "server": self.server.seconds(),
            **self._controllers(),
            "the docker command": self.floor.seconds(),
        }

    def _controllers(self) -> dict[str, float]:
        whole, alone = self.controller.seconds(), _seconds_of(self.runner) if self.runner else 0.0
        return {"controller": alone, "iptables, run by it": whole - alone}

    def remove(self) -> None:
        for group in self._groups:
            group.remove()
        self._root.rmdir()


@contextmanager
def _parties() -> Generator[tuple[PrivateEngine, Parties]]:
    root = f"ci-bench-{os.getpid()}"
    parties = Parties(root)
    try:
        with private_engine(_NUMBER, options=("--cgroup-parent", f"/{root}/jobs")) as engine:
            parties.daemons = {"dockerd": engine.process.pid, "containerd": engine.containerd[0]}
            for pid in parties.daemons.values():
                parties.engine.take(pid)
            yield engine, parties
    finally:
        parties.remove()


def _each(parties: Parties, jobs: int, drain: Callable[[], object]) -> dict[str, float]:
    """Return the milliseconds of CPU that each party took for one job."""
    before = parties.used()
    drain()
    return {name: (used - before[name]) / jobs * 1000 for name, used in parties.used().items()}


def measure(here: Place, parties: Parties, jobs: int, rounds: int) -> dict[str, list[Mapping[str, float]]]:
    """Return the samples of both ways, taken by turns."""
    parties.server.take(here.server.process.pid)
    parties.runner = here.controller.process.pid
    parties.controller.take(parties.runner)
    project = here.project("tiny", "ours")
    archive, tree = tiny_archive(project), tiny_tree(here, project)
    here.submit(project)
    drained_ours(here, archive, _PARALLEL * 2)
    drained_floor(here, tree, _PARALLEL, _PARALLEL)
    samples: dict[str, list[Mapping[str, float]]] = {"ours": [], "docker run": []}
    for _ in range(rounds):
        floor = _each(
            parties, jobs, lambda: _as_floor(parties, lambda: drained_floor(here, tree, jobs, _PARALLEL))
        )
        samples["docker run"].append(floor)
        samples["ours"].append(_each(parties, jobs, lambda: drained_ours(here, archive, jobs)))
    return samples


def _as_floor(parties: Parties, drain: Callable[[], object]) -> None:
    """What is started meanwhile is counted as the floor's commands, and this process with it."""
    parties.floor.take(os.getpid())
    try:
        drain()
    finally:
        (_ACCOUNTING / "cgroup.procs").write_text(str(os.getpid()))


def main() -> None:
    jobs, rounds = (int(text) for text in [*sys.argv[1:], *("40", "2")[len(sys.argv) - 1 :]])
    with _parties() as (engine, parties), place(rounds, quick=True) as here:
        os.environ["DOCKER_HOST"] = engine.url  # the floor's too
        here.system.engine = engine
        samples = measure(here, parties, jobs, rounds)
    names = samples["ours"][0]
    print(f"CPU of one of {jobs} tiny jobs queued at once (ms), medians of {rounds} rounds\n")
    print("| who | " + " | ".join(samples) + " |\n|---|---|---|")
    for name in names:
        cells = (f"{median(one[name] for one in found):.0f}" for found in samples.values())
        print(f"| {name} | " + " | ".join(cells) + " |")
    totals = (f"{median(sum(one.values()) for one in found):.0f}" for found in samples.values())
    print("| **all** | " + " | ".join(f"**{total}**" for total in totals) + " |")


if __name__ == "__main__":
    main()
