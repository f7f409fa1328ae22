"""Settings of the server; environment variables begin with `CI_`, and docs/operations.md lists them all."""

from pydantic import Field

from ci_common.settings import ServiceSettings

MIB = 1024**2


class ServerSettings(ServiceSettings):
    """What one replica needs to know; replicas of one installation should agree on all of it."""

    max_upload_bytes: int = Field(
        default=512 * MIB, gt=0, description="Largest archive that is accepted, in bytes."
    )
    upload_read_timeout: float = Field(
        default=30.0, gt=0, description="Seconds an upload may stand still before it is given up."
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
    min_free_bytes: int = Field(
        default=1024 * MIB, ge=0, description="Free space on the data disk below which /ready says degraded."
    )
