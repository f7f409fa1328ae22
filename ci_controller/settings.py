"""The settings of `ci-controller`: environment variables that begin with `CI_`, overridden by flags."""

import re
from datetime import timedelta
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from ci_common.settings import ServiceSettings
from ci_controller.policy import DEFAULTS, RECONCILE_INTERVAL, Network, Policy

_SIZES: Final = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_DURATIONS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(value: Any) -> Any:
    """Return bytes for `2GiB`, `512m` or a plain number; everything else is left to the field's own check."""
    found = re.fullmatch(r"([\d.]+)\s*(?:([kmgt])(?:i?b)?|b)?", str(value).strip().lower())
    return int(float(found[1]) * _SIZES[found[2] or ""]) if found else value


def parse_duration(value: Any) -> Any:
    """Return a duration for `30m`, `1.5h` or a plain number of seconds."""
    found = re.fullmatch(r"([\d.]+)\s*([smhd]?)", str(value).strip().lower())
    return timedelta(seconds=float(found[1]) * _DURATIONS[found[2]]) if found else value


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Duration = Annotated[timedelta, BeforeValidator(parse_duration), Field(gt=timedelta(0))]


class ControllerSettings(ServiceSettings):
    """What an operator can decide about the controller, the jobs and their containers."""

    reconcile_interval: float = Field(
        default=RECONCILE_INTERVAL,
        gt=0,
        description="Seconds between two passes at most; a safety net, changes are seen at once.",
    )
    container_prefix: str = Field(
        default=DEFAULTS.container_prefix,
        pattern=r"^([a-zA-Z0-9][a-zA-Z0-9_.-]*)?$",
        description="In front of every container's name, for people; containers are told apart by their labels.",
    )
    max_running_jobs: int = Field(
        default_factory=lambda: DEFAULTS.max_running_jobs,
        gt=0,
        description="Jobs that run at the same time; by default one per core.",
    )
    max_attempts: int = Field(
        default=DEFAULTS.max_attempts,
        gt=0,
        description="How often infrastructure may lose a job whose tests had begun before it is given up.",
    )
    job_timeout: Duration = Field(
        default=DEFAULTS.job_timeout,
        description="How long a job may run when its submitter names no time-out.",
    )
    job_idle_timeout: Duration = Field(
        default=DEFAULTS.job_idle_timeout, description="How long a job may run without writing anything."
    )
    queue_timeout: Duration = Field(
        default=DEFAULTS.queue_timeout,
        description="How long a job may wait in the queue before it fails.",
    )
    job_memory: Size = Field(
        default=DEFAULTS.memory_bytes, description="Memory of a job, swap included; bytes or `2GiB`."
    )
    job_cpus: float = Field(default=DEFAULTS.cpus, gt=0, description="CPU cores a job may use.")
    job_pids: int = Field(default=DEFAULTS.pids, gt=0, description="Processes and threads a job may have.")
    log_limit: Size = Field(
        default=DEFAULTS.log_limit,
        description="Bytes of output after which a job is stopped; bytes or `100MiB`.",
    )
    job_network: Network = Field(
        default=DEFAULTS.network,
        description="`internet`: connections to the outside (jobs cannot reach each other; the host and its LAN are not"
        " fenced off); `none`: no network at all, so the image must bring what tests need.",
    )
    runner_image: str = Field(default=DEFAULTS.runner_image, description="The image that jobs run in.")

    @property
    def policy(self) -> Policy:
        """The same decisions as the core wants them."""
        return Policy(
            runner_image=self.runner_image,
            container_prefix=self.container_prefix,
            network=self.job_network,
            memory_bytes=self.job_memory,
            cpus=self.job_cpus,
            pids=self.job_pids,
            log_limit=self.log_limit,
            max_running_jobs=self.max_running_jobs,
            max_attempts=self.max_attempts,
            job_timeout=self.job_timeout,
            job_idle_timeout=self.job_idle_timeout,
            queue_timeout=self.queue_timeout,
        )
