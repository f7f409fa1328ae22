"""How much memory this host can still give, as its kernel estimates."""

import re
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def available_memory(source: Path = _MEMINFO) -> int | None:
    """Return bytes that programs could get without swapping, None where the kernel does not say."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", source.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
