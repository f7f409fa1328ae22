"""The settings of `ci-controller`: environment variables that begin with `CI_`, overridden by flags."""

import re
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from ci_common.settings import LogSettings, ServiceSettings, Size, parse_size
from ci_controller.image_retention import ImageLimits
from ci_controller.job_network import NetworkOptions, bridge_for
from ci_controller.network_rules import Destination
from ci_controller.policy import DEFAULTS, RECONCILE_INTERVAL, Network, Policy
from ci_controller.retention import (
    DEFAULT_ARCHIVE_BYTES,
    DEFAULT_BLOB_BYTES,
    DEFAULT_BLOB_BYTES_PER_USER,
    DEFAULT_LOG_BYTES,
    Keep,
    KeepBlobs,
    Retention,
)

_DURATIONS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(value: Any) -> Any:
    """Return a duration for `30m`, `1.5h` or a plain number of seconds."""
    found = re.fullmatch(r"([\d.]+)\s*([smhd]?)", str(value).strip().lower())
    return timedelta(seconds=float(found[1]) * _DURATIONS[found[2]]) if found else value


Duration = Annotated[timedelta, BeforeValidator(parse_duration), Field(gt=timedelta(0))]
SizeOrNothing = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


def parse_addresses(value: Any) -> Any:
    """Return IPv4 addresses of `10.0.0.53, 10.0.0.54`; raises ValueError for what a job cannot reach."""
    if not isinstance(value, str):
        return value
    found = tuple(IPv4Address(one.strip()) for one in value.split(",") if one.strip())
    if any(one.is_loopback for one in found):
        raise ValueError("a loopback address is the container's own: name a server that others can reach")
    return found


def parse_destinations(value: Any) -> Any:
    """Return destinations of `10.1.2.3:443, 10.2.0.0/16`; raises ValueError."""
    if not isinstance(value, str):
        return value
    return tuple(Destination.parse(one) for one in value.split(",") if one.strip())


Addresses = Annotated[tuple[IPv4Address, ...], NoDecode, BeforeValidator(parse_addresses)]
Destinations = Annotated[tuple[Destination, ...], NoDecode, BeforeValidator(parse_destinations)]


class RunnerSettings(LogSettings):
    """What an operator can decide about jobs and their containers, wherever they run."""

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
    job_timeout: Duration = Field(
        default=DEFAULTS.job_timeout,
        description="How long a job may run when its submitter names no time-out.",
    )
    job_idle_timeout: Duration = Field(
        default=DEFAULTS.job_idle_timeout, description="How long a job may run without writing anything."
    )
    job_memory: Size = Field(
        default=DEFAULTS.memory_bytes, description="Memory of a job, swap included; bytes or `2GiB`."
    )
    job_cpus: float = Field(default=DEFAULTS.cpus, gt=0, description="CPU cores a job may use.")
    job_pids: int = Field(default=DEFAULTS.pids, gt=0, description="Processes and threads a job may have.")
    job_disk: Size = Field(
        default=DEFAULTS.disk_bytes,
        description="Bytes a job may write to its disk; a job above it is stopped. Bytes or `4GiB`.",
    )
    disk_min_free: Size = Field(
        default=DEFAULTS.disk_min_free,
        description="Free bytes on the disks of Docker, data and database below which no job starts; below half of it"
        " on Docker's, the job that wrote most is stopped, if that explains what is gone.",
    )
    disk_min_free_inodes: float = Field(
        default=DEFAULTS.disk_min_free_inodes,
        ge=0,
        lt=100,
        description="The same in percent of all inodes, where the file system counts them.",
    )
    docker_root: str | None = Field(
        default=DEFAULTS.docker_root,
        description="A directory on the disk where containers write; by default what the engine names.",
    )
    log_limit: Size = Field(
        default=DEFAULTS.log_limit,
        description="Bytes of output after which a job is stopped; bytes or `100MiB`.",
    )
    job_network: Network = Field(
        default=DEFAULTS.network,
        description="What tests reach. `internet`: the outside, but not each other, the host, or private and link-local"
        " addresses; `none`: nothing at all. Installing has the first either way.",
    )
    job_dns: Addresses = Field(
        default=(),
        description="Name servers of the jobs, by IPv4 address, comma-separated; by default the host's own.",
    )
    job_network_allow: Destinations = Field(
        default=(),
        description="Where jobs may connect although the address is private or this host's, comma-separated:"
        " `10.1.2.3:443`, `10.1.2.3`, `10.1.2.0/24`. For a package index in your own network.",
    )
    job_network_unguarded: bool = Field(
        default=False,
        description="`1`: run jobs even where the network cannot be guarded; they reach the host and its LAN then.",
    )
    job_runtime: str | None = Field(
        default=None,
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$",
        description="The engine's runtime for jobs, such as `runsc` (gVisor); by default the engine's own.",
    )
    runner_image: str = Field(default=DEFAULTS.runner_image, description="The image that jobs run in.")
    environment_bytes: SizeOrNothing = Field(
        default=DEFAULTS.environments.size,
        description="Bytes that kept environments (what jobs install) may take beyond the runner image, in all; or"
        " `10GiB`. `0`: none is kept.",
    )
    environment_bytes_per_user: SizeOrNothing = Field(
        default=DEFAULTS.environments.size_per_user,
        description="The same of one user's; the one used last stays whatever its size. `0`: none is kept.",
    )
    environment_age: Duration = Field(
        default=DEFAULTS.environments.age,
        description="How long after it was built an environment is used; then everything is installed anew.",
    )
    warm_containers: Count = Field(
        default=DEFAULTS.warm_containers,
        description="Containers that are started ahead of need, for what ran lately, at most; each holds memory."
        " `0`: every job starts its own.",
    )
    warm_age: Duration = Field(
        default=DEFAULTS.warm_age, description="How long one of them waits before another takes its place."
    )

    @property
    def environments(self) -> ImageLimits:
        """What is kept of environments, as the rules want it."""
        return ImageLimits(self.environment_bytes, self.environment_bytes_per_user, self.environment_age)

    def network_options_in(self, directory: Path) -> NetworkOptions:
        """Return what was decided about the jobs' network; the directory is for the file that it needs."""
        return NetworkOptions(
            bridge=bridge_for(self.job_dns, self.job_network_allow),
            dns=self.job_dns,
            allowed=self.job_network_allow,
            unguarded=self.job_network_unguarded,
            guard_image=self.runner_image,
            resolv_conf=directory / "resolv.conf",
        )

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
            disk_bytes=self.job_disk,
            disk_min_free=self.disk_min_free,
            disk_min_free_inodes=self.disk_min_free_inodes,
            docker_root=self.docker_root,
            log_limit=self.log_limit,
            max_running_jobs=self.max_running_jobs,
            job_timeout=self.job_timeout,
            job_idle_timeout=self.job_idle_timeout,
            environments=self.environments,
            warm_containers=self.warm_containers,
            warm_age=self.warm_age,
        )


