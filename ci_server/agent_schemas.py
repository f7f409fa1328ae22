"""What agents send and are answered: for OpenAPI, and requests are checked by it. `ci_server.agents` makes answers."""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ci_common.job_terms import DEFAULT_POOL, POOL_NAME

_NO_NUL: Final = r"^[^\x00]*$"  # PostgreSQL holds none: the same is refused whatever the database
_Text = Annotated[str, StringConstraints(max_length=1000, pattern=_NO_NUL)]
_Id = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$")]
_Pool = Annotated[str, StringConstraints(pattern=f"^{POOL_NAME}$")]
_Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:=/-]{1,100}$")]
_Bytes = Annotated[int, Field(ge=0, le=2**62)]


MOST_CONTAINERS: Final = 500  # that are asked after at once; an agent with more asks again


class _Request(BaseModel):
    """What is not said has its default; members of later releases are skipped."""

    model_config = ConfigDict(strict=True, frozen=True)


class ProfileRequest(_Request):
    """What an agent says of itself."""

    name: _Name
    pool: _Pool = DEFAULT_POOL
    slots: Annotated[int, Field(ge=1, le=1_000)] = 1
    labels: Annotated[list[_Label], Field(max_length=50)] = []
    version: Annotated[str, StringConstraints(max_length=100, pattern=_NO_NUL)] = ""


class HeartbeatRequest(_Request):
    """How the agent is."""

    note: _Text | None = None
    disk_free: _Bytes | None = None


class StatusRequest(_Request):
    """What an operator decided."""

    status: Literal["active", "draining", "removed"]


class ScaleRequest(_Request):
    """How many jobs of a pool may be claimed or running at the same time; null: any number."""

    max_running: Annotated[int, Field(ge=1, le=1_000_000)] | None


class ContainersRequest(_Request):
    """Containers whose attempts may have ended."""

    containers: Annotated[list[_Id], Field(max_length=MOST_CONTAINERS)]


class ClaimRequest(_Request):
    """How many jobs, and for how long to wait for one."""

    slots: Annotated[int, Field(ge=1, le=1_000)] = 1
    wait: Annotated[float, Field(ge=0, le=30)] = 0.0


class StartRequest(_Request):
    """In which container the attempt runs."""

    container_id: _Id
    image_id: _Id
    image_cached: bool | None = None


class StopRequest(_Request):
    """Why the attempt is to end."""

    reason: _Id
    message: _Text | None = None


class SealRequest(_Request):
    """The log that was sent: its size and the SHA-256 of its bytes; nothing where it could not be kept."""

    log_size: _Bytes | None = None
    log_sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    log_truncated: bool = False


class CompleteRequest(SealRequest):
    """How the job ended; without a reason: it passed."""

    reason: _Id | None
    exit_code: Annotated[int, Field(ge=-(2**31), le=2**31)] | None = None
    message: _Text | None = None


class ReleaseRequest(SealRequest):
    """Why the attempt ended without a verdict, and after how many seconds the next one may begin."""

    reason: _Id
    message: _Text
    wait: Annotated[float, Field(ge=0, le=86_400)] = 0.0


class AgentModel(BaseModel):
    """An agent. Fields are only ever added."""

    model_config = ConfigDict(title="Agent")

    agent_id: str
    name: str
    pool: str
    labels: list[str]
    slots: int
    version: str
    status: Literal["HEALTHY", "DEGRADED", "LOST", "DRAINING", "REMOVED"]
    note: str | None = Field(description="Its own word on what is wrong.")
    registered_at: datetime
    last_heartbeat: datetime
    disk_free: int | None = Field(description="Bytes, where its containers write.")
    jobs_running: int
    jobs_completed: int


class RegisteredModel(BaseModel):
    """The right to act as the agent."""

    model_config = ConfigDict(title="Registered")

    agent_id: str
    epoch: int = Field(description="Goes with every request as `Agent-Epoch`; to register again ends it.")
    lease_seconds: float = Field(description="What it holds is lost after so long without a heartbeat.")


class InstructionsModel(BaseModel):
    """What the agent is to do."""

    model_config = ConfigDict(title="Instructions")

    state: Literal["active", "draining", "removed"]
    cancel: list[str] = Field(description="Jobs that it holds and that are to end.")


class PoolModel(BaseModel):
    """The agents of one name, together."""

    model_config = ConfigDict(title="Pool")

    pool: str
    agents: int
    healthy: int
    slots: int = Field(description="Of those that are healthy.")
    jobs_running: int
    labels: list[str]
    max_running: int | None = Field(
        description="How many of its jobs may be claimed or running at the same time; null: any number."
    )


class StopModel(BaseModel):
    """Why and when it was decided to end the attempt."""

    model_config = ConfigDict(title="Stop")

    reason: str
    at: datetime
    message: str | None


class AttemptModel(BaseModel):
    """A job as the agent that holds it sees it."""

    model_config = ConfigDict(title="Attempt")

    id: str = Field(description="The job's.")
    attempt: int
    claim_token: str = Field(description="Goes with whatever is said of it as `Claim-Token`.")
    claimed_lease_expires_at: datetime = Field(description="Unless a heartbeat comes before.")
    status: str
    owner: str = Field(description="Whose it is; of one owner's jobs what they install may be shared.")
    created_at: datetime
    pytest_args: list[str]
    timeout: float | None
    fresh: bool
    priority: str
    pool: str
    cancel_requested_at: datetime | None
    cancel_requested_by: str | None
    claimed_at: datetime
    container_id: str | None
    image_id: str | None
    started_at: datetime | None
    begun_at: datetime | None
    stop: StopModel | None


class ClaimedModel(BaseModel):
    """What was claimed."""

    model_config = ConfigDict(title="Claimed")

    job: AttemptModel = Field(description="The first of them.")
    jobs: list[AttemptModel]


class HeldModel(BaseModel):
    """What the agent holds, and what it could claim."""

    model_config = ConfigDict(title="Held")

    now: datetime = Field(description="The server's clock: times are to be read by it.")
    attempts: list[AttemptModel]
    claimable: int


class NewsModel(BaseModel):
    """A word that is another one when there is something to do."""

    model_config = ConfigDict(title="News")

    news: str


class EndedAttemptModel(BaseModel):
    """Which attempt it was."""

    model_config = ConfigDict(title="EndedAttempt")

    job_id: str
    attempt: int


class EndedModel(BaseModel):
    """Those of the containers whose attempt has ended."""

    model_config = ConfigDict(title="Ended")

    ended: dict[str, EndedAttemptModel]


class ImageUseModel(BaseModel):
    """When the agent last started a job from an image."""

    model_config = ConfigDict(title="ImageUse")

    last_at: datetime
    is_open: bool


class ImagesModel(BaseModel):
    """The images that the agent started jobs from."""

    model_config = ConfigDict(title="Images")

    images: dict[str, ImageUseModel]


class ReleasedModel(BaseModel):
    """What became of the job."""

    model_config = ConfigDict(title="Released")

    status: str


class LogSizeModel(BaseModel):
    """How much of the log is here."""

    model_config = ConfigDict(title="LogSize")

    size: int


class RequeuedModel(BaseModel):
    """The jobs that are queued again, or were given up."""

    model_config = ConfigDict(title="Requeued")

    requeued: list[str]
