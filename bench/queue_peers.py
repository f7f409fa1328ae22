"""Our queue beside other Python queues: claim and finish, on the same disk, in the same run, everything durable.

`python -m bench.queue_peers` (`make bench-queue`) needs PostgreSQL's programs and no Docker. The peers are installed
below `bench/.peers` on first use, never into the project's environment. PostgreSQL runs as a cluster of its own with
`fsync` and `synchronous_commit` on; SQLite, ours and huey's, has `synchronous=FULL`. All files are on one disk.

Every sample has a fresh copy of a filled queue. The contenders take turns, so what the machine does besides falls on
all of them: the ratio within a round counts, not what was reached. CPU is that of the process and of PostgreSQL's
sessions, from their beginning to their end.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from bench.peers import PEERS
from bench.queues.worker import Found, Request
from bench.report import machine, percentile
from tests.support.postgres import Cluster

PACKAGES: Final = (
    "procrastinate==3.10.0",
    "pgqueuer==1.6.0",
    "huey==3.5.4",
    "psycopg[binary]==3.3.9",
    "asyncpg==0.32.0",
)
RESULTS: Final = Path(__file__).parent / "results" / "queue.json"
_HERE: Final = Path(__file__).parent.parent
_SECONDS: Final = 300  # for one sample
_SHALLOW, _DEEP = 1_000, 100_000  # queued jobs


@dataclass(frozen=True)
class Contender:
    """A queue on a database."""

    name: str
    program: str  # in `bench.queues`
    on_server: bool = False
    is_peer: bool = False
    max_batch: int = 1
    users: int = 1  # whose jobs are queued, where the queue takes turns

    @property
    def python(self) -> str:
        return str(PEERS / "queues" / "bin" / "python") if self.is_peer else sys.executable


def contenders(users: int) -> list[Contender]:
    """Return ours, the peers and the floors."""
    return [
        Contender("ours, SQLite", "ours", max_batch=1000, users=users),
        Contender("huey, SQLite", "huey_queue", is_peer=True),
        Contender("floor, SQLite", "floor", max_batch=1000),
        Contender("ours, PostgreSQL", "ours", on_server=True, max_batch=1000, users=users),
        Contender("procrastinate", "procrastinate_queue", on_server=True, is_peer=True),
        Contender("pgqueuer", "pgqueuer_queue", on_server=True, is_peer=True, max_batch=1000),
        Contender("floor, PostgreSQL", "floor", on_server=True, max_batch=1000),
    ]


class Places:
    """Filled queues, and copies of them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cluster = Cluster(parent=root)
        self._filled: dict[tuple[Contender, int], str] = {}
        self._made = 0

    def close(self) -> None:
        """The server is gone."""
        self._cluster.remove()

    def cpu_seconds(self) -> float:
        """Return what the server's sessions that have ended used."""
        return self._cluster.cpu_seconds()

    def filled(self, contender: Contender, jobs: int) -> str:
        """Return the place of a queue with so many jobs, which nobody changes."""
        if (contender, jobs) not in self._filled:
            place = self._new(contender)
            _done(contender, Request("fill", place, jobs, users=contender.users))
            self._filled[contender, jobs] = place
        return self._filled[contender, jobs]

    @contextmanager
    def copied(self, contender: Contender, jobs: int) -> Generator[str]:
        """The place of a copy of it, which is gone after the block."""
        template = self.filled(contender, jobs)
        if contender.on_server:
            database = self._name()
            self._cluster.execute(
                f"CREATE DATABASE {database} TEMPLATE {template.split('/')[3].split('?')[0]}"
            )
            self._cluster.execute("CHECKPOINT")
            yield self._cluster.url(database)
            self._cluster.execute(f"DROP DATABASE {database} WITH (FORCE)")
        else:
            home = shutil.copytree(Path(template).parent, self._root / self._name())
            os.sync()
            yield str(home / "queue.db")
            shutil.rmtree(home)

    def _new(self, contender: Contender) -> str:
        name = self._name()
        if contender.on_server:
            self._cluster.execute(f"CREATE DATABASE {name}")
            return self._cluster.url(name)
        (self._root / name).mkdir()
        return str(self._root / name / "queue.db")

    def _name(self) -> str:
        self._made += 1
        return f"queue_{self._made}"


# -- one sample ------------------------------------------------------------------------------------------


