"""What tests ask the real engine, through the `docker` command: independent of the code under test."""

import os
import subprocess
from collections.abc import Callable

from ci_controller.labels import INSTANCE

RUNNER_IMAGE = os.environ.get("CI_RUNNER_IMAGE", "ci-runner:latest")


def docker(*args: str, check: bool = True) -> str:
    """Return what `docker ARGS` prints."""
    done = subprocess.run(["docker", *args], capture_output=True, text=True, check=False, timeout=120)
    assert not check or done.returncode == 0, f"docker {args}: {done.stderr}"
    return done.stdout.strip()


def require_engine() -> None:
    """The engine answers and has the runner image; a test that needs them fails otherwise, never skips."""
    assert docker("version", "--format", "{{.Server.Version}}", check=False), (
        "no Docker engine answers: run `make runner-image` or `scripts/ensure-docker.sh`"
    )
    assert docker("image", "inspect", "--format", "{{.Id}}", RUNNER_IMAGE, check=False), (
        f"the image {RUNNER_IMAGE} is missing: run `make runner-image`"
    )


def containers_of(instance_id: str, ask: Callable[..., str] = docker) -> list[str]:
    """Return the ids of all containers of one installation, running or not, as an engine lists them."""
    return ask("ps", "-aq", "--no-trunc", "--filter", f"label={INSTANCE}={instance_id}").split()
