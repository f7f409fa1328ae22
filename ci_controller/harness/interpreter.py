"""The Python that dependencies go into and pytest runs from. It is never the one that runs us: its files may be the
job's own."""

# ruff: noqa: PTH108, PTH110, PTH113, PTH118, PTH120, PTH208 - pathlib is a tenth of a second of imports

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys

from ci_controller.harness.signals import Signals


class Python:
    """The image's own environment where packages can be added to it, else a fresh one."""

    def __init__(self, program: str, packages: str, home: str) -> None:
        self.program = program
        self.packages = packages
        self.home = home

    @classmethod
    def of_image(cls) -> Python:
        """Return the first on PATH, if its packages can be added to; else an environment over the one we run in."""
        home = os.environ.get("HOME", "")
        home = home if os.access(home, os.W_OK) else "/tmp"  # noqa: S108 - the container's own
        for program in (shutil.which("python3") or "", os.path.join(home, ".ci-venv", "bin", "python")):
            packages = _packages_of(program)
            if packages is not None:
                return cls(program, packages, home)
        return cls(*_new_environment(home), home)

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        """Return the environment of whatever is run with it."""
        found = {**os.environ, "HOME": self.home, **variables}
        directory = os.path.dirname(self.program)
        found["PATH"] = directory + os.pathsep + os.environ.get("PATH", os.defpath)
        if os.path.exists(os.path.join(os.path.dirname(directory), "pyvenv.cfg")):
            found["VIRTUAL_ENV"] = os.path.dirname(directory)  # where `uv sync --active` goes
        return found

    def add_file(self, name: str, text: str) -> None:
        """A new file of ours stands among the packages: whatever had its name, a link or a pipe, is not written to."""
        self.remove_file(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(self._path(name), flags, 0o644), "w", encoding="utf-8") as file:
            file.write(text)

    def remove_file(self, name: str) -> None:
        """There is no such file among the packages."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def has_file(self, name: str) -> bool:
        """Tell whether there is such a file among the packages."""
        return os.path.isfile(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self.packages, name)


def _packages_of(program: str) -> str | None:
    """Return where the packages of an interpreter are, None where there is no such place or we may not write to it."""
    libraries = os.path.join(os.path.dirname(os.path.dirname(program)), "lib")
    names: list[str] = []
    if program and os.path.isfile(program):
        with contextlib.suppress(OSError):  # a build may have closed it
            names = os.listdir(libraries)
    ours = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in sorted(names, key=lambda name: (name != ours, name)):
        packages = os.path.join(libraries, name, "site-packages")
        if name.startswith("python3.") and os.access(packages, os.W_OK):
            return packages
    return None


def _new_environment(home: str) -> tuple[str, str]:
    place = os.path.join(home, ".ci-venv")
    if os.path.lexists(place):  # whatever a build left there: nothing of it runs before it is the job's time
        place += os.urandom(8).hex()
    subprocess.run(
        [sys.executable, "-I", "-m", "venv", "--system-site-packages", place],
        check=True,
        env={**os.environ, "PYTHONNOUSERSITE": "1"},
        cwd="/",  # nothing of the tree's may be imported here: it is before `begun`, and on our own stream
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=Signals.unblock,
    )
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return os.path.join(place, "bin", "python"), os.path.join(place, "lib", version, "site-packages")
