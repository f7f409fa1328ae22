"""The cluster that the tests of a module share, and everything that they hand in there."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.cluster.claims import let_end
from tests.support.cluster.cluster import Cluster, Layout, cluster
from tests.support.cluster.workload import WAITING, Handed, Kind, handed_in, wrong
from tests.support.installation import Served
from tests.support.outcomes import until_ended
from tests.support.prepared_image import prepared_image
from tests.support.secrets import assert_no_secrets


@dataclass
class Used:
    """A cluster, and every job that it was given."""

    cluster: Cluster
    jobs: list[Handed] = field(default_factory=list["Handed"])

    def hand_in(self, *kinds: Kind, server: Served | None = None) -> list[Handed]:
        """The cluster has a job of each kind; returns those."""
        system, at = self.cluster.system, server or self.cluster.front
        handed = [handed_in(system, at, kind) for kind in kinds]
        self.jobs += handed
        return handed

    def found(self, kind: Kind) -> list[Handed]:
        """Return what somebody else handed in, which is of that kind; it counts like ours from now on."""
        rows = self.cluster.system.query("SELECT id FROM jobs")
        known = {job.job_id for job in self.jobs}
        new = [Handed(job_id, kind) for (job_id,) in rows if job_id not in known]
        self.jobs += new
        return new

    def check(self) -> None:
        """Every job that was ever handed in ends, or has ended, with its verdict and its log; and there is no other."""
        until_ended(self.cluster.system, *(job.job_id for job in self.jobs), seconds=180)
        assert wrong(self.cluster, self.jobs) == []
        assert self.cluster.system.query("SELECT count(*) FROM jobs") == [(len(self.jobs),)]


@pytest.fixture(scope="module")
def layout() -> Layout:
    """Return what the cluster of a module consists of; modules have their own."""
    return Layout()


@pytest.fixture(scope="module")
def shared_cluster(engine: None, layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Used]:
    """It runs; at the end every job is looked at once more, and everything ends in good order."""
    with cluster(tmp_path_factory.mktemp("cluster"), prepared_image(), layout) as made:
        made.system.key()
        used = Used(made)
        yield used
        used.check()
        made.stop()
        assert_no_secrets(made.system)


@pytest.fixture
def used(shared_cluster: Used) -> Iterator[Used]:
    """The cluster, whole at the beginning, and whole again afterwards whatever the test did to it."""
    yield shared_cluster
    shared_cluster.cluster.mend()
    let_end(shared_cluster.cluster, *(job for job in shared_cluster.jobs if job.kind is WAITING))
