"""The runner image: what a job finds in it, and that building it again costs nothing."""

import shlex
import subprocess
from pathlib import Path

import pytest

from ci_controller.container_users import GROUP, USERS
from tests.support.docker_cli import RUNNER_IMAGE, docker

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

BUILD = Path(__file__).resolve().parents[2] / "runner" / "build.sh"


def inside(script: str, *options: str) -> str:
    command = (*options, RUNNER_IMAGE, "sh", "-ec", script)
    return docker("run", "--rm", "--network", "none", "--cap-drop", "ALL", *command)


# One container says it all, under the name of each.
LOOKS = {
    "users": "cat /etc/passwd",
    "group": "getent group ci",
    "itself": "id -un; pwd; touch /workspace/x /opt/venv/x $HOME/x; echo $HOME",
    "tools": "python -c 'import sys; print(sys.prefix)'; python -m pip --version; uv --version; git --version",
    "locale": "python3 -c 'import locale, zoneinfo; "
    'print(locale.getpreferredencoding(), zoneinfo.ZoneInfo("Asia/Tokyo"))\'',
    "certificates": 'test -s "$SSL_CERT_FILE" && test "$PIP_CERT" = "$SSL_CERT_FILE" && '
    "grep -m1 -o BEGIN $SSL_CERT_FILE",
}


@pytest.fixture(scope="module")
def found(engine: None) -> dict[str, str]:
    """What the image's own user sees of it; a look that failed has no lines, or not all."""
    script = "\n".join(
        f"echo '## {name}'; sh -ec {shlex.quote(look)} || true" for name, look in LOOKS.items()
    )
    sections = inside(script).split("## ")[1:]
    return {name: text.strip() for name, _, text in (section.partition("\n") for section in sections)}


def test_every_user_of_a_job_has_a_name_the_group_and_the_home(found: dict[str, str]) -> None:
    names = dict(line.split(":", 1) for line in found["users"].splitlines())
    for user in USERS:
        assert names[f"ci{user}"] == f"x:{user}:{GROUP}::/home/ci:/bin/sh"
    assert found["group"].startswith(f"ci:x:{GROUP}:")


@pytest.mark.parametrize("user", [USERS[0], USERS[-1]])
def test_such_a_user_may_write_wherever_jobs_do(user: int) -> None:
    script = "id -un; touch /workspace/x /opt/venv/x $HOME/x; git init -q; git status --short"
    said = inside(script + "; python -m pip uninstall -qy pip", f"--user={user}:{GROUP}")
    assert said.split() == [f"ci{user}", "??", "x"]


def test_the_image_itself_has_an_ordinary_user_in_a_workspace(found: dict[str, str]) -> None:
    assert found["itself"].split() == ["ci", "/workspace", "/home/ci"]


def test_it_has_python_pip_and_uv_in_one_environment(found: dict[str, str]) -> None:
    lines = found["tools"].splitlines()
    assert lines[0] == "/opt/venv"
    assert [line.split()[0] for line in lines[1:]] == ["pip", "uv", "git"]


def test_its_locale_is_utf_8_and_it_knows_time_zones(found: dict[str, str]) -> None:
    assert found["locale"] == "UTF-8 Asia/Tokyo"


def test_it_trusts_some_certificates_and_tells_the_tools(found: dict[str, str]) -> None:
    assert found["certificates"] == "BEGIN"


@pytest.mark.skipif(
    RUNNER_IMAGE != "ci-runner:latest", reason="an image of somebody's own is not built by us"
)
def test_building_it_again_does_nothing() -> None:
    before = docker("image", "inspect", "--format", "{{.Id}}", RUNNER_IMAGE)
    said = subprocess.run([BUILD], check=True, timeout=60, capture_output=True, text=True)
    assert "bootstrapping" not in said.stdout + said.stderr
    assert docker("image", "inspect", "--format", "{{.Id}}", RUNNER_IMAGE) == before
