"""Which environment images are kept: a pure rule from a listing to what goes and why. No I/O, no clock.

An image goes when it can never be used again, when it is too old (what it holds is then installed anew), and, used
longest ago first, when a user's or all of them take too much room. One that an open attempt runs in always stays.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ci_common.models import ImageUse
from ci_controller.retention import describe

DEFAULT_BYTES: Final = 10 * 1024**3
DEFAULT_BYTES_PER_USER: Final = 5 * 1024**3
DEFAULT_AGE: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What the operator decided to keep of environments; sizes are beyond the runner image, which all share."""

    size: int = DEFAULT_BYTES
    size_per_user: int = DEFAULT_BYTES_PER_USER
    age: timedelta = DEFAULT_AGE  # since it was built
    minimum: int = 1  # so many of each user, used last, stay whatever the sizes say

    @property
    def are_off(self) -> bool:
        """Tell whether no environment is kept at all."""
        return self.size == 0 or self.size_per_user == 0

    def under_pressure(self) -> "ImageLimits":
        """Return what is kept while the engine's disk is nearly full: what runs, nothing else."""
        return ImageLimits(0, 0, self.age, 0)


DEFAULT_IMAGE_LIMITS: Final = ImageLimits()


@dataclass(frozen=True, slots=True)
class KeptImage:
    """One environment image, as retention sees it."""

    id: str
    reference: str  # its id where a newer image took its name
    owner: str  # user id
    base_id: str  # the runner image that it was made on
    size: int  # bytes, with the base
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Base:
    """The runner image of today."""

    id: str
    size: int


@dataclass(frozen=True, slots=True)
class ExpendableImage:
    """One image that goes, and why."""

    image: KeptImage
    why: str


def is_usable(image: KeptImage, limits: ImageLimits, base: Base, now: datetime) -> bool:
    """Tell whether a job may still start from it: who is not to be kept is no hit either."""
    return _why_useless(image, limits, base, now) is None


def expendable(
    images: Iterable[KeptImage],
    last_use: Mapping[str, ImageUse],
    limits: ImageLimits,
    base: Base,
    now: datetime,
) -> list[ExpendableImage]:
    """Return what goes, the image used last first; `last_use` is by image id, an unused one counts from its build."""
    chosen = _Chosen(limits, base)
    for image in sorted(images, key=lambda one: (_used_at(one, last_use), one.id), reverse=True):
        use = last_use.get(image.id)
        if use is not None and use.is_open:
            chosen.keep(image)
        elif why := _why_useless(image, limits, base, now):
            chosen.drop(image, why)
        else:
            chosen.judge(image)
    return chosen.found


class _Chosen:
    """The rooms that fill up, image by image."""

    def __init__(self, limits: ImageLimits, base: Base) -> None:
        self._limits = limits
        self._base = base
        self._of_user: dict[str, int] = {}
        self._count: dict[str, int] = {}
        self._in_all = 0
        self.found: list[ExpendableImage] = []

    def judge(self, image: KeptImage) -> None:
        """The image is kept if there is room, or if it is one of the few that always stay."""
        if self._count.get(image.owner, 0) >= self._limits.minimum and (why := self._why_too_much(image)):
            self.drop(image, why)
        else:
            self.keep(image)

    def keep(self, image: KeptImage) -> None:
        size = self._beyond_base(image)
        self._in_all += size
        self._of_user[image.owner] = self._of_user.get(image.owner, 0) + size
        self._count[image.owner] = self._count.get(image.owner, 0) + 1

    def drop(self, image: KeptImage, why: str) -> None:
        self.found.append(ExpendableImage(image, why))

    def _why_too_much(self, image: KeptImage) -> str | None:
        return next(self._exceeded(image), None)

    def _exceeded(self, image: KeptImage) -> Iterator[str]:
        size, limits = self._beyond_base(image), self._limits
        if self._of_user.get(image.owner, 0) + size > limits.size_per_user:
            yield f"its user's environments take more than {limits.size_per_user} bytes"
        if self._in_all + size > limits.size:
            yield f"all environments take more than {limits.size} bytes"

    def _beyond_base(self, image: KeptImage) -> int:
        return max(0, image.size - self._base.size) if image.base_id == self._base.id else image.size


def _why_useless(image: KeptImage, limits: ImageLimits, base: Base, now: datetime) -> str | None:
    if limits.are_off:
        return "no environments are kept"
    if image.base_id != base.id:
        return "the runner image is another one now"
    if image.reference == image.id:
        return "a newer one has its name"
    if now - image.created_at > limits.age:
        return f"it was built more than {describe(limits.age)} ago"
    return None


def _used_at(image: KeptImage, last_use: Mapping[str, ImageUse]) -> datetime:
    use = last_use.get(image.id)
    return image.created_at if use is None else max(use.last_at, image.created_at)
