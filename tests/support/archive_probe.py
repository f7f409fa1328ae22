"""`python -m tests.support.archive_probe judge|stream ZIP SECONDS`: one archive in a process of its own.

It is judged as the server does it, or judged and made a tar as the controller does it, in so many seconds of CPU.
Writes as JSON the rule that it breaks (or null), how many files it has, and what that cost.
"""

import collections
import json
import re
import resource
import sys
import time
from pathlib import Path

from ci_common.errors import InvalidArchive
from ci_common.settings import StorageSettings
from ci_controller.archive_tar import tar_stream
from ci_persistence.archive_rules import ArchiveLimits
from ci_persistence.archive_validator import open_archive


def _run(mode: str, path: Path, limits: ArchiveLimits) -> dict[str, object]:
    try:
        with open_archive(path, limits) as archive:
            if mode == "judge":
                archive.verify()
            else:
                collections.deque(tar_stream(archive), maxlen=0)
            return {"rule": None, "files": len(archive.entries)}
    except InvalidArchive as error:
        return {"rule": error.extra["rule"]}


def _peak_memory() -> int:
    """In bytes, of this program alone: `ru_maxrss` would begin with that of the process that forked it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def main() -> None:
    mode, path, seconds = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    settings = StorageSettings.model_construct()
    limits = ArchiveLimits(
        settings.archive_max_entries, settings.archive_max_ratio, settings.archive_max_bytes
    )
    done = _run(mode, Path(path), limits)
    sys.stdout.write(json.dumps({**done, "memory": _peak_memory(), "cpu": time.process_time()}))


if __name__ == "__main__":
    main()
