"""When something last happened to each of many things, as long as that matters."""

import math


class RecentTimes:
    """The latest time under each key. What is older than `seconds` is forgotten: this is as large as what is in use."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._times: dict[str, float] = {}  # the earliest first, but for what was noted side by side

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._times)

    def note(self, key: str, at: float) -> None:
        """It happened then."""
        self._times.pop(key, None)
        self._times[key] = at
        while self._times[earliest := next(iter(self._times))] < at - self._seconds:
            del self._times[earliest]

    def of(self, key: str) -> float:
        """Return when it last happened, long ago when that is not known."""
        return self._times.get(key, -math.inf)
