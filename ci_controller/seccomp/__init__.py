"""The system calls a job may make: our own list (docs/adr/0010-seccomp-profile.md), whatever engine it meets."""

import functools
import json
from importlib import resources


@functools.cache
def profile() -> str:
    """Return the profile as the engine wants it: compact JSON, without the comments."""
    document = json.loads(resources.files(__name__).joinpath("profile.json").read_text("utf-8"))
    del document["comment"]
    for rule in document["syscalls"]:
        del rule["comment"]
    return json.dumps(document, separators=(",", ":"))
