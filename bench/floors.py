"""What people would type instead: `docker run` in its variants, and pytest and tox in a virtual environment."""

import io
import os
import subprocess
import sys
import tarfile
from functools import cached_property
from pathlib import Path

from tests.support.docker_cli import RUNNER_IMAGE, docker

SECONDS = 600  # that anything may take
UNPACK = "mkdir -p /tmp/tree && cd /tmp/tree && tar -x && "
PYTEST = "python -m pytest -q"
PIP = "python -m pip install -q -r requirements.txt && "


def packed(project: Path) -> bytes:
    """Return the project as a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(project.iterdir()):
            if path.is_file():
                tar.add(path, path.name)
    return buffer.getvalue()


class Containers:
    """`docker run` of the runner image, or of one with pytest in it; what it makes has its name and goes with it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._images: list[str] = []
        self._volumes: list[str] = []

    @cached_property
    def prepared(self) -> str:
        """The image with pytest installed, byte code and all."""
        return self._build("prepared", "uv pip install --no-cache --compile-bytecode pytest")

    @cached_property
    def cache(self) -> str:
        """An empty volume for pip's downloads, which the image's user may write to."""
        volume = f"{self._name}-cache"
        docker("volume", "create", volume)
        self._volumes.append(volume)
        mount = ["-v", f"{volume}:/cache", "--user", "0", RUNNER_IMAGE]
        docker("run", "--rm", "--label", self._name, *mount, "chmod", "777", "/cache")
        return volume

    def run(self, image: str, tree: bytes, script: str, *options: str) -> None:
        """A fresh container unpacked the tree and ran the script in it, and is gone."""
        subprocess.run(
            self.command(image, script, *options),
            input=tree,
            check=True,
            capture_output=True,
            timeout=SECONDS,
        )

    def command(self, image: str, script: str, *options: str) -> list[str]:
        """Return the command that does; the tree comes on its standard input."""
        shell = ["sh", "-ec", UNPACK + script]
        return ["docker", "run", "--rm", "-i", "--label", self._name, *options, image, *shell]

    def run_prepared(self, tree: bytes) -> None:
        self.run(self.prepared, tree, PYTEST)

    def run_with_pip(self, tree: bytes) -> None:
        self.run(RUNNER_IMAGE, tree, PIP + PYTEST, "-e", "PIP_NO_CACHE_DIR=1")

    def run_with_pip_cache(self, tree: bytes) -> None:
        cached = ("-v", f"{self.cache}:/cache", "-e", "PIP_CACHE_DIR=/cache")
        self.run(RUNNER_IMAGE, tree, PIP + PYTEST, *cached)

    def remove(self) -> None:
        """Containers, images and volumes are gone."""
        for container in docker("ps", "-aq", "--filter", f"label={self._name}", check=False).split():
            docker("rm", "-f", container, check=False)
        for image in self._images:
            docker("rmi", "-f", image, check=False)
        for volume in self._volumes:
            docker("volume", "rm", "-f", volume, check=False)

    def _build(self, tag: str, install: str) -> str:
        image = f"{self._name}:{tag}"
        recipe = f"FROM {RUNNER_IMAGE}\nRUN {install}\n"
        build = ["docker", "build", "--quiet", "--force-rm", "--tag", image, "-"]
        subprocess.run(build, input=recipe.encode(), check=True, capture_output=True, timeout=SECONDS)
        self._images.append(image)
        return image


class Virtual:
    """A virtual environment outside of any container."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @cached_property
    def python(self) -> Path:
        """The interpreter of one with pytest."""
        subprocess.run([sys.executable, "-m", "venv", self._root], check=True, timeout=SECONDS)
        self.install("pytest")
        return self._root / "bin" / "python"

    @cached_property
    def tox(self) -> Path:
        """The command, installed beside pytest."""
        assert self.python
        self.install("tox")
        return self._root / "bin" / "tox"

    def install(self, *requirements: str) -> None:
        pip = [self._root / "bin" / "python", "-m", "pip", "install", "-q", *requirements]
        subprocess.run(pip, check=True, capture_output=True, timeout=SECONDS)

    def run_pytest(self, project: Path) -> None:
        self._run([str(self.python), "-m", "pytest", "-q"], project)

    def run_tox(self, project: Path) -> None:
        """`tox -r`: everything is installed anew."""
        config = project / "tox.ini"
        if not config.exists():
            config.write_text(
                "[tox]\nskipsdist = true\nenvlist = py\n[testenv]\ndeps = -r requirements.txt\n"
                "commands = python -m pytest -q\n"
            )
        self._run([str(self.tox), "-r", "-q"], project)

    @staticmethod
    def _run(command: list[str], project: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        subprocess.run(command, cwd=project, env=inherited, check=True, capture_output=True, timeout=SECONDS)
