"""image_retention: which environments go, in tables; and that the engine's word is the last when they are removed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ci_common.models import ImageUse
from ci_controller import labels
from ci_controller.container_runtime import EnvironmentImage
from ci_controller.image_pruner import kept_images
from ci_controller.image_retention import Base, ImageLimits, KeptImage, expendable, is_usable

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
BASE = Base("runner", 1000)
LIMITS = ImageLimits(size=100, size_per_user=60, age=timedelta(days=7), minimum=1)


def image(
    name: str, beyond: int = 10, *, owner: str = "ada", built: float = 1, base: str = BASE.id
) -> KeptImage:
    """An image that so many bytes make larger than its base, built so many days ago."""
    return KeptImage(name, f"ci:{name}", owner, base, BASE.size + beyond, NOW - timedelta(days=built))


def used(hours: float, *, is_open: bool = False) -> ImageUse:
    return ImageUse(NOW - timedelta(hours=hours), is_open)


def gone(images: list[KeptImage], uses: dict[str, ImageUse]) -> list[str]:
    return [one.image.id for one in expendable(images, uses, LIMITS, BASE, NOW)]


@pytest.mark.parametrize(
    ("images", "uses", "expected"),
    [
        pytest.param([], {}, [], id="nothing"),
        pytest.param([image("a", 60), image("b", 40, owner="bob")], {}, [], id="exactly full"),
        pytest.param(
            [image("a", 30), image("b", 30), image("c", 30)],
            {"a": used(3), "b": used(1), "c": used(2)},
            ["a"],
            id="a user's used longest ago",
        ),
        pytest.param(
            [image("a", 50), image("b", 50, owner="bob"), image("c", 10, owner="bob")],
            {"a": used(1), "b": used(2), "c": used(3)},
            ["c"],
            id="of all users' the one used longest ago",
        ),
        pytest.param(
            [image("a", 50), image("b", 30), image("c", 5)],
            {"a": used(1), "b": used(2), "c": used(3)},
            ["b"],
            id="what still fits stays",
        ),
        pytest.param([image("a", 500)], {}, [], id="the only one of a user stays whatever its size"),
        pytest.param(
            [image("a", 50), image("b", 50, owner="bob"), image("c", 50, owner="eve")],
            {"a": used(1), "b": used(2), "c": used(3)},
            [],
            id="each user keeps one",
        ),
        pytest.param(
            [image("old", 50, built=2), image("new", 50, built=1)],
            {},
            ["old"],
            id="unused ones by their build",
        ),
        pytest.param(
            [image("a", 50, built=5), image("b", 50, built=1)], {"a": used(1)}, ["b"], id="use beats build"
        ),
        pytest.param([image("a", built=7.1)], {"a": used(0)}, ["a"], id="too old however lately used"),
        pytest.param([image("a", built=6.9)], {}, [], id="not yet too old"),
        pytest.param([image("a", base="gone")], {}, ["a"], id="another runner image"),
        pytest.param(
            [image("a", built=99), image("b", base="gone")],
            {"a": used(1, is_open=True), "b": used(1, is_open=True)},
            [],
            id="open attempts keep theirs",
        ),
        pytest.param(
            [image("a", 60), image("b", 60)],
            {"a": used(9, is_open=True), "b": used(1)},
            [],
            id="what is open is kept though it was started before",
        ),
    ],
)
def test_who_goes(images: list[KeptImage], uses: dict[str, ImageUse], expected: list[str]) -> None:
    assert gone(images, uses) == expected
    assert gone(images[::-1], uses) == expected, "whatever the order of the listing"


def test_who_lost_its_name_to_a_newer_one_goes() -> None:
    nameless = replace(image("a"), reference="a")
    assert gone([nameless, image("b")], {}) == ["a"]


def test_the_reason_says_which_limit() -> None:
    images = [image("a", 50), image("b", 50), image("c", built=8), image("d", base="x")]
    reasons = {one.image.id: one.why for one in expendable(images, {"a": used(0)}, LIMITS, BASE, NOW)}
    assert reasons == {
        "b": "its user's environments take more than 60 bytes",
        "c": "it was built more than 7 d ago",
        "d": "the runner image is another one now",
    }


@pytest.mark.parametrize("limits", [ImageLimits(size=0), ImageLimits(size_per_user=0)])
def test_nought_turns_it_off(limits: ImageLimits) -> None:
    images = [image("a"), image("open")]
    found = expendable(images, {"open": used(1, is_open=True)}, limits, BASE, NOW)
    assert [(one.image.id, one.why) for one in found] == [("a", "no environments are kept")]
    assert not is_usable(images[0], limits, BASE, NOW)


def test_while_a_disk_is_nearly_full_only_what_runs_stays() -> None:
    limits = LIMITS.under_pressure()
    found = expendable([image("a"), image("b")], {"b": used(1, is_open=True)}, limits, BASE, NOW)
    assert [one.image.id for one in found] == ["a"]


def test_what_is_to_go_is_no_hit() -> None:
    assert is_usable(image("a"), LIMITS, BASE, NOW)
    assert not is_usable(image("a", built=8), LIMITS, BASE, NOW)
    assert not is_usable(image("a", base="other"), LIMITS, BASE, NOW)


def test_an_image_says_by_its_labels_whose_it_is_and_what_it_was_made_on() -> None:
    made = labels.environment_labels("instance", "k" * 64, "ada", "sha256:runner")
    reference = labels.environment_reference("0123456789abcdef", "k" * 64)
    assert reference == "ci-environment-0123456789ab:" + "k" * 32
    [kept] = kept_images([EnvironmentImage("sha256:i", reference, made, 5, NOW)])
    assert kept == KeptImage("sha256:i", reference, "ada", "sha256:runner", 5, NOW)
