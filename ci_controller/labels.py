"""How our containers are named and labelled; the labels alone tell which attempt a container is."""

from collections.abc import Mapping
from typing import Final

INSTANCE: Final = "ci.instance"  # the installation's id from the database: the scope of everything we touch
JOB: Final = "ci.job"
ATTEMPT: Final = "ci.attempt"
KIND: Final = "ci.kind"
EPOCH: Final = "ci.epoch"  # of the controller that made it, for forensics only
UID: Final = "ci.uid"  # the user it runs as, which no other container on the engine is given

KIND_RUN: Final = "run"
KIND_PROBE: Final = "probe"
KIND_GUARD: Final = "guard"  # sets packet filter rules, and is gone


def container_name(prefix: str, job_id: str, attempt: int) -> str:
    """Return the one name the container of that attempt can have, so that a replayed create collides."""
    return f"{prefix}job-{job_id}-{attempt}"


def run_labels(instance_id: str, job_id: str, attempt: int, epoch: int) -> dict[str, str]:
    """Return the labels of the container that runs an attempt."""
    return {
        INSTANCE: instance_id,
        KIND: KIND_RUN,
        JOB: job_id,
        ATTEMPT: str(attempt),
        EPOCH: str(epoch),
    }


def are_ours(wanted: Mapping[str, str], found: Mapping[str, str]) -> bool:
    """Tell whether a container with the labels `found` is the one meant by `wanted`, whichever epoch made it."""
    return all(found.get(key) == value for key, value in wanted.items() if key != EPOCH)
