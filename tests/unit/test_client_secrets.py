"""The API key goes to the server it was meant for, and is seen by nobody else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ci_command import ci_environment, run_ci
from tests.support.http_peer import JOB_ID, KEY, Answer, HttpPeer


@pytest.fixture
def peer() -> Iterator[HttpPeer]:
    with HttpPeer() as peer:
        yield peer


@pytest.fixture
def elsewhere() -> Iterator[HttpPeer]:
    with HttpPeer() as peer:
        yield peer


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "test_a.py").write_text("def test_a(): pass\n")
    return tmp_path


@pytest.mark.parametrize(
    ("status", "command"),
    [
        (301, ("list",)),
        (302, ("submit", "test", "--async")),
        (303, ("submit", "test")),
        (307, ("submit", "test")),
        (308, ("wait", JOB_ID)),
    ],
)
def test_a_redirect_is_told_and_not_followed(
    peer: HttpPeer, elsewhere: HttpPeer, project: Path, status: int, command: tuple[str, ...]
) -> None:
    there = {"Location": f"{elsewhere.url}/anywhere"}
    peer.script.faults.extend([Answer(status, headers=there)] * 10)
    done = run_ci(*command, environment=ci_environment(peer.url, KEY), cwd=project)
    assert elsewhere.received == [], "neither the key nor the project went there"
    assert peer.received[0].headers["authorization"] == f"Bearer {KEY}"
    assert done.returncode == 69
    assert f"redirects {peer.url}" in done.stderr.decode()


def test_a_key_on_the_command_line_is_warned_about(peer: HttpPeer, project: Path) -> None:
    environment = ci_environment(peer.url, None)
    done = run_ci("list", "--api-key", KEY, environment=environment, cwd=project)
    assert done.returncode == 0
    assert b"warning: --api-key shows the key to everyone" in done.stderr
    assert KEY.encode() not in done.stdout + done.stderr


def test_a_key_in_environment_or_file_is_not(peer: HttpPeer, project: Path) -> None:
    (project / "key").write_text(KEY)
    for arguments, key in (((), KEY), (("--api-key-file", "key"), None)):
        done = run_ci("list", *arguments, environment=ci_environment(peer.url, key), cwd=project)
        assert (done.returncode, done.stderr) == (0, b"")
