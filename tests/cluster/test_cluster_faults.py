"""The faults of a cluster, one after another in the same one: three agents, two replicas, a controller, PostgreSQL.

Runs for minutes: `make soak`, or `CI_SOAK=1 pytest -n 0 tests/cluster/test_cluster_faults.py`. Jobs of the other tests
of this file stay under the eyes of every later one: `Used.check` looks at all of them.
"""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.cluster.conftest import Used
from tests.support.cluster.claims import Claim, claim_of, let_end, let_go, lost_after, refusals
from tests.support.cluster.cluster import AgentMachine, Layout, Machine
from tests.support.cluster.workload import MIXED, PASSING, WAITING
from tests.support.eventually import eventually
from tests.support.outcomes import until_ended
from tests.support.soak import soak_only

LEASE = 8.0  # seconds

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(600),
    soak_only,
]


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout(agents=3, lease=LEASE, max_attempts=10)


@dataclass(frozen=True)
class Loss:
    """How an agent comes to be silent, and how it comes back."""

    name: str
    strike: Callable[[AgentMachine], object]
    heal: Callable[[AgentMachine], object]


def kill(machine: Machine) -> None:
    machine.running.kill()


def cut_the_power(machine: AgentMachine) -> None:
    machine.running.kill()
    machine.engine.power_cut()


def boot(machine: AgentMachine) -> None:
    machine.engine.start()
    machine.start()


LOSSES = [
    Loss("killed", kill, lambda machine: machine.start()),
    Loss("cut off", lambda machine: machine.host.cut_off(), lambda machine: machine.host.join()),
    Loss("paused", lambda machine: machine.pause(), lambda machine: machine.resume()),
    Loss("without power", cut_the_power, boot),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_an_agent_that_is_away_past_its_lease_loses_what_it_holds_and_writes_nothing_more(
    used: Used, loss: Loss, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it can, the zombie's job ends while it is away: its verdict comes too late."""
    cluster = used.cluster
    [job, *_] = used.hand_in(WAITING, *MIXED)
    zombie = claim_of(cluster, job)
    loss.strike(zombie.agent)
    let_go(zombie)
    successor = claim_of(cluster, job, after=zombie.number)
    report(capsys, used, loss, zombie)
    assert set(refusals(cluster, zombie)) == {(409, "stale_claim")}
    loss.heal(zombie.agent)
    eventually(lambda: zombie.container not in containers(zombie.agent), what="its removal", seconds=90)
    assert successor.agent.name != zombie.agent.name
    let_end(cluster, job)
    used.check()


def containers(agent: AgentMachine) -> list[str]:
    return agent.engine.docker("ps", "-aq", "--no-trunc").split()


def report(capsys: pytest.CaptureFixture[str], used: Used, loss: Loss, zombie: Claim) -> None:
    """How long it took is said; what is asserted is not a matter of time."""
    seconds = lost_after(used.cluster.system, zombie)
    with capsys.disabled():
        sys.stdout.write(
            f"\n  agent {loss.name}: queued again {seconds:.1f} s after its last heartbeat (lease {LEASE:g} s)\n"
        )


def test_replicas_are_killed_one_after_the_other_and_a_stream_goes_on(used: Used) -> None:
    """Somebody follows a job by the one address: every byte once, its exit code; nobody loses a job."""
    cluster = used.cluster
    project = WAITING.project(cluster.system.root / "projects")
    [*others] = used.hand_in(*MIXED)
    with cluster.system.spawn_ci(cluster.front, "submit", "test", project=project) as ci:
        [job] = eventually(lambda: used.found(WAITING), what="the job of `ci`", seconds=60)
        claim = claim_of(cluster, job)
        for replica, other in zip(cluster.replicas, reversed(cluster.replicas), strict=True):
            replica.running.kill()
            used.hand_in(PASSING, server=other)
            replica.start()
            cluster.wait_ready()
        let_go(claim)
        let_end(cluster, job)
        out, err = ci.communicate(timeout=120)
    assert ci.returncode == 0, err.decode()
    assert out == cluster.system.log(cluster.front, job.job_id), err.decode()
    until_ended(cluster.system, *(one.job_id for one in others))
    used.check()


def test_the_controller_is_killed_and_agents_go_on_without_one(used: Used) -> None:
    """Claims are the servers' to give; who is lost meanwhile is noticed by the successor, who counts anew."""
    cluster = used.cluster
    [held, *_] = used.hand_in(WAITING)
    zombie = claim_of(cluster, held)
    for controller in cluster.controllers:
        kill(controller)
    zombie.agent.host.cut_off()
    alone = used.hand_in(*MIXED)
    until_ended(cluster.system, *(job.job_id for job in alone), seconds=180)
    assert cluster.system.job(cluster.front, held.job_id)["attempt"] == zombie.number
    for controller in cluster.controllers:
        controller.start()
    assert claim_of(cluster, held, after=zombie.number).agent.name != zombie.agent.name
    let_end(cluster, held)
    used.check()


@pytest.mark.parametrize("hard", [False, True], ids=["stopped", "crashed"])
def test_postgresql_is_started_again_in_the_middle(used: Used, hard: bool) -> None:
    """Jobs run, wait and are on their way while it is away; every process comes back to it by itself."""
    cluster = used.cluster
    [running, *_] = used.hand_in(WAITING, *MIXED)
    claim_of(cluster, running)
    cluster.database.stop(hard=hard)
    cluster.database.start()
    used.hand_in(*MIXED)
    let_end(cluster, running)
    used.check()
    assert [one.name for one in cluster.machines if not one.running.running] == []


def test_everything_is_killed_at_once(used: Used) -> None:
    """As after a power cut of the whole room: all of it comes back, and every job still has its one verdict."""
    cluster = used.cluster
    [running, *_] = used.hand_in(WAITING, *MIXED)
    claim_of(cluster, running)
    for machine in cluster.machines:
        machine.running.process.send_signal(signal.SIGKILL)
    cluster.database.stop(hard=True)
    cluster.database.start()
    cluster.mend()
    let_end(cluster, running)
    used.check()
