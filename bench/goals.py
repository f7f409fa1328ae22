"""What the numbers are to be, on two cores, each in one run with what it is compared with. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A bound for a ratio to the floor, or for a percentile of the samples themselves."""

    limit: float
    of_ratio: bool = False
    percentile: float = 50
    at_least: bool = False

    def is_met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        what = "ratio" if self.of_ratio else f"p{self.percentile:g}"
        return f"{what} {'>=' if self.at_least else '<='} {self.limit:g}"


GOALS: Mapping[str, tuple[Goal, ...]] = {
    "warm/docker-run": (Goal(0.5, of_ratio=True),),
    "warm/pytest": (Goal(1.25, of_ratio=True),),
    "cold/docker-run-pip": (Goal(0.6, of_ratio=True),),
    "medium/docker-run-pip-cache": (Goal(0.1, of_ratio=True),),
    "first-line": (Goal(100), Goal(200, percentile=95)),
    "claimed": (Goal(10),),
    "complete": (Goal(50),),
    "printed": (Goal(2), Goal(15, percentile=99)),
    "viewers/age": (Goal(100, percentile=99),),
    "viewers/memory": (Goal(60),),
    "drain": (Goal(1.3, of_ratio=True, at_least=True),),
    "big-tree/queued": (Goal(1000),),
    "big-tree/sent": (Goal(100),),
    "peers/buildbot": (Goal(0.12, of_ratio=True),),
    "peers/gitlab-ci-local": (Goal(0.12, of_ratio=True),),
    "api/list": (Goal(1000, at_least=True),),
    "api/submit": (Goal(300, at_least=True),),
    "idle/memory": (Goal(150),),
    "idle/cpu": (Goal(1),),
}
