"""Whether a ratio is worse than the committed one beyond what chance explains. Pure.

The rule: the median ratio is worse by more than `TOLERANCE`, and the spreads of both (quartile against quartile, see
`Row.ratio_spread`) have nothing in common.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TOLERANCE = 1.3


@dataclass(frozen=True)
class Ratio:
    """A median ratio and its spread; less is better unless said otherwise."""

    median: float
    low: float
    high: float
    more_is_better: bool = False

    def is_worse_than(self, committed: "Ratio") -> bool:
        """Tell whether it is, by the rule."""
        if self.more_is_better:
            return self.median * TOLERANCE < committed.median and self.high < committed.low
        return self.median > committed.median * TOLERANCE and self.low > committed.high

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"


@dataclass(frozen=True)
class Finding:
    """What became of one ratio; either side may be unknown."""

    key: str
    now: Ratio | None
    committed: Ratio | None

    @property
    def is_regression(self) -> bool:
        return self.now is not None and self.committed is not None and self.now.is_worse_than(self.committed)

    def __str__(self) -> str:
        if self.now is None:
            return f"{self.key}: not measured, committed {self.committed}"
        if self.committed is None:
            return f"{self.key}: {self.now}, none is committed"
        return (
            f"{self.key}: {self.now}, committed {self.committed}{' REGRESSION' if self.is_regression else ''}"
        )


def ratios_in(rows: Iterable[Mapping[str, Any]]) -> dict[str, Ratio]:
    """Return the ratios of a result's rows, by key."""
    return {
        row["key"]: Ratio(row["ratio"], *row["ratio_spread"], more_is_better=row["more_is_better"])
        for row in rows
        if row["key"] and row["ratio"] is not None
    }


def compare(now: Mapping[str, Ratio], committed: Mapping[str, Ratio]) -> list[Finding]:
    """Return a finding for each key of either, in order."""
    return [Finding(key, now.get(key), committed.get(key)) for key in sorted(now.keys() | committed.keys())]
