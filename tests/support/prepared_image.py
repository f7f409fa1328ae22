"""The runner image with pytest in it, so that not every job of the suite fetches and compiles the same packages.

What concerns installing names `RUNNER_IMAGE` itself.
"""

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from tests.support.docker_cli import RUNNER_IMAGE, docker

_REPOSITORY: Final = "ci-runner-tests"
_BASE: Final = "ci-runner-tests.base"  # label: the id of the image it was made of
# With that umask a job, whose user is another one of the group, can install over it.
_INSTALL: Final = "umask 002 && uv pip install --no-cache --compile-bytecode"


@cache
def prepared_image(*packages: str) -> str:
    """Return the name of the prepared image, with these packages beside pytest.

    The first worker that asks makes it, and later runs find it.
    """
    base = docker("image", "inspect", "--format", "{{.Id}}", RUNNER_IMAGE)
    name = f"{_REPOSITORY}:{'-'.join((base.removeprefix('sha256:')[:12], *packages))}"
    with _lock():
        if not docker("image", "inspect", "--format", "{{.Id}}", name, check=False):
            _remove_outdated()
            _build(name, base, packages)
    return name


def _build(name: str, base: str, packages: tuple[str, ...]) -> None:
    dockerfile = f"FROM {RUNNER_IMAGE}\nRUN {_INSTALL} {' '.join(('pytest', *packages))}\n"
    command = ["docker", "build", "--quiet", "--label", f"{_BASE}={base}", "--tag", name, "-"]
    done = subprocess.run(command, input=dockerfile, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the runner image could not be prepared: {done.stdout}{done.stderr}"


def _remove_outdated() -> None:
    """No prepared image is left of a runner image that nothing names any more."""
    for name in docker("images", "--format", "{{.Repository}}:{{.Tag}}", _REPOSITORY).split():
        base = docker("image", "inspect", "--format", f'{{{{index .Config.Labels "{_BASE}"}}}}', name)
        if docker("image", "inspect", "--format", "{{.RepoTags}}", base, check=False) in ("", "[]"):
            docker("rmi", name, check=False)  # refused while a container of it runs


@contextmanager
def _lock() -> Generator[None]:
    """No other worker prepares the image meanwhile."""
    path = Path(tempfile.gettempdir()) / f"{_REPOSITORY}-{os.getuid()}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
