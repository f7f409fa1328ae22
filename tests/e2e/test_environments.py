"""Environments on a real engine: what one job installed the next one of the same person finds, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from ci_controller.labels import INSTANCE, OWNER
from tests.support.eventually import eventually
from tests.support.installation import Daemon, Installation, make_project

pytestmark = pytest.mark.docker


PASSES = "import six\ndef test_a(): assert six\n"
INSTALLS, FINDS = b"==> Installing requirements.txt with", b"==> Using the environment kept from "


@pytest.fixture(autouse=True)
def keeping(installation: Installation) -> None:
    installation.keeps_environments = True


def project(root: Path, requirements: str = "pytest\nsix\n", code: str = PASSES) -> Path:
    files = {"requirements.txt": requirements, "tests/test_it.py": code, "secret.txt": "s"}
    return make_project(root, dict(files))


def run(
    system: Installation, server: Daemon, folder: Path, *args: str, user: str = "ada"
) -> tuple[dict[str, Any], bytes]:
    """The project's job has passed; returns what `ci status` says of it, and its log."""
    job_id = system.submit(server, folder, *args, user=user)
    with system.http(server, user) as http:
        eventually(
            lambda: http.get(f"/jobs/{job_id}").json()["success"] is not None, seconds=120, what="the job"
        )
    status = json.loads(system.ci(server, "status", job_id, "--json", user=user).out)
    log = system.log(server, job_id, user)
    assert status["success"] is True, f"{status} {log.decode()}"
    return status, log


def images(system: Installation) -> list[str]:
    wanted = f"label={INSTANCE}={system.instance_id()}"
    return system.docker("images", "-q", "--no-trunc", "--filter", wanted).split()


def test_an_environment_is_built_once_and_used_until_its_files_change(
    installation: Installation, tmp_path: Path
) -> None:
    server, folder = installation.start(), tmp_path / "project"
    first, log = run(installation, server, project(folder))
    assert (first["image_cached"], INSTALLS in log, FINDS in log) == (False, True, False)
    [image] = images(installation)
    second, log = run(installation, server, project(folder, code=PASSES + "def test_b(): pass\n"))
    assert (second["image_cached"], INSTALLS in log, FINDS in log) == (True, False, True)
    assert second["image_id"] == image
    assert b"2 passed" in log
    third, log = run(installation, server, project(folder, "pytest\nsix\npluggy\n"))
    assert (third["image_cached"], INSTALLS in log) == (False, True)
    assert len(images(installation)) == 2


def test_nobody_gets_somebody_elses_environment_and_who_wants_gets_a_fresh_one(
    installation: Installation, tmp_path: Path
) -> None:
    server, folder = installation.start(), project(tmp_path / "project")
    run(installation, server, folder)
    [mine] = images(installation)
    theirs, _ = run(installation, server, folder, user="grace")
    assert theirs["image_cached"] is False
    owners = [
        json.loads(installation.docker("image", "inspect", "--format", "{{json .Config.Labels}}", one))[OWNER]
        for one in images(installation)
    ]
    assert len(set(owners)) == 2
    fresh, log = run(installation, server, folder, "--fresh")
    assert (fresh["image_cached"], INSTALLS in log) == (False, True)
    assert mine not in images(installation), "it was replaced, and nobody uses it"
    again, _ = run(installation, server, folder)
    assert again["image_cached"] is True
    assert again["image_id"] in images(installation)


def test_an_image_holds_nothing_of_the_tree_and_exactly_its_labels(
    installation: Installation, tmp_path: Path
) -> None:
    server = installation.start()
    status, _ = run(installation, server, project(tmp_path / "project"))
    [image] = images(installation)
    command = "find / -xdev 2>/dev/null | sort"
    listed = installation.docker("run", "--rm", "--network=none", "--entrypoint=sh", image, "-c", command)
    before = installation.docker(
        "run", "--rm", "--network=none", "--entrypoint=sh", installation.image, "-c", command
    )
    added = set(listed.splitlines()) - set(before.splitlines())
    assert any("six" in path for path in added)
    assert [path for path in added if "site-packages" not in path] == []
    assert "/workspace/secret.txt" not in listed
    labels = json.loads(installation.docker("image", "inspect", "--format", "{{json .Config.Labels}}", image))
    assert {name for name, text in labels.items() if text} == {
        "ci.instance",
        "ci.kind",
        "ci.environment",
        "ci.owner",
        "ci.base",
    }
    assert status["job_id"] not in str(labels)


def test_an_installation_that_fails_is_not_kept(installation: Installation, tmp_path: Path) -> None:
    server = installation.start()
    folder = project(tmp_path / "project", "pytest\nno-such-package-of-ours==9.9\n")
    job = installation.wait(server, installation.submit(server, folder))
    assert (job["reason"], job["image_cached"]) == ("install_failed", False)
    assert images(installation) == []
