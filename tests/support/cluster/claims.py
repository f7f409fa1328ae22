"""What a test does to a job that an agent holds: find it, let it end, and write as the one who has lost it."""

from dataclasses import dataclass
from datetime import datetime

import httpx

from tests.support.cluster.cluster import AgentMachine, Cluster
from tests.support.cluster.workload import Handed
from tests.support.eventually import eventually
from tests.support.installation import Installation

_RUNNING = """
SELECT agents.name, agents.id, agents.epoch, attempts.number, attempts.token, attempts.container_id
FROM attempts JOIN agents ON agents.id = attempts.agent_id
WHERE attempts.job_id = ? AND attempts.begun_at IS NOT NULL AND attempts.ended_at IS NULL
"""
_PATIENCE = 120  # seconds: in which a job is lost, queued again and started elsewhere, on a busy machine


@dataclass(frozen=True)
class Claim:
    """An attempt in which the tests run, as its agent knows it."""

    agent: AgentMachine
    job_id: str
    number: int
    container: str
    agent_id: str
    epoch: int
    token: str


def claim_of(cluster: Cluster, job: Handed, *, after: int = 0) -> Claim:
    """Return the job's attempt in which its tests run, once there is one after that number."""
    return eventually(
        lambda: _found(cluster, job, after), seconds=_PATIENCE, what=f"tests of attempt {after + 1} or later"
    )


def _found(cluster: Cluster, job: Handed, after: int) -> Claim | None:
    for name, agent_id, epoch, number, token, container in cluster.system.query(_RUNNING, job.job_id):
        if number > after:
            return Claim(cluster.agent(name), job.job_id, number, container, agent_id, epoch, token)
    return None


def let_end(cluster: Cluster, *jobs: Handed) -> None:
    """The jobs that wait for a file have it and have ended, whatever their agents lose meanwhile."""
    for job in jobs:
        eventually(lambda one=job: _ended_or_told(cluster, one), seconds=_PATIENCE, what=f"the end of {job}")


def _ended_or_told(cluster: Cluster, job: Handed) -> bool:
    [(end,)] = cluster.system.query("SELECT end_time FROM jobs WHERE id = ?", job.job_id)
    if end is None and (claim := _found(cluster, job, 0)):
        let_go(claim)
    return end is not None


def let_go(claim: Claim) -> None:
    """The container has what its tests wait for, if it is still there."""
    claim.agent.engine.docker("exec", claim.container, "touch", "/tmp/enough", check=False)


def refusals(cluster: Cluster, claim: Claim) -> list[tuple[int, str]]:
    """Return what each replica answers to that claim's holder: status and code for a log, a verdict and a release."""
    key = cluster.system.keys[f"agent {claim.agent.name}"]
    known = {"Agent-Epoch": str(claim.epoch), "Claim-Token": claim.token, "Authorization": f"Bearer {key}"}
    answers: list[httpx.Response] = []
    for replica in cluster.replicas:
        with httpx.Client(base_url=replica.url, headers=known, timeout=60, trust_env=False) as http:
            path = f"/api/queue/jobs/{claim.job_id}"
            place = {"Content-Range": "bytes 0-5/*"}
            answers += [
                http.put(f"{path}/log", content=b"zombie", headers=place),
                http.patch(f"{path}/complete", json={"reason": None, "exit_code": 0}),
                http.patch(f"{path}/release", json={"reason": "infra", "message": "It was me."}),
            ]
    return [(answer.status_code, answer.json()["code"]) for answer in answers]


def lost_after(system: Installation, claim: Claim) -> float:
    """Return the seconds from the lost agent's last heartbeat to when its job was queued again."""
    [(beat,)] = system.query("SELECT last_heartbeat FROM agents WHERE id = ?", claim.agent_id)
    lost = "SELECT ended_at FROM attempts WHERE job_id = ? AND reason = 'agent_lost' AND token = ?"
    [(ended,)] = system.query(lost, claim.job_id, claim.token)
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(beat)).total_seconds()
