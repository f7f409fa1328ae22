"""Environments on a real engine: what one job installed the next one of the same person finds, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from ci_controller.labels import INSTANCE, OWNER
from tests.support.handing_in import hand_in
from tests.support.installation import Daemon, Installation, make_project

pytestmark = pytest.mark.docker
Shared = tuple[Installation, Daemon]

PASSES = "import six\ndef test_a(): assert six\n"
INSTALLS, FINDS = b"==> Installing requirements.txt with", b"==> Using the environment kept from "


def project(root: Path, requirements: str = "pytest\nsix\n", code: str = PASSES) -> Path:
    files = {"requirements.txt": requirements, "tests/test_it.py": code, "secret.txt": "s"}
    return make_project(root, dict(files))


def run(shared: Shared, folder: Path, user: str, **fields: str) -> tuple[dict[str, Any], bytes]:
    """The project's job has passed; returns the job, and its log."""
    system, server = shared
    job_id = hand_in(system, server, folder, user=user, **fields)
    job, log = system.wait(server, job_id, user=user), system.log(server, job_id, user)
    assert job["success"] is True, f"{job} {log.decode()}"
    return job, log


def images(system: Installation, user: str) -> list[str]:
    """Return the environments that are kept for that user."""
    [(owner,)] = system.query("SELECT id FROM users WHERE name = ?", user)
    wanted = ("--filter", f"label={INSTANCE}={system.instance_id()}", "--filter", f"label={OWNER}={owner}")
    return system.docker("images", "-q", "--no-trunc", *wanted).split()


def test_an_environment_is_built_once_and_used_until_its_files_change(shared: Shared, tmp_path: Path) -> None:
    system, _ = shared
    first, log = run(shared, project(tmp_path), "builder")
    assert (first["image_cached"], INSTALLS in log, FINDS in log) == (False, True, False)
    [image] = images(system, "builder")
    holds_nothing_of_the_tree_and_exactly_its_labels(system, image, first["job_id"])
    second, log = run(shared, project(tmp_path, code=PASSES + "def test_b(): pass\n"), "builder")
    assert (second["image_cached"], INSTALLS in log, FINDS in log) == (True, False, True)
    assert second["image_id"] == image
    assert b"2 passed" in log
    third, log = run(shared, project(tmp_path, "pytest\nsix\npluggy\n"), "builder")
    assert (third["image_cached"], INSTALLS in log) == (False, True)
    assert len(images(system, "builder")) == 2


def holds_nothing_of_the_tree_and_exactly_its_labels(system: Installation, image: str, job_id: str) -> None:
    added = contents(system, image) - contents(system, system.image)
    assert any("six" in path for path in added)
    assert [path for path in added if "site-packages" not in path] == []
    labels = json.loads(system.docker("image", "inspect", "--format", "{{json .Config.Labels}}", image))
    assert {name for name, text in labels.items() if text} == {
        "ci.instance",
        "ci.kind",
        "ci.environment",
        "ci.owner",
        "ci.base",
    }
    assert job_id not in str(labels)


def contents(system: Installation, image: str) -> set[str]:
    """Return every path in the image."""
    command = ("--entrypoint=sh", image, "-c", "find / -xdev 2>/dev/null | cat")
    return set(system.docker("run", "--rm", "--network=none", *command).splitlines())


def test_nobody_gets_somebody_elses_environment_and_who_wants_gets_a_fresh_one(
    shared: Shared, tmp_path: Path
) -> None:
    system, server = shared
    run(shared, project(tmp_path), "mine")
    [mine] = images(system, "mine")
    theirs, _ = run(shared, tmp_path, "theirs")
    assert theirs["image_cached"] is False
    assert [mine] != images(system, "theirs") != []
    fresh, log = run(shared, tmp_path, "mine", fresh="true")
    assert (fresh["image_cached"], INSTALLS in log) == (False, True)
    [other] = images(system, "mine")
    assert other != mine, "it was replaced, and nobody uses it"
    again, _ = run(shared, tmp_path, "mine")
    assert (again["image_cached"], again["image_id"]) == (True, other)

    failing = project(tmp_path / "failing", "pytest\nno-such-package-of-ours==9.9\n")
    job_id = hand_in(system, server, failing, user="mine")
    job = system.wait(server, job_id, user="mine")
    assert (job["reason"], job["image_cached"]) == ("install_failed", False)
    assert images(system, "mine") == [other], "what failed is not kept"
