"""How much pytest may be told: one bound for every way a job is made, since listings show it again and again."""

import json
from collections.abc import Sequence
from typing import Final

from ci_common.errors import InvalidRequest

MOST_ARGUMENT_BYTES: Final = 32 * 1024  # as stored; what else a job's options hold is a few numbers and names


def require_short(arguments: Sequence[str]) -> None:
    """The arguments are no longer than a job's may be, as the JSON that is stored; raises InvalidRequest."""
    size = len(json.dumps(arguments))  # a control character is one byte of a form, and six of these
    if size > MOST_ARGUMENT_BYTES:
        raise InvalidRequest(
            f"The arguments for pytest take {size} bytes as JSON, more than the {MOST_ARGUMENT_BYTES} that a job may "
            "have: name directories instead of many tests, or put them into the project (addopts in its pytest "
            "configuration)."
        )
