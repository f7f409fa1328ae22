"""What goes wrong in a simulated world: a function of the seed, of what happens to whom and of how often before.

Not one sequence of random numbers: the order in which two threads ask would then change everything after it.
"""

import random
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

Fault = Literal[
    "refused",
    "reply lost",
    "slow",
    "hidden",
    "listing fails",
    "output cut",
    "output late",
    "event lost",
    "event doubled",
]

RATES: Final[Mapping[Fault, float]] = MappingProxyType(
    {
        "refused": 0.04,
        "reply lost": 0.08,
        "slow": 0.05,
        "hidden": 0.03,
        "listing fails": 0.04,
        "output cut": 0.10,
        "output late": 0.06,
        "event lost": 0.20,
        "event doubled": 0.20,
    }
)


class Faults:
    """Decides what goes wrong; nothing does once `on` is False."""

    def __init__(self, seed: int, rates: Mapping[Fault, float] = RATES) -> None:
        self.on = True
        self._seed = seed
        self._rates = rates
        self._asked: Counter[tuple[Fault, str]] = Counter()

    def strikes(self, fault: Fault, whom: str) -> bool:
        """Tell whether it happens this time."""
        self._asked[fault, whom] += 1
        chance = random.Random(f"{self._seed}/{fault}/{whom}/{self._asked[fault, whom]}").random()
        return self.on and chance < self._rates[fault]

    def copies(self, whom: str) -> int:
        """Return how many times an event about that arrives."""
        if self.strikes("event lost", whom):
            return 0
        return 2 if self.strikes("event doubled", whom) else 1
