"""The runner image: what a job finds in it, and that building it again costs nothing."""

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


def test_every_user_of_a_job_has_a_name_the_group_and_the_home() -> None:
    names = dict(line.split(":", 1) for line in inside("cat /etc/passwd").splitlines())
    for user in USERS:
        assert names[f"ci{user}"] == f"x:{user}:{GROUP}::/home/ci:/bin/sh"
    assert inside("getent group ci").startswith(f"ci:x:{GROUP}:")


@pytest.mark.parametrize("user", [USERS[0], USERS[-1]])
def test_such_a_user_may_write_wherever_jobs_do(user: int) -> None:
    script = "id -un; touch /workspace/x /opt/venv/x $HOME/x; git init -q; git status --short"
    said = inside(script + "; python -m pip uninstall -qy pip", f"--user={user}:{GROUP}")
    assert said.split() == [f"ci{user}", "??", "x"]


def test_the_image_itself_has_an_ordinary_user_in_a_workspace() -> None:
    assert inside("id -un; pwd; touch /workspace/x /opt/venv/x $HOME/x; echo $HOME").split() == [
        "ci",
        "/workspace",
        "/home/ci",
    ]


def test_it_has_python_pip_and_uv_in_one_environment() -> None:
    script = "python -c 'import sys; print(sys.prefix)'; python -m pip --version; uv --version; git --version"
    lines = inside(script).splitlines()
    assert lines[0] == "/opt/venv"
    assert [line.split()[0] for line in lines[1:]] == ["pip", "uv", "git"]


def test_its_locale_is_utf_8_and_it_knows_time_zones() -> None:
    script = "import locale, zoneinfo; print(locale.getpreferredencoding(), zoneinfo.ZoneInfo('Asia/Tokyo'))"
    assert inside(f'python3 -c "{script}"') == "UTF-8 Asia/Tokyo"


def test_it_trusts_some_certificates_and_tells_the_tools() -> None:
    script = 'test -s "$SSL_CERT_FILE" && test "$PIP_CERT" = "$SSL_CERT_FILE" && head -c 11 "$SSL_CERT_FILE"'
    assert "BEGIN" in inside(
        script + "; grep -c BEGIN $SSL_CERT_FILE >/dev/null; grep -m1 -o BEGIN $SSL_CERT_FILE"
    )


@pytest.mark.skipif(
    RUNNER_IMAGE != "ci-runner:latest", reason="an image of somebody's own is not built by us"
)
def test_building_it_again_does_nothing() -> None:
    before = docker("image", "inspect", "--format", "{{.Id}}", RUNNER_IMAGE)
    said = subprocess.run([BUILD], check=True, timeout=60, capture_output=True, text=True)
    assert "bootstrapping" not in said.stdout + said.stderr
    assert docker("image", "inspect", "--format", "{{.Id}}", RUNNER_IMAGE) == before
