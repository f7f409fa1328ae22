"""A small cluster in which an agent is cut off past its lease: the case of every day.

The other faults, one after another in a larger cluster, are in `test_cluster_faults.py`.
"""

import pytest

from tests.cluster.conftest import Used
from tests.support.cluster.claims import claim_of, let_end, let_go, refusals
from tests.support.cluster.cluster import Layout
from tests.support.cluster.workload import FAILING, PASSING, TALKING, WAITING
from tests.support.eventually import eventually

pytestmark = [pytest.mark.docker, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def layout() -> Layout:
    # A busy machine may lose an agent that nobody cut off: that costs an attempt, and must not cost the job.
    return Layout(agents=2, lease=8, max_attempts=10)


def test_what_an_agent_held_that_is_cut_off_runs_elsewhere_and_the_zombie_writes_nothing(used: Used) -> None:
    """It even ended its job meanwhile: its verdict and its log come too late, and its container goes."""
    cluster = used.cluster
    [job, *_] = used.hand_in(WAITING, TALKING, PASSING, FAILING)
    zombie = claim_of(cluster, job)
    zombie.agent.host.cut_off()
    let_go(zombie)
    successor = claim_of(cluster, job, after=zombie.number)
    assert set(refusals(cluster, zombie)) == {(409, "stale_claim")}
    zombie.agent.host.join()
    gone = zombie.agent.engine
    eventually(
        lambda: zombie.container not in gone.docker("ps", "-aq", "--no-trunc"), what="its removal", seconds=90
    )
    assert successor.agent.name != zombie.agent.name
    let_end(cluster, job)
    used.check()
