"""The units in `deploy/` are what systemd understands, and start programs that we have."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy").glob("*.service"))
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
