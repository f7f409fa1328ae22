"""What the operator decided about jobs and containers, as plain values: the numbers planner and executor go by."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from ci_common.log_limits import DEFAULT_LOG_LIMIT
from ci_common.models import MAX_ATTEMPTS, Job
from ci_controller.image_retention import DEFAULT_IMAGE_LIMITS, ImageLimits
from ci_controller.retention import DEFAULT_RETENTION, Retention

Network = Literal["internet", "none"]

RECONCILE_INTERVAL: Final = 2.0  # seconds between two passes at most


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits and choices of one installation; the settings fill it, tests make their own."""

    runner_image: str = "ci-runner:latest"
    container_prefix: str = ""
    network: Network = "internet"  # of the tests; installing has the guarded one either way
    memory_bytes: int = 2 * 1024**3
    cpus: float = 2.0
    pids: int = 512
    disk_bytes: int = 4 * 1024**3
    disk_min_free: int = 1024**3  # below it nothing is claimed, below half of it jobs are stopped
    disk_min_free_inodes: float = 2.0  # the same, in percent of all inodes
    docker_root: str | None = None  # None: what the engine says
    log_patience: timedelta = timedelta(
        seconds=60
    )  # with a disk that does not take the log of an ended container
    # With an engine that tells nothing more of a container's output, and does not end it either.
    output_patience: timedelta = timedelta(seconds=10)
    log_limit: int = DEFAULT_LOG_LIMIT
    max_running_jobs: int = os.cpu_count() or 1
    max_attempts: int = MAX_ATTEMPTS  # of those whose tests began
    job_timeout: timedelta = timedelta(minutes=30)
    job_idle_timeout: timedelta = timedelta(minutes=10)
    queue_timeout: timedelta = timedelta(hours=24)
    # The harness passes a SIGINT on, then sends SIGTERM, then SIGKILL; we are the second line.
    interrupt_grace: timedelta = timedelta(seconds=10)
    terminate_grace: timedelta = timedelta(seconds=5)
    slack: timedelta = timedelta(seconds=10)  # for the harness to say its last word after that
    isolation_patience: timedelta = timedelta(seconds=60)  # the harness's with the network; off its deadline
    stuck_after: timedelta = timedelta(seconds=60)  # who outlives its SIGKILL by that is given up
    orphan_grace: timedelta = timedelta(seconds=60)
    max_backoff: timedelta = timedelta(seconds=60)
    retention: Retention = DEFAULT_RETENTION
    environments: ImageLimits = DEFAULT_IMAGE_LIMITS
    warm_containers: int = 2  # that wait ahead of need, at most
    warm_age: timedelta = timedelta(minutes=10)  # who waited that long goes

    @property
    def stop_grace(self) -> timedelta:
        """How long a job has to end after a SIGINT, until the harness kills it."""
        return self.interrupt_grace + self.terminate_grace

    @property
    def deadline_grace(self) -> timedelta:
        """How long a job may outlive its time-out by our clock, which runs on while the harness's waits."""
        waited = self.isolation_patience if self.network == "none" else timedelta(0)
        return self.stop_grace + self.slack + waited

    def timeout_of(self, job: Job) -> timedelta:
        """Return how long the job may run: what its submitter asked for (the server judged that), or our default."""
        asked = job.options.timeout_seconds
        return self.job_timeout if asked is None else timedelta(seconds=asked)

    def backoff_after(self, attempt: int) -> timedelta:
        """Return how long a job waits after losing that attempt: nothing at first, then 1, 2, 4 … seconds."""
        if attempt <= 1:
            return timedelta(0)
        return min(timedelta(seconds=2 ** min(attempt - 2, 16)), self.max_backoff)


DEFAULTS: Final = Policy()
