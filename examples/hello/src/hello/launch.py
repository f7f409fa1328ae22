"""Count down, one number at a time."""

import time
from collections.abc import Iterator


def countdown(start: int, pause: float = 0.2) -> Iterator[int]:
    """Yield start, start - 1, … 1 with a pause after each."""
    for number in range(start, 0, -1):
        yield number
        time.sleep(pause)
