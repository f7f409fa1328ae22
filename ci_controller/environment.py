"""What of a project's installation can be kept as an image and used again: a pure decision about the upload's files.

An environment is made from the few files that decide the dependencies, before the tree is there. Everything else
stays with the job: installing the project itself, and whatever is about a local path. Only a beginning of the plan
goes into the environment: from the first step on that needs the tree, all of them stay with the job, in their order.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from ci_common.stores import Archive
from ci_controller.install_plan import InstallPlan, InstallStep
from ci_controller.requirement_files import deciding_files

FORMAT: Final = 1  # of the key: rises when the same files make another environment
PYTEST: Final = InstallStep(
    "pytest", ("pip", "install", "pytest"), ("install", "pytest")
)  # idle where it is there

_FILE_LIMIT: Final = 8 * 1024 * 1024  # bytes; a lock file of 1000 packages has some 2 MiB
_IN_ALL: Final = 16 * 1024 * 1024
# Lock files are written by programs: what they write for a local package is known.
_LOCAL_IN_LOCK: Final[Mapping[str, re.Pattern[bytes]]] = {
    "pylock.toml": re.compile(rb"""(?<![\w-])["']?(?:path|directory)["']?\s*[=.\]]"""),
    "poetry.lock": re.compile(rb"""(?<![\w-])type\s*=\s*["'](?:directory|file)["']"""),
}


@dataclass(frozen=True, slots=True)
class Environment:
    """The steps that an image holds (none: there is no such image), and those that each job takes itself."""

    key: str  # hex; who has the same key may use the same image
    dependency_files: tuple[str, ...]  # all of the tree that the steps of the image may see
    steps: tuple[InstallStep, ...]
    project_steps: tuple[InstallStep, ...]  # with the tree in place


def environment_for(archive: Archive, plan: InstallPlan, *, runner_image_id: str, owner: str) -> Environment:
    """Return how a plan is divided for an upload of that user's; reads the files that decide it."""
    divided = _Division(_Reader(archive))
    divided.obey(plan.settings)
    for step in plan.steps:
        divided.add(step)
    if not divided.is_closed:
        # Last: what else is installed in the image then decides which pytest goes with it.
        divided.steps.append(PYTEST)
    files = dict(sorted(divided.files.items())) if divided.steps else {}
    key = _key(runner_image_id, owner, divided.steps, plan.environment, files)
    return Environment(key, tuple(files), tuple(divided.steps), tuple(divided.project_steps))


class _Division:
    """The two halves of a plan, as they grow step by step."""

    def __init__(self, reader: "_Reader") -> None:
        self._reader = reader
        self.steps: list[InstallStep] = []
        self.project_steps: list[InstallStep] = []
        self.files: dict[str, bytes] = {}
        self.is_closed = False  # a step needed the tree: all that follow come after it

    def obey(self, settings: tuple[str, ...] | None) -> None:
        """Those files decide what every step does; None: more of the tree than that."""
        files = None if settings is None else self._reader.deciding(settings)
        self.is_closed = files is None
        self.files |= files or {}

    def add(self, step: InstallStep) -> None:
        """The step is done in the one half, in the other, or partly in each."""
        ahead = step.ahead
        files = None if ahead is None or self.is_closed else self._reader.deciding(ahead.files)
        if ahead is None or files is None:
            self.is_closed = True
            self.project_steps.append(step)
            return
        if ahead.step is not None:
            self.steps.append(ahead.step)
            self.files |= files
        if self.project_steps:
            self.project_steps.append(step)  # again, behind what may have changed its result
        elif ahead.rest is not None:
            self.project_steps.append(ahead.rest)


class _Reader:
    """The small files of an archive."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._entries = {entry.path: entry for entry in archive.entries}
        self._left = _IN_ALL

    def deciding(self, names: Iterable[str]) -> dict[str, bytes] | None:
        """Return those files with what they include; None where the tree is needed beyond them."""
        found: dict[str, bytes] = {}
        for name in names:
            files = self._one(name) if _is_metadata(name) else deciding_files(name, self._read)
            if files is None:
                return None
            found |= files
        return found

    def _one(self, name: str) -> dict[str, bytes] | None:
        content = self._read(name)
        local = _LOCAL_IN_LOCK.get(name)
        return None if content is None or (local and local.search(content)) else {name: content}

    def _read(self, path: str) -> bytes | None:
        entry = self._entries.get(path)
        if entry is None or entry.size > min(_FILE_LIMIT, self._left):
            return None
        self._left -= entry.size
        with self._archive.open(entry) as reader:
            return reader.read()


def _is_metadata(name: str) -> bool:
    return PurePosixPath(name).suffix in {".toml", ".lock"} or name.startswith(".python-version")


def _key(
    runner_image_id: str,
    owner: str,
    steps: Iterable[InstallStep],
    environment: Mapping[str, str],
    files: Mapping[str, bytes],
) -> str:
    """Return the SHA-256 of all that decides what an image holds and who may use it."""
    variables = [word for pair in sorted(environment.items()) for word in pair]
    parts = [
        [str(FORMAT), runner_image_id, owner],
        *([*step.uv, "", *step.pip] for step in steps),
        variables,
        *([path, content] for path, content in files.items()),
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))
        for word in part:
            data = word.encode() if isinstance(word, str) else word
            digest.update(len(data).to_bytes(8) + data)
    return digest.hexdigest()