def _started(contender: Contender, request: Request) -> subprocess.Popen[str]:
    command = [contender.python, "-m", f"bench.queues.{contender.program}", json.dumps(asdict(request))]
    return subprocess.Popen(command, cwd=_HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _done(contender: Contender, request: Request) -> str:
    with _started(contender, request) as process:
        output, _ = process.communicate("\n", timeout=_SECONDS)
    assert process.returncode == 0, f"{contender.name}: {request} ended with {process.returncode}"
    return output


def work(contender: Contender, request: Request, processes: int) -> list[Found]:
    """Return what each of the processes measured, which began together."""
    started = [_started(contender, request) for _ in range(processes)]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"{contender.name} does not start"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=_SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [Found(**json.loads(output)) for output in outputs]


@dataclass(frozen=True)
class Sample:
    """What all processes of a sample reached together."""

    per_second: float
    cpu: float  # milliseconds for each job
    claims: tuple[float, ...]
    finishes: tuple[float, ...]

    @classmethod
    def of(cls, found: Sequence[Found], server_cpu: float) -> "Sample":
        seconds = max(one.ended for one in found) - min(one.began for one in found)
        jobs = sum(one.jobs for one in found)
        return cls(
            jobs / seconds,
            1000 * (server_cpu + sum(one.cpu for one in found)) / jobs,
            tuple(sample for one in found for sample in one.claims),
            tuple(sample for one in found for sample in one.finishes),
        )


# -- the comparison --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """How many do how much at once."""

    workers: int
    batch: int
    processes: int = 1

    def __str__(self) -> str:
        who = f"{self.workers} workers" if self.workers > 1 else "1 worker"
        if self.processes > 1:
            who = f"{self.processes} processes"
        return f"{who}, batches of {self.batch}"


Samples = Mapping[Case, Mapping[str, Sequence[Sample]]]


def compare(
    places: Places, cases: Sequence[Case], rivals: Sequence[Contender], jobs: int, rounds: int
) -> Samples:
    """Return the samples of every contender that has such batches, one of each round."""
    found: dict[Case, dict[str, list[Sample]]] = {}
    for number in range(rounds):
        for case in cases:
            able = [rival for rival in rivals if rival.max_batch >= case.batch]
            first = number % len(able)
            for rival in able[first:] + able[:first]:
                sample = _sample(places, rival, case, jobs)
                found.setdefault(case, {}).setdefault(rival.name, []).append(sample)
                print(
                    f"[{number}] {case}: {rival.name} {sample.per_second:.0f}/s", file=sys.stderr, flush=True
                )
    return found


def _sample(places: Places, rival: Contender, case: Case, jobs: int) -> Sample:
    with places.copied(rival, jobs) as place:
        before = places.cpu_seconds()
        found = work(rival, Request("work", place, workers=case.workers, batch=case.batch), case.processes)
    # Only now all sessions have ended; that of the drop is counted for everybody.
    server_cpu = places.cpu_seconds() - before if rival.on_server else 0.0
    assert sum(one.jobs for one in found) == jobs, f"{rival.name} did not empty its queue"
    return Sample.of(found, server_cpu)


def ratios(ours: Sequence[Sample], theirs: Sequence[Sample]) -> list[float]:
    """Return how many times as many jobs ours did, in each round."""
    return [one.per_second / other.per_second for one, other in zip(ours, theirs, strict=True)]


def claim_p99s(places: Places, ours: Contender, rounds: int) -> Mapping[int, list[float]]:
    """Return the p99 of a claim of one job with few and with many queued jobs, by round."""
    found: dict[int, list[float]] = {_SHALLOW: [], _DEEP: []}
    request = Request("work", "", jobs=_SHALLOW // 2, latencies_only=True)
    for _ in range(rounds):
        for queued, samples in found.items():
            with places.copied(ours, queued) as place:
                [measured] = work(ours, replace(request, place=place), 1)
            samples.append(percentile(measured.claims, 99))
    return found


# -- for people and programs -------------------------------------------------------------------------------


def text_of(samples: Samples, depths: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    """Return Markdown tables of everything."""
    lines = [
        "| | queue | jobs/s | ours against it | CPU of a job (ms) | claim p50, p99 (ms) | finish p50, p99 (ms) |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, by_name in samples.items():
        lines += [_line(case, name, by_name) for name in by_name]
    lines += ["", "| database | claim p99, 1 000 queued (ms) | 100 000 queued | ratio |", "|---|---|---|---|"]
    for name, found in depths.items():
        few, many = statistics.median(found[_SHALLOW]), statistics.median(found[_DEEP])
        lines.append(f"| {name} | {few:.2f} | {many:.2f} | {_depth_ratio(found):.2f} |")
    return "\n".join(lines)


def _depth_ratio(found: Mapping[int, Sequence[float]]) -> float:
    return statistics.median(many / few for few, many in zip(found[_SHALLOW], found[_DEEP], strict=True))


def _line(case: Case, name: str, by_name: Mapping[str, Sequence[Sample]]) -> str:
    ours = by_name.get("ours, SQLite" if "SQLite" in name or name.startswith("huey") else "ours, PostgreSQL")
    samples = by_name[name]
    rate = statistics.median(sample.per_second for sample in samples)
    ratio = "-" if ours is None or samples is ours else f"{statistics.median(ratios(ours, samples)):.2f}"
    claims = [time for sample in samples for time in sample.claims]
    finishes = [time for sample in samples for time in sample.finishes]
    cpu = statistics.median(sample.cpu for sample in samples)
    times = f"{_percentiles(claims)} | {_percentiles(finishes)}"
    return f"| {case} | {name} | {rate:.0f} | {ratio} | {cpu:.1f} | {times} |"


def _percentiles(times: Sequence[float]) -> str:
    return f"{percentile(times, 50):.2f}, {percentile(times, 99):.1f}"


def document(
    samples: Samples, depths: Mapping[str, Mapping[int, Sequence[float]]], options: argparse.Namespace
) -> dict[str, Any]:
    """Return everything for programs; of latencies the percentiles of each sample."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "load": os.getloadavg()[0],
        "jobs": options.jobs,
        "users": options.users,
        "peers": PACKAGES,
        "cases": [
            {**asdict(case), "queue": name, "samples": [_sample_document(sample) for sample in found]}
            for case, by_name in samples.items()
            for name, found in by_name.items()
        ],
        "claim_p99": {
            name: {str(queued): times for queued, times in found.items()} for name, found in depths.items()
        },
    }


def _sample_document(sample: Sample) -> dict[str, float]:
    return {
        "per_second": sample.per_second,
        "cpu": sample.cpu,
        "claim_p50": percentile(sample.claims, 50),
        "claim_p99": percentile(sample.claims, 99),
        "finish_p50": percentile(sample.finishes, 50),
        "finish_p99": percentile(sample.finishes, 99),
    }


# -- the command -------------------------------------------------------------------------------------------


def install() -> None:
    """The peers' environment is there."""
    venv = PEERS / "queues"
    done = venv / "installed"
    if done.exists() and done.read_text() == " ".join(PACKAGES):
        return
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    done.write_text(" ".join(PACKAGES))


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="samples of each (default 3)")
    parser.add_argument("--jobs", type=int, default=1000, help="in the queue of each sample (default 1000)")
    parser.add_argument("--users", type=int, default=10, help="whose jobs ours has queued (default 10)")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16], help="at once, in one process")
    parser.add_argument("--processes", type=int, nargs="*", default=[4], help="of one worker each, at once")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 10])
    parser.add_argument("--only", nargs="*", help="names of contenders, or the beginnings of them")
    parser.add_argument("--no-depths", action="store_true", help="without 100 000 queued jobs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON is written")
    return parser.parse_args(arguments)


def _leave(*_: object) -> NoReturn:
    """The process ends, and everything is cleaned up on the way."""
    sys.exit(143)


def main(arguments: Sequence[str]) -> int:
    options = options_of(arguments)
    signal.signal(signal.SIGTERM, _leave)
    install()
    rivals = [
        rival
        for rival in contenders(options.users)
        if options.only is None or any(rival.name.startswith(name) for name in options.only)
    ]
    cases = [Case(workers, batch) for batch in options.batches for workers in options.workers]
    cases += [Case(1, batch, processes) for batch in options.batches for processes in options.processes]
    with tempfile.TemporaryDirectory(prefix="ci-bench-queue-") as root:
        Path(root).chmod(0o755)  # the server is another user
        places = Places(Path(root))
        try:
            samples = compare(places, cases, rivals, options.jobs, options.rounds)
            ours = [] if options.no_depths else [rival for rival in rivals if rival.program == "ours"]
            depths = {rival.name: claim_p99s(places, rival, options.rounds) for rival in ours}
        finally:
            places.close()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document(samples, depths, options), indent=2) + "\n")
    print(text_of(samples, depths))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
