"""Which image an attempt's container is made from, and who builds the environment where there is none yet.

An environment is built by the first job that needs it, on its way. Others of this controller that need the same wait
meanwhile, without a container: `waiting()` says which. Nothing here has to survive: a successor asks the engine anew.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import structlog

from ci_common.clock import Clock
from ci_common.crash_points import crash_point
from ci_common.errors import EngineUnavailable
from ci_common.models import Attempt
from ci_controller import labels
from ci_controller.container_runtime import ContainerError, ContainerGone, ContainerRuntime, NewImage
from ci_controller.environment import Environment
from ci_controller.image_pruner import kept_images, prune_images
from ci_controller.image_retention import Base, ExpendableImage, ImageLimits, KeptImage, is_usable
from ci_controller.job_source import JobSource
from ci_controller.lease import Lease
from ci_controller.operations import AttemptKey, key_of, log_fields

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Plain:
    """A container of the runner image, in which everything is installed and nothing of it kept."""

    image_id: str
    cached: None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A container of an environment that an earlier job built."""

    image_id: str
    environment: Environment
    built_at: datetime
    cached: Literal[True] = True


@dataclass(frozen=True, slots=True)
class Built:
    """A container of the runner image, in which an environment is built, which is then kept."""

    image_id: str
    environment: Environment
    cached: Literal[False] = False


Choice = Plain | Kept | Built


class Environments:
    """The environment images of one installation, and those that are being built here."""

    def __init__(
        self,
        jobs: JobSource,
        runtime: ContainerRuntime,
        limits: ImageLimits,
        runner_image: str,
        clock: Clock,
        lease: Lease,
        wake: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._runtime = runtime
        self._limits = limits
        self._runner_image = runner_image
        self._clock = clock
        self._lease = lease
        self._wake = wake
        self._builders: dict[str, AttemptKey] = {}  # by the key of the environment
        self._waiting: dict[AttemptKey, str] = {}  # for the environment of that key

    def waiting(self) -> frozenset[AttemptKey]:
        """Return the attempts that wait for an environment that another one builds."""
        return frozenset(key for key, wanted in self._waiting.items() if wanted in self._builders)

    def waited(self) -> frozenset[AttemptKey]:
        """Return those that have waited, and may go on."""
        return frozenset(self._waiting) - self.waiting()

    async def choose(self, attempt: Attempt, environment: Environment, runner: str) -> Choice | None:
        """Return what the attempt's container is made from, None while somebody else builds its environment.

        Who is to build one says `done` when it is kept, or will not be.
        """
        self._waiting.pop(key_of(attempt), None)
        if not environment.steps:
            return Plain(runner)
        kept = None if attempt.job.options.fresh else await self._usable(environment, attempt, runner)
        if kept:
            return Kept(kept.id, environment, kept.created_at)
        builder = self._builders.setdefault(environment.key, key_of(attempt))
        if builder == key_of(attempt):
            return Built(runner, environment)
        self._waiting[key_of(attempt)] = environment.key
        log.info("waits for its environment", **log_fields(attempt), builder=str(builder))
        return None

    async def keep(self, attempt: Attempt, built: Built, container_id: str) -> str | None:
        """The environment that stands in the container is an image, whose id is returned, if the engine makes one:
        no job fails for it."""
        self._lease.require()
        try:
            image_id = await self._commit(attempt, built, container_id)
        except (ContainerError, ContainerGone, EngineUnavailable) as error:
            log.warning("environment not kept", **log_fields(attempt), error=str(error))
            return None
        log.info("environment kept", **log_fields(attempt), image=image_id)
        return image_id

    def done(self, attempt: Attempt) -> None:
        """The attempt builds nothing (any more), and who waited for it may go on."""
        others = {key: one for key, one in self._builders.items() if one != key_of(attempt)}
        if others != self._builders:
            self._builders = others
            self._wake()

    def keep_to(self, attempts: Collection[Attempt]) -> None:
        """Of these, which are all that are open, some may wait; no others do."""
        keys = {key_of(attempt) for attempt in attempts}
        self._waiting = {key: wanted for key, wanted in self._waiting.items() if key in keys}

    async def prune(self, *, under_pressure: bool = False) -> list[ExpendableImage]:
        """The images that are not to be kept are gone, but for those that a container needs; returns them.

        `under_pressure` none is to be kept. Without a runner image nothing can be judged, and nothing goes.
        """
        runner = await self._runtime.image_id(self._runner_image)
        if runner is None:
            return []
        base = Base(runner, await self._runtime.image_size(runner))
        limits = self._limits.under_pressure() if under_pressure else self._limits
        uses = await self._jobs.image_uses()
        now = self._clock.now()
        return await prune_images(self._runtime, self._jobs.instance_id, uses, limits, base, now)

    async def _usable(self, environment: Environment, attempt: Attempt, runner: str) -> KeptImage | None:
        """Return the image of that environment that may be used, whose labels agree with its name."""
        wanted = self._image_of(environment, attempt, runner)
        found = await self._runtime.environment_image(wanted.reference)
        if found is None or dict(found.labels) != dict(wanted.labels):
            return None
        base, now = Base(runner, 0), self._clock.now()
        return next((one for one in kept_images([found]) if is_usable(one, self._limits, base, now)), None)

    async def _commit(self, attempt: Attempt, built: Built, container_id: str) -> str:
        image = self._image_of(built.environment, attempt, built.image_id)
        older = await self._runtime.image_id(image.reference)
        image_id = await self._runtime.commit(container_id, image)
        crash_point("after_commit")
        if older is not None and older != image_id:
            await self._remove_replaced(older)
        return image_id

    async def _remove_replaced(self, image_id: str) -> None:
        try:
            await self._runtime.remove_image(image_id)
        except (ContainerError, EngineUnavailable) as error:  # it is in use: pruning comes back to it
            log.info("replaced environment not removed", image=image_id, error=str(error))

    def _image_of(self, environment: Environment, attempt: Attempt, runner: str) -> NewImage:
        instance, key = self._jobs.instance_id, environment.key
        return NewImage(
            labels.environment_reference(instance, key),
            labels.environment_labels(instance, key, attempt.job.user_id, runner),
        )
