"""What git says of a work tree: lists of names. Asks without running any program that the tree itself names.

Whoever wrote a tree wrote its `.git/config` too, and `ci submit test --dry-run` is how a careful person looks at
one. So what that file can make `git ls-files` execute is off; git's own refusals (`safe.directory`) stay.
"""

import contextlib
import os
import subprocess
from pathlib import Path

# The monitor of the file system may be any program; gits before 2.36 take this for the name of a harmless one.
_SETTINGS = ("-c", "core.fsmonitor=false")

# Set inside git's hooks; they would make git look at another tree than the one we are asked for.
_GIT_LOCAL = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
)
_GIT_OURS = {
    "LC_ALL": "C",
    "GIT_OPTIONAL_LOCKS": "0",
    # A partial clone fetches what it lacks, by programs of its configuration; older gits know the second only.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
}


class GitFailed(Exception):
    """Git does not answer; the text says why."""


def ls_files(directory: Path, *queries: tuple[str, ...]) -> list[list[str]]:
    """Return the names that `git ls-files` lists for each query (its options), all asked at once."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_start(directory, query)) for query in queries]
        answers = [(process, *process.communicate()) for process in running]
    return [_names(process.returncode, output, errors) for process, output, errors in answers]


def _start(directory: Path, query: tuple[str, ...]) -> subprocess.Popen[bytes]:
    if os.name == "nt":  # where a program in the current folder, which is the project, comes before the PATH
        os.environ["NODEFAULTCURRENTDIRECTORYINEXEPATH"] = "1"
    environ = {name: value for name, value in os.environ.items() if name not in _GIT_LOCAL}
    try:
        return subprocess.Popen(
            ["git", "-C", str(directory), *_SETTINGS, "ls-files", "-z", *query],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environ, **_GIT_OURS},
        )
    except OSError as error:
        raise GitFailed("git cannot be started") from error


def _names(exit_code: int, output: bytes, errors: bytes) -> list[str]:
    if exit_code != 0:
        raise GitFailed(_reason(os.fsdecode(errors).strip().splitlines() or [f"exit {exit_code}"]))
    return [name for name in os.fsdecode(output).split("\0") if name]


def _reason(lines: list[str]) -> str:
    """Return what git said in one line; of a tree that it mistrusts, with the way out."""
    for line in lines:
        if "safe.directory" in line:
            return f"it belongs to somebody else; if you trust it: {line.strip()}"
    return lines[0]
