"""What `ci-admin queue …` says to people. JSON beside it comes from the same fields."""

from collections.abc import Mapping
from typing import Any

from ci_admin.render import NOTHING, table

_OPEN = ("queued", "claimed", "running")


def queue_stats(document: Mapping[str, Any]) -> str:
    """Return the statistics of `stats_document`: what is there now, then what ended."""
    oldest = f"The oldest queued job was submitted {_seconds(document['oldest_queued_seconds'])} ago."
    return "\n\n".join([_depths(document), oldest, _outcomes(document)])


def _depths(document: Mapping[str, Any]) -> str:
    parts = [("all", document)]
    parts += [(f"pool {name}", depth) for name, depth in document["by_pool"].items()]
    parts += [(f"priority {name}", depth) for name, depth in document["by_priority"].items()]
    return table(
        ("NOW", *(word.upper() for word in _OPEN)),
        [(name, *(str(depth[word]) for word in _OPEN)) for name, depth in parts],
    )


def _outcomes(document: Mapping[str, Any]) -> str:
    endings = ("completed", "failed", "cancelled", "dead_lettered")
    rows = [
        *((word, str(document[word])) for word in endings),
        ("average wait", _seconds(document["avg_wait_seconds"])),
        ("95 % waited at most", _seconds(document["p95_wait_seconds"])),
        ("average run", _seconds(document["avg_execution_seconds"])),
        ("95 % ran at most", _seconds(document["p95_execution_seconds"])),
        ("without a verdict", _percent(document["failure_rate"])),
        ("lost by infrastructure", _percent(document["infra_failure_rate"])),
        ("tests failed", _percent(document["tests_failed_rate"])),
    ]
    return table((f"LAST {document['window_seconds']} s", "VALUE"), rows)


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f} s"


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.1%}"
