"""The shapes of answers, for OpenAPI: `ci_server.rendering` makes the documents, these models describe them."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ci_common.job_terms import JobStatus, Priority, Reason
from ci_common.models import Scope


class JobModel(BaseModel):
    """A job. Fields are only ever added: skip those you do not know."""

    model_config = ConfigDict(title="Job")

    job_id: str
    status: JobStatus = Field(description="The last four are final.")
    success: bool | None = Field(description="Whether the tests passed; null until the job is final.")
    start_time: datetime | None = Field(description="When the container of the current attempt started.")
    end_time: datetime | None
    created_at: datetime
    exit_code: int | None = Field(description="pytest's own exit code, where pytest ran to an end.")
    reason: Reason | None = Field(description="Why the job did not succeed; null on success.")
    message: str | None = Field(description="One sentence of evidence for the reason.")
    attempt: int = Field(description="Which attempt this is; 0 before the first.")
    pytest_args: list[str]
    timeout: float | None = Field(
        description="Time-out asked for, in seconds; null: the controller's default."
    )
    fresh: bool = Field(description="Whether everything was to be installed anew.")
    priority: Priority = Field(description="All queued jobs of a class come before any of the next.")
    max_attempts: int | None = Field(
        description="How often infrastructure may lose it once its tests began; null: as the controller is set."
    )
    queue_timeout: float | None = Field(
        description="Seconds that it may wait in the queue; null: as the controller is set."
    )
    pool: str = Field(description="Of the agents that may run it.")
    not_before: datetime | None = Field(description="The next attempt begins no earlier.")
    cancel_requested_at: datetime | None
    cancel_requested_by: str | None
    image_id: str | None = Field(description="The image that the current attempt's container was made from.")
    image_cached: bool | None = Field(
        description="Whether the dependencies were in it, kept from an earlier job; null where that is not known."
    )
    log_size: int | None = Field(description="Bytes of the sealed log of a finished job.")
    log_sha256: str | None = Field(description="SHA-256 of the sealed log.")
    log_truncated: bool | None = Field(
        description="Whether the sealed log may lack output: where it is known to, it says so itself; where the"
        " container ended without a last word (it crashed, or was killed) nobody knows."
    )


class JobInQueueModel(JobModel):
    """A job, and its place in the queue; null where it is not queued."""

    model_config = ConfigDict(title="JobInQueue")

    position: int | None = Field(description="How many queued jobs come before it as things stand.")
    waiting_for: str | None = Field(description="Why it waits, in one sentence for people.")
    estimated_wait_seconds: float | None = Field(description="Roughly; null where nobody knows.")


class QueuedJobModel(BaseModel):
    """A job that waits to be claimed."""

    model_config = ConfigDict(title="QueuedJob")

    job_id: str
    status: JobStatus
    priority: Priority
    pool: str
    created_at: datetime
    position: int = Field(description="How many queued jobs come before it as things stand.")
    waiting_for: str = Field(description="Why it waits, in one sentence for people.")
    estimated_wait_seconds: float | None = Field(description="Roughly; null where nobody knows.")


class DepthModel(BaseModel):
    """How many jobs stand where."""

    model_config = ConfigDict(title="Depth")

    queued: int
    claimed: int
    running: int


class QueueStatsModel(BaseModel):
    """What the queue holds, and what became of the jobs that ended in the window. Null where there were none."""

    model_config = ConfigDict(title="QueueStats")

    window_seconds: int
    queued: int = Field(description="Now, as `claimed` and `running`.")
    claimed: int
    running: int
    oldest_queued_seconds: float | None = Field(description="Since the oldest queued job was submitted.")
    completed: int = Field(description="Ended in the window, as the following three.")
    failed: int
    cancelled: int = Field(description="These count in no wait, run or rate.")
    dead_lettered: int
    avg_wait_seconds: float | None
    p95_wait_seconds: float | None = Field(description="By nearest rank.")
    avg_execution_seconds: float | None
    p95_execution_seconds: float | None
    failure_rate: float | None = Field(
        description="The share that ended without a verdict from the tests: `failed` and `dead_lettered`."
    )
    infra_failure_rate: float | None = Field(
        description="The share that infrastructure lost: `dead_lettered`."
    )
    tests_failed_rate: float | None = Field(description="The share whose tests ran to an end and failed.")
    by_pool: dict[str, DepthModel]
    by_priority: dict[str, DepthModel]


class SubmittedModel(BaseModel):
    """How to find a job again."""

    model_config = ConfigDict(title="Submitted")

    job_id: str


class EnqueuedModel(BaseModel):
    """How to find jobs again that were queued together."""

    model_config = ConfigDict(title="Enqueued")

    job_id: str = Field(description="The first one.")
    job_ids: list[str] = Field(description="All of them, in the order asked.")


class MissingModel(BaseModel):
    """What to send with `PUT /blobs`."""

    model_config = ConfigDict(title="Missing")

    missing: list[str] = Field(
        description="Those of the hashes that you have not stored, in the order asked."
    )


class StoredModel(BaseModel):
    """How much came of an upload of blobs."""

    model_config = ConfigDict(title="Stored")

    stored: int = Field(description="Blobs that you had not stored before.")


class CapacityModel(BaseModel):
    """The queue takes another job of the caller's; where it does not, the answer is a problem."""

    model_config = ConfigDict(title="Capacity")

    room: Literal[True]


class JobEventModel(BaseModel):
    """One line of a job's timeline."""

    model_config = ConfigDict(title="JobEvent")

    index: int
    type: str
    timestamp: datetime
    data: dict[str, str | int | float | bool | None]


class MomentModel(BaseModel):
    """One moment of a job's timeline."""

    model_config = ConfigDict(title="Moment")

    at: datetime
    type: str = Field(description="Skip those you do not know.")
    attempt: int | None = Field(description="Of which attempt; null where it is of the job.")
    data: dict[str, Any]


class HealthModel(BaseModel):
    """The process is alive."""

    model_config = ConfigDict(title="Health")

    status: Literal["healthy"]
    version: str


class ReadyModel(BaseModel):
    """Whether this replica can do its work."""

    model_config = ConfigDict(title="Readiness")

    status: Literal["ok", "degraded", "failing"]
    version: str
    reasons: list[str]
    checks: dict[str, dict[str, Any]]


class WhoModel(BaseModel):
    """The user a key belongs to."""

    model_config = ConfigDict(title="Who")

    user_id: str
    name: str
    email: str


class KeyModel(BaseModel):
    """The key a request was made with."""

    model_config = ConfigDict(title="Key")

    name: str
    prefix: str
    scopes: list[Scope]
    expires_at: datetime | None


class LimitsModel(BaseModel):
    """What this server takes."""

    model_config = ConfigDict(title="Limits")

    max_upload_bytes: int
    max_job_timeout: float
    max_queued_per_user: int
    max_streams_per_user: int


class InfoModel(BaseModel):
    """This server, as the caller sees it."""

    model_config = ConfigDict(title="Info")

    version: str
    user: WhoModel
    key: KeyModel
    limits: LimitsModel


class ProblemModel(BaseModel):
    """An error (RFC 9457). Match on `code`; some errors have further members."""

    model_config = ConfigDict(title="Problem", extra="allow")

    type: str = Field(examples=["urn:ci:error:job_not_found"])
    title: str = Field(examples=["Job not found"])
    status: int = Field(examples=[404])
    detail: str = Field(description="One sentence, with the way out.")
    code: str = Field(description="Stable; what programs match.", examples=["job_not_found"])
    request_id: str = Field(description="Find the request in the server's log by it.")
