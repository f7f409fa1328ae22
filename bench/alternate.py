"""Measuring several things by turns, so that what the machine does meanwhile falls on all of them."""

import time
from collections.abc import Callable, Mapping


def milliseconds(action: Callable[[], object]) -> float:
    """Return how long the action took."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def alternating(
    actions: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    before: Callable[[], object] = lambda: None,
    clock: Callable[[Callable[[], object]], float] = milliseconds,
) -> dict[str, tuple[float, ...]]:
    """Return the samples of each action: all are done once unmeasured, then in every round, each in turn the first.

    What is to be done `before` each is not measured.
    """
    for action in actions.values():
        action()
    names = list(actions)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            before()
            samples[name].append(clock(actions[name]))
    return {name: tuple(found) for name, found in samples.items()}
