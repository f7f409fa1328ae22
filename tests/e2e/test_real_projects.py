"""Projects none of us wrote: the same counts through `ci submit test` as their own pytest gives in a plain
container of the same image, their dependencies installed by hand. That is done with CI_SOAK=1; else one of them is
compared with what it gave then."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.installation import Daemon, Installation
from tests.support.soak import SOAKING

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

# Source distribution -> what a person would install beside the project to run its tests.
PROJECTS = {
    "iniconfig==2.3.0": "pytest",
    "pluggy==1.6.0": "pytest pytest-benchmark coverage",
    "click==8.5.1": "pytest",
}
KNOWN = {"iniconfig==2.3.0": {"passed": 49}}  # what a plain container gave


@pytest.mark.parametrize("requirement", PROJECTS if SOAKING else KNOWN)
def test_same_counts_as_in_a_plain_container(
    shared: tuple[Installation, Daemon], tmp_path: Path, requirement: str
) -> None:
    system, server = shared
    project = source_of(requirement, tmp_path)
    expected = (
        counts(plain_run(system.image, project, PROJECTS[requirement])) if SOAKING else KNOWN[requirement]
    )
    done = system.ci(server, "submit", "test", project=project)
    assert counts(done.text) == expected == KNOWN.get(requirement, expected), done.text[-3000:] + done.err
    assert expected["passed"] > 0
    assert done.code == (1 if expected.get("failed") else 0)


def source_of(requirement: str, folder: Path) -> Path:
    """Return the unpacked source distribution."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
    # The build backend itself may come as a wheel; only the project must be source.
    command[-1] = requirement.partition("==")[0]
    subprocess.run([*command, "-d", str(folder), requirement], check=True, capture_output=True)
    [packed] = folder.glob("*.tar.gz")
    with tarfile.open(packed) as tar:
        tar.extractall(folder, filter="data")
    return folder / packed.name.removesuffix(".tar.gz")


def plain_run(image: str, project: Path, dependencies: str) -> str:
    """Return what `python -m pytest` prints in a fresh container of the image."""
    script = f"tar -x -C /workspace && uv pip install -q -e . {dependencies} && python -m pytest"
    tree = subprocess.run(["tar", "-c", "-C", str(project), "."], check=True, capture_output=True).stdout
    command = ["docker", "run", "--rm", "-i", image, "sh", "-ec", script]
    done = subprocess.run(command, input=tree, capture_output=True, check=False, timeout=240)
    return done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")


def counts(output: str) -> dict[str, int]:
    """Return the numbers of pytest's last line, by outcome."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    summary = [
        line for line in plain.splitlines() if re.search(r"\d+ (passed|failed|error).* in [\d.]+", line)
    ]
    assert summary, f"no summary of pytest: {plain[-2000:]}"
    return {
        what: int(number) for number, what in re.findall(r"(\d+) (\w+)", summary[-1].partition(" in ")[0])
    }
