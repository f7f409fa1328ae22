"""How long the log of an attempt may be, for whoever runs it and for whoever stores it."""

from typing import Final

DEFAULT_LOG_LIMIT: Final = 100 * 1024**2  # bytes of output, after which a job is stopped
LOG_SLACK: Final = 1024**2  # the harness enforces the limit, and needs room to say so
_MARKS: Final = 64 * 1024  # what we write into a log of which something is missing


def most_log_bytes(log_limit: int) -> int:
    """Return how long the log of a job with that limit becomes, whatever the job does."""
    return log_limit + LOG_SLACK + _MARKS
