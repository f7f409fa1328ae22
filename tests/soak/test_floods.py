"""Rows 38 and 39 in their full size, 1 GB each; `CI_SOAK=1` runs it."""

from pathlib import Path

import pytest

from tests.e2e.test_disk import flood_ends_at_the_cap, memory_of
from tests.support.installation import FIXTURES, Installation, make_project
from tests.support.soak import soak_only

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1800),
    soak_only,
]

GIB, MIB = 1024**3, 1024**2
LINE = "import os\ndef test_x():\n    for n in range(1024): os.write(1, b'x' * 2**20)\n"


def test_a_flood_of_a_gigabyte(installation: Installation, tmp_path: Path) -> None:
    flood_ends_at_the_cap(installation, tmp_path, cap=GIB, seconds=1500)


def test_a_line_of_a_gigabyte(installation: Installation, tmp_path: Path) -> None:
    system = installation
    controller = system.start_controller(CI_LOG_LIMIT="2GiB")
    server = system.start_server()
    system.wait_ready(server)
    system.wait(server, system.submit(server, FIXTURES / "passing"))
    before = memory_of(controller)
    job_id = system.submit(server, make_project(tmp_path / "line", {"test_x.py": LINE}), "--", "-s")
    job = system.wait(server, job_id, seconds=1500)
    assert job["success"] is True
    assert job["log_size"] > GIB
    assert memory_of(controller) - before < 64 * MIB
