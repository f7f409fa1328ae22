"""`make cluster-demo`: a whole cluster on this machine, 60 jobs of three users through it, and who ran what.

Every process has a host of its own (a network namespace with an address): PostgreSQL, two servers behind one address, a
controller that runs no jobs, and three agents, each with a Docker engine of its own. The exit code is 0 only if each
job has the one verdict that it must have, and both servers have its whole log. It needs root.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from types import FrameType

from tests.support.cluster.cluster import Cluster, Layout, cluster
from tests.support.cluster.distribution import ended, table
from tests.support.cluster.network import NotRoot
from tests.support.cluster.workload import MIXED, Handed, handed_in, wrong
from tests.support.eventually import eventually
from tests.support.outcomes import open_jobs
from tests.support.prepared_image import prepared_image

USERS = ("ada", "grace", "edsger")
AT_MOST = 1800.0  # seconds for all jobs
LOG_TAIL = 15  # lines
NOT_ROOT, WRONG, FAILED, INTERRUPTED = 77, 1, 70, 130  # exit codes

_ENDING = (signal.SIGINT, signal.SIGTERM)

_begun = time.monotonic()


def say(text: str) -> None:
    """The text stands there with the seconds since the start."""
    print(f"{time.monotonic() - _begun:6.1f} s  {text}", flush=True)


def main() -> int:
    """Run the demo; its description says what the exit code means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=60, help="jobs in all (60)")
    parser.add_argument("--agents", type=int, default=3, help="agents (3)")
    asked = parser.parse_args()
    for number in _ENDING:
        signal.signal(number, _as_interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="ci-cluster-") as root:
            return _demo(Path(root), asked.jobs, Layout(agents=asked.agents))
    except NotRoot as error:
        print(f"cluster-demo: {error} Run it as root.", file=sys.stderr)
        return NOT_ROOT
    except KeyboardInterrupt:
        print("\ncluster-demo: interrupted; everything it started is stopped", file=sys.stderr)
        return INTERRUPTED
    except AssertionError as error:
        print(f"\ncluster-demo: {error}", file=sys.stderr)
        return FAILED


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    """What was started is taken down, and nobody who is impatient stops that half-way."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _demo(root: Path, jobs: int, layout: Layout) -> int:
    try:
        with cluster(root, prepared_image(), layout, say) as made:
            complaints = _run(made, jobs)
            made.stop()
    except AssertionError:
        _show_logs(root)
        raise
    if complaints:
        print("\nWRONG:", *complaints, sep="\n  ")
        _show_logs(root)
        return WRONG
    say("everything is stopped and gone")
    return 0


def _run(made: Cluster, jobs: int) -> list[str]:
    """Every job went through the cluster and was looked at; returns what is wrong with them."""
    for user in USERS:
        made.system.key(user)
    begun = time.monotonic()
    with ThreadPoolExecutor(len(USERS)) as people:
        handed = [job for share in people.map(partial(_submit, made), _shares(jobs)) for job in share]
    say(f"{len(handed)} jobs of {len(USERS)} users are submitted")
    _wait(made, len(handed))
    seconds = time.monotonic() - begun
    say(f"all of them have ended: {seconds:.1f} s, {60 * len(handed) / seconds:.0f} jobs a minute\n")
    print(*table(ended(made.system)), "", sep="\n")
    complaints = wrong(made, handed)
    say(f"{len(handed)} verdicts and {len(handed)} logs at {len(made.replicas)} replicas were looked at")
    return complaints


def _shares(jobs: int) -> Iterator[tuple[str, int]]:
    """Yield each user, and how many jobs are that user's."""
    for number, user in enumerate(USERS):
        yield user, len(range(number, jobs, len(USERS)))


def _submit(made: Cluster, share: tuple[str, int]) -> list[Handed]:
    user, jobs = share
    return [handed_in(made.system, made.front, kind, user) for kind in islice(cycle(MIXED), jobs)]


def _wait(made: Cluster, jobs: int) -> None:
    """Every job has ended, and each time that a few more had, that was said."""
    said = [0]

    def all_ended() -> bool:
        done = jobs - len(open_jobs(made.system))
        if done - said[0] >= max(1, jobs // 12):
            said[0] = done
            say(f"{done} of {jobs} jobs have ended")
        return done == jobs

    eventually(all_ended, seconds=AT_MOST, what="the end of every job")


def _show_logs(root: Path) -> None:
    """The last lines of every program are on stderr."""
    for log in sorted(root.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
        print(f"\n--- the last lines of {log.stem} ---", *lines, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
