"""What was acknowledged to whom by a database, and when: acts with the interval between their call and their answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ci_common.job_terms import JobStatus
from ci_common.models import Fence

CONTROLLER = "controller"  # who holds what no agent does


class What(StrEnum):
    """What was asked of the database."""

    SUBMIT = "submit"
    CLAIM = "claim"  # one act for each attempt that was given
    LOOK = "look"  # likewise for each that is held: its token is learnt
    START = "start"
    BEGIN = "begin"
    STOP = "stop"
    FINISH = "finish"
    RELEASE = "release"
    EXPIRE = "expire"  # one act for each job that a lost agent gave back
    OUTWAIT = "outwait"  # one act for each job that waited too long
    CANCEL = "cancel"
    REGISTER = "register"  # an agent, or a controller that takes over
    BEAT = "beat"
    DRAIN = "drain"
    RESUME = "resume"
    REMOVE = "remove"
    LEAVE = "leave"
    REQUEUE = "requeue"  # of a dead-lettered job


FENCED = (What.START, What.BEGIN, What.STOP, What.FINISH, What.RELEASE)


@dataclass(frozen=True, slots=True)
class Act:
    """One answered call, or its part about one attempt. `began` and `ended` are places in the order of all."""

    what: What
    began: int
    ended: int
    holder: str = ""  # an agent's id, or CONTROLLER
    job: str = ""
    fence: Fence | None = None
    accepted: bool = True
    status: JobStatus | None = None  # what became of the job, where the answer says so
    word: int | None = (
        None  # of a FINISH or RELEASE what it alone wrote; of a REGISTER, BEAT or CLAIM the epoch
    )
    at: float = 0.0  # monotonic seconds
    by_operator: bool = False

    def __str__(self) -> str:
        what = f"{self.what} of {self.job or self.holder} [{self.began}, {self.ended}]"
        return f"{what} by {self.holder}" if self.job and self.holder else what

    def after(self, other: "Act") -> bool:
        """Tell whether this one was called only when the other one had been answered."""
        return self.began > other.ended

    def may_precede(self, other: "Act") -> bool:
        """Tell whether this one can have come first."""
        return not self.after(other)


@dataclass(frozen=True, slots=True)
class Ended:
    """What the database says of a job when all is over."""

    status: JobStatus
    attempt: int
    word: int | None  # of the write that its verdict came by
    events: Sequence[str]  # the types of its timeline


@dataclass(frozen=True, slots=True)
class History:
    """All that was acknowledged, and what stands in the end."""

    acts: Sequence[Act]
    ended: Mapping[str, Ended]
    max_attempts: Mapping[str, int]
    slots: Mapping[str, int]  # by holder
    lease: float = 30.0  # seconds

    def of(self, *whats: What, accepted: bool = True) -> list[Act]:
        """Return the acts of those kinds."""
        return [act for act in self.acts if act.what in whats and act.accepted is accepted]
