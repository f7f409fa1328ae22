"""How our containers and images are named and labelled; whose a container is says a row, never a label.

A label cannot change, an image made of a container inherits it, and a container is there before its job.
"""

import secrets
from collections.abc import Mapping
from typing import Final

INSTANCE: Final = "ci.instance"  # the installation's id from the database: the scope of everything we touch
KIND: Final = "ci.kind"
EPOCH: Final = "ci.epoch"  # of the controller that made it, for forensics only
UID: Final = "ci.uid"  # the user it runs as, which no other container on the engine is given

ENVIRONMENT: Final = "ci.environment"  # of an environment image: its key
OWNER: Final = "ci.owner"  # the user whose jobs alone may start from it
BASE: Final = "ci.base"  # the id of the runner image that it was made on

KIND_RUN: Final = "run"  # runs at most one attempt
KIND_PROBE: Final = "probe"
KIND_GUARD: Final = "guard"  # sets packet filter rules, and is gone
KIND_ENVIRONMENT: Final = "environment"  # an image: what a job's dependencies were installed in

_WAITING: Final = "waiting-"
_NONCE_BYTES: Final = 6


def waiting_name(prefix: str) -> str:
    """Return a name for a container that waits for its job; no two are the same."""
    return f"{prefix}{_WAITING}{secrets.token_hex(_NONCE_BYTES)}"


def is_waiting_name(prefix: str, name: str) -> bool:
    """Tell whether the container of that name was never fed: it gets its job's name before."""
    return name.startswith(f"{prefix}{_WAITING}")


def job_name(prefix: str, job_id: str, attempt: int) -> str:
    """Return the name of the container that an attempt was assigned."""
    return f"{prefix}job-{job_id}-{attempt}"


def run_labels(instance_id: str, epoch: int) -> dict[str, str]:
    """Return the labels of a container that waits for an attempt or runs one."""
    return {INSTANCE: instance_id, KIND: KIND_RUN, EPOCH: str(epoch)}


def environment_reference(instance_id: str, key: str) -> str:
    """Return the one name that the image of an environment has."""
    return f"ci-environment-{instance_id[:12]}:{key[:32]}"


def environment_labels(instance_id: str, key: str, owner: str, base: str) -> Mapping[str, str]:
    """Return all the labels of an environment image: nothing about the job that made it."""
    return {INSTANCE: instance_id, KIND: KIND_ENVIRONMENT, ENVIRONMENT: key, OWNER: owner, BASE: base}
