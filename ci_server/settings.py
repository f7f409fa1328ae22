"""Settings of the server; environment variables begin with `CI_`, and docs/operations.md lists them all."""

from pydantic import Field

from ci_common.log_limits import DEFAULT_LOG_LIMIT, most_log_bytes
from ci_common.settings import ServiceSettings, Size

MIB = 1024**2


class ServerSettings(ServiceSettings):
    """What one replica needs to know; replicas of one installation should agree on all of it."""

    max_upload_bytes: int = Field(
        default=512 * MIB, gt=0, description="Largest archive that is accepted, in bytes."
    )
    max_blob_bytes_per_user: int = Field(
        default=20 * 1024 * MIB,
        gt=0,
        description="Bytes the stored contents of one user's files may take before no more are accepted; "
        "zip archives still are.",
    )
    upload_read_timeout: float = Field(
        default=30.0, gt=0, description="Seconds an upload may stand still before it is given up."
    )
    upload_timeout: float = Field(
        default=900.0, gt=0, description="Seconds a whole upload may take before it is given up."
    )
    upload_min_rate: int = Field(
        default=1024,
        ge=0,
        description="Bytes per second an upload must reach on average, after half a minute; 0: any.",
    )
    header_timeout: float = Field(
        default=10.0,
        gt=0,
        description="Seconds in which the head of a request must arrive (only where `ci-server` serves).",
    )
    max_connections: int = Field(
        default=2_500, gt=0, description="Connections one process holds (only where `ci-server` serves)."
    )
    max_connections_per_address: int = Field(
        default=500,
        gt=0,
        description="Connections one client address (of IPv6: one /64) may have at one process; "
        "trusted proxies may have all.",
    )
    trusted_proxies: str = Field(
        default="",
        description="Addresses of reverse proxies, separated by commas: `ci-server` believes their `X-Forwarded-For`.",
    )
    max_requests_per_key: int = Field(
        default=1_200, ge=0, description="Requests per minute of one key at one process; 0: any number."
    )
    max_submissions_per_key: int = Field(
        default=120, ge=0, description="Submissions per minute of one key at one process; 0: any number."
    )
    max_requests_per_agent: int = Field(
        default=5_000,
        ge=0,
        description="Requests per minute of one agent about what it runs at one process, and as many more that bring "
        "pieces of logs; 0: any number. Neither holds up the other, and heartbeats and claims are never held up.",
    )
    max_requests_per_address: int = Field(
        default=6_000,
        ge=0,
        description="Requests per minute from one address (of IPv6: one /64) at one process; 0: any number.",
    )
    max_failed_keys_per_address: int = Field(
        default=20,
        ge=0,
        description="Wrong keys per minute from one address; more are not even looked up. 0: any number.",
    )
    max_queued_per_user: int = Field(default=1_000, gt=0, description="Jobs one user may have in the queue.")
    max_queued: int = Field(default=10_000, gt=0, description="Jobs the queue holds in all.")
    max_job_timeout: float = Field(
        default=86_400.0, gt=0, description="Longest time-out a submitter may ask for, in seconds."
    )
    max_streams_per_user: int = Field(
        default=100, gt=0, description="Streams one user may have open at one replica process."
    )
    stream_ping_interval: float = Field(
        default=15.0,
        gt=0,
        description="Seconds between two pings on a stream; the key is checked again as often.",
    )
    stream_send_timeout: float = Field(
        default=30.0, gt=0, description="Seconds after which a reader that takes nothing loses its stream."
    )
    log_limit: Size = Field(
        default=DEFAULT_LOG_LIMIT,
        description="Bytes of output after which a job is stopped, as the controller and the agents have it.",
    )
    max_agent_log_bytes: Size | None = Field(
        default=None,
        description="Bytes of log that an agent may send of one attempt; by default what a job may write that the "
        "controller runs: a little more than `CI_LOG_LIMIT`.",
    )
    min_free_bytes: int = Field(
        default=1024 * MIB,
        ge=0,
        description="Free space on the disks of data and database below which /ready says degraded.",
    )
    submit_min_free_bytes: int = Field(
        default=256 * MIB,
        ge=0,
        description="Free space beside an upload, on the disks of data and database, below which no job is accepted.",
    )

    @property
    def agent_log_bytes(self) -> int:
        """Bytes of log that are taken of one attempt: an agent has no more room than a job here would have."""
        return self.max_agent_log_bytes or most_log_bytes(self.log_limit)


def trusted_proxies(settings: ServerSettings) -> frozenset[str]:
    """Return the addresses of the reverse proxies whose word is taken for who the client is."""
    return frozenset(address.strip() for address in settings.trusted_proxies.split(",") if address.strip())
