"""JSON of strangers: three bytes can become an object of a hundred, so values are counted before they are made."""

import json
from typing import Any


def loads_bounded(data: bytes, most_values: int) -> Any:
    """Return what the document says; raises ValueError for none, and for one with many more values than that."""
    # Too many, if strings hold such characters, and never too few.
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if values > most_values:
        raise ValueError(f"it has more than {most_values} values")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
