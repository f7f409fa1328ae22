"""The runner image, seen to before anything starts: built where this is a source checkout, else explained."""

import asyncio
import subprocess
from pathlib import Path

import click

from ci_common.errors import CIError, EngineUnavailable
from ci_controller.container_manager import ContainerManager
from ci_controller.settings import ControllerSettings

_SOURCES = Path(__file__).resolve().parent.parent
_BUILD_SCRIPT = _SOURCES / "runner" / "build.sh"
_ENSURE_DOCKER = _SOURCES / "scripts" / "ensure-docker.sh"


def ensure_runner_image(image: str) -> None:
    """The engine answers and has the image that jobs run in; raises EngineUnavailable with the way out."""
    if asyncio.run(_has_image(image)):
        return
    if image != ControllerSettings.model_fields["runner_image"].default or not _BUILD_SCRIPT.exists():
        raise EngineUnavailable(
            f"The runner image {image} is not on this Docker engine. Build it with `make runner-image` in the "
            "source checkout, or name one that is there with CI_RUNNER_IMAGE."
        )
    click.echo("The runner image is missing; building it (once, about a minute).")
    code = subprocess.run([_BUILD_SCRIPT], check=False).returncode
    if code != 0:
        raise CIError(f"{_BUILD_SCRIPT} failed with exit code {code}; what it said is above.")


async def _has_image(image: str) -> bool:
    manager = ContainerManager()
    try:
        await manager.ping()
        return await manager.image_id(image) is not None
    except EngineUnavailable as error:
        how = f" `{_ENSURE_DOCKER}` sees to one." if _ENSURE_DOCKER.exists() else ""
        raise EngineUnavailable(f"{error.detail}{how}") from error
    finally:
        await manager.close()
