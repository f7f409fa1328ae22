"""Row 68: judging the worst archives takes less than 200 MB and, but for the largest that is good, 5 seconds of CPU.

That making a tar of them takes no more memory: tests/soak/test_archive_soak.py.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.large_archives import write_entries, write_zeros

MB = 1_000_000
WIDE = "\U0001f600".encode()  # one such character makes Python keep four bytes for each of the name's


def probed(path: Path, cpu_seconds: int = 5, mode: str = "judge") -> dict[str, Any]:
    """Return what judging costs in a process of its own, which the kernel kills after those seconds of CPU."""
    command = [sys.executable, "-m", "tests.support.archive_probe", mode, str(path), str(cpu_seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "200 000 entries": (
        lambda path: write_entries(path, (b"%d" % n for n in range(200_000))),
        "too_many_entries",
    ),
    "500 MiB of names": (
        lambda path: write_entries(path, (b"%d" % n + b"n" * 65_500 for n in range(4000))),
        "path_length",
    ),
    "names just short enough": (
        lambda path: write_entries(path, (b"%d/" % n + b"/".join([b"n" * 200] * 5) for n in range(20_000))),
        "names_size",
    ),
    "500 MiB of extra fields": (
        lambda path: write_entries(path, (b"%d" % n for n in range(4000)), extra=65_532),
        "extra_fields",
    ),
    "three million directories": (
        lambda path: write_entries(path, (b"%d/" % n + b"d/" * 30 + b"f" for n in range(100_000))),
        "too_many_entries",
    ),
    "500 MiB out of 500 KiB": (lambda path: write_zeros(path, 500), "ratio"),
    "10 GiB that are declared as 1 MiB": (
        lambda path: write_zeros(path, 10_000, declared=1024 * 1024),
        "size",
    ),
    "4 GiB out of 10 KiB": (lambda path: write_zeros(path, 10, declared=2**32 - 2), "ratio"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_costs_little(name: str, tmp_path: Path) -> None:
    write, rule = REFUSED[name]
    write(tmp_path / "a.zip")
    cost = probed(tmp_path / "a.zip")
    assert cost["rule"] == rule
    assert cost["memory"] < 200 * MB


ACCEPTED: dict[str, tuple[Callable[[Path], None], int]] = {
    "500 MiB of comments": (
        lambda path: write_entries(path, (b"%d" % n for n in range(8000)), comment=65_535),
        8000,
    ),
    "100 000 directories with long names": (
        lambda path: write_entries(
            path, (b"%d/" % n + WIDE + b"/".join([b"d" * 30] * 30) + b"/f" for n in range(3200))
        ),
        3200,
    ),
    "512 MiB of zeros": (lambda path: write_zeros(path, 512, ratio=190), 1),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_is_judged_in_flat_memory(name: str, tmp_path: Path) -> None:
    write, files = ACCEPTED[name]
    write(tmp_path / "a.zip")
    cost = probed(tmp_path / "a.zip")
    assert (cost["rule"], cost["files"]) == (None, files)
    assert cost["memory"] < 200 * MB


def test_as_many_files_as_an_archive_may_have_with_names_as_large_as_they_may_be(tmp_path: Path) -> None:
    write_entries(tmp_path / "a.zip", (b"%05d/" % n + WIDE + b"N" * 115 for n in range(100_000)))
    cost = probed(tmp_path / "a.zip", cpu_seconds=10)
    assert (cost["rule"], cost["files"]) == (None, 100_000)
    assert cost["memory"] < 200 * MB
