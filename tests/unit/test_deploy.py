"""What is in `deploy/` is understood by those it is for, and starts programs that we have, with options they know."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import ci_controller.cli
import ci_server.cli
from scripts.generate_docs import SETTINGS, settings_of

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS: dict[str, click.Command] = {"controller": ci_controller.cli.main, "server": ci_server.cli.main}
INSTALLED = "/opt/ci/bin"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_the_unit(unit: Path, tmp_path: Path) -> None:
    here = Path(sys.executable).parent
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(INSTALLED, str(here)))
    found = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    ours = [line for line in (found.stdout + found.stderr).splitlines() if unit.name in line]
    assert (found.returncode, ours) == (0, [])


def test_each_daemon_has_a_unit() -> None:
    assert [unit.stem for unit in UNITS] == ["ci-agent", "ci-controller", "ci-server"]
    for unit in UNITS:
        assert f"ExecStart={INSTALLED}/{unit.stem}\n" in unit.read_text()
        assert (Path(sys.executable).parent / unit.stem).is_file()


@pytest.mark.parametrize("service", sorted(OURS))
def test_compose_starts_our_programs_with_options_and_settings_that_they_know(service: str) -> None:
    program, *arguments = SERVICES[service]["command"]
    assert program == f"ci-{service}"
    OURS[service].make_context(program, list(arguments))  # raises on what it does not know
    ours = {name for name in SERVICES[service]["environment"] if name.startswith("CI_")}
    known = {name for settings in (SETTINGS["storage"], SETTINGS[service]) for name in settings_of(settings)}
    assert ours - known == set()


def test_compose_has_two_servers_behind_an_address_that_they_believe() -> None:
    [network] = SERVICES["front"]["networks"].values()
    server = SERVICES["server"]
    assert server["deploy"]["replicas"] == 2
    assert server["command"][-2:] == ["--proxy", network["ipv4_address"]]
    assert {name for name, one in SERVICES.items() if one.get("ports")} == {"front"}


def test_compose_shares_one_directory_and_gives_nobody_an_engine_or_a_password_of_ours() -> None:
    directory = SERVICES["server"]["environment"]["CI_DATA_DIR"]
    for name in OURS:
        assert f"data:{directory}" in SERVICES[name]["volumes"]
        assert SERVICES[name]["environment"]["PGPASSWORD"].startswith("${CI_POSTGRES_PASSWORD:?")
    assert "docker.sock" not in (DEPLOY / "compose.yaml").read_text()


def test_the_image_of_the_control_plane_has_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert [package for package in packages if f"COPY {package} {package}" not in lines] == []


def _has_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _has_compose(), reason="`docker compose` is not installed")
def test_docker_compose_understands_it() -> None:
    command = ["docker", "compose", "--file", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    known = {**os.environ, "CI_POSTGRES_PASSWORD": "secret"}
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
def test_haproxy_understands_its_file() -> None:
    done = subprocess.run(
        ["haproxy", "-c", "-f", str(DEPLOY / "haproxy.cfg")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
