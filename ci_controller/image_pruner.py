"""Carrying out what `image_retention` chooses. The engine has the last word: it keeps what a container is made from."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog

from ci_common.models import ImageUse
from ci_controller import labels
from ci_controller.container_runtime import ContainerError, ContainerRuntime, EnvironmentImage
from ci_controller.image_retention import Base, ExpendableImage, ImageLimits, KeptImage, expendable

_log = structlog.stdlib.get_logger("ci_controller.image_pruner")


async def prune_images(
    runtime: ContainerRuntime,
    instance_id: str,
    last_use: Mapping[str, ImageUse],
    limits: ImageLimits,
    base: Base,
    now: datetime,
) -> list[ExpendableImage]:
    """The installation's images that are not to be kept are gone, save those that a container needs; returns them."""
    images = kept_images(await runtime.environment_images(instance_id))
    gone: list[ExpendableImage] = []
    for one in expendable(images, last_use, limits, base, now):
        try:
            await runtime.remove_image(one.image.reference)
        except ContainerError as error:
            # Somebody is to run in it since we looked: the next prune asks again.
            _log.info("image_kept", reference=one.image.reference, error=str(error))
        else:
            gone.append(one)
    return gone


def kept_images(images: Sequence[EnvironmentImage]) -> list[KeptImage]:
    """Return the images as retention sees them."""
    return [
        KeptImage(
            image.id,
            image.reference,
            image.labels.get(labels.OWNER, ""),
            image.labels.get(labels.BASE, ""),
            image.size,
            image.created_at,
        )
        for image in images
    ]