class ControllerSettings(RunnerSettings, ServiceSettings):
    """What an operator can decide about the controller, the jobs and their containers."""

    local_runner: bool = Field(
        default=True,
        description="`0`: no job runs here, agents run them all; no Docker is needed then.",
    )
    queue_timeout: Duration = Field(
        default=DEFAULTS.queue_timeout,
        description="How long a job may wait in the queue before it fails.",
    )
    keep_archives: Duration = Field(
        default=DEFAULTS.retention.archives.age,
        description="How long the archive of a job is kept after its end.",
    )
    keep_archives_max: Count = Field(
        default=DEFAULTS.retention.archives.count, description="Archives of ended jobs that are kept at most."
    )
    keep_archives_bytes: Size = Field(
        default=DEFAULT_ARCHIVE_BYTES, description="Bytes they may take; or `20GiB`."
    )
    keep_archives_min: Count = Field(
        default=DEFAULTS.retention.archives.minimum,
        description="The newest so many stay, whatever the other three say.",
    )
    keep_logs: Duration = Field(
        default=DEFAULTS.retention.logs.age,
        description="How long the logs of a job are kept after its end; then `/log` says 410.",
    )
    keep_logs_max: Count = Field(
        default=DEFAULTS.retention.logs.count, description="Ended jobs whose logs are kept at most."
    )
    keep_logs_bytes: Size = Field(default=DEFAULT_LOG_BYTES, description="Bytes they may take; or `20GiB`.")
    keep_logs_min: Count = Field(
        default=DEFAULTS.retention.logs.minimum,
        description="The newest so many keep their logs, whatever the other three say.",
    )
    keep_jobs: Duration = Field(
        default=DEFAULTS.retention.jobs.age,
        description="How long an ended job itself is kept, and its idempotency key; then it is 404.",
    )
    keep_jobs_max: Count = Field(
        default=DEFAULTS.retention.jobs.count, description="Ended jobs that are kept at most."
    )
    keep_jobs_min: Count = Field(
        default=DEFAULTS.retention.jobs.minimum,
        description="The newest so many stay, whatever the other two say.",
    )
    keep_cancels: Duration = Field(
        default=DEFAULTS.retention.cancels.age,
        description="How long the audit trail tells of a cancel; everything else in it is kept for ever.",
    )
    keep_cancels_max: Count = Field(
        default=DEFAULTS.retention.cancels.count,
        description="Cancels of one person that the audit trail tells of at most; the oldest go.",
    )
    keep_blobs: Duration = Field(
        default=DEFAULTS.retention.blobs.age,
        description="How long contents of files are kept that no job has needed; then clients send them again.",
    )
    keep_blobs_bytes: Size = Field(
        default=DEFAULT_BLOB_BYTES, description="Bytes that contents of files may take in all; or `20GiB`."
    )
    keep_blobs_bytes_per_user: Size = Field(
        default=DEFAULT_BLOB_BYTES_PER_USER, description="The same of one user's."
    )

    @property
    def retention(self) -> Retention:
        """What is kept of ended jobs, as the rules want it."""
        return Retention(
            archives=Keep(
                self.keep_archives, self.keep_archives_max, self.keep_archives_bytes, self.keep_archives_min
            ),
            logs=Keep(self.keep_logs, self.keep_logs_max, self.keep_logs_bytes, self.keep_logs_min),
            jobs=Keep(self.keep_jobs, self.keep_jobs_max, minimum=self.keep_jobs_min),
            cancels=Keep(self.keep_cancels, self.keep_cancels_max),
            blobs=KeepBlobs(self.keep_blobs, self.keep_blobs_bytes, self.keep_blobs_bytes_per_user),
        )

    @property
    def network_options(self) -> NetworkOptions:
        """What was decided about the jobs' network."""
        return self.network_options_in(self.data_path)

    @property
    def policy(self) -> Policy:
        """The same decisions as the core wants them."""
        return replace(
            super().policy,
            max_attempts=self.max_attempts,
            queue_timeout=self.queue_timeout,
            retention=self.retention,
        )
