"""Reads the metadata files of an upload in a child process with limits: their parsers can be made to eat a machine.

`tomllib` needs time and memory that grow with the square of a dotted key's length, `configparser` time with the
square of a line's; both hold the interpreter meanwhile. The child is `metadata_parser`.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ci_common.errors import InvalidArchive

_PARSER: Final = Path(__file__).with_name("metadata_parser.py")
_PATIENCE: Final = 20.0  # seconds by the wall, on a machine that is busy with everything else


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the files say, as far as installing needs it."""

    pyproject: Mapping[str, Any]
    setup_cfg_has_name: bool  # whether setup.cfg describes a package, and not only tools


class BadMetadata(InvalidArchive):
    """A metadata file cannot be read; the message names it."""


def read_metadata(pyproject: bytes, setup_cfg: bytes) -> Metadata:
    """Return what the two files say; raises BadMetadata. Takes a child process unless both are empty."""
    if not pyproject and not setup_cfg:
        return Metadata({}, setup_cfg_has_name=False)
    answer = _in_a_child(len(pyproject).to_bytes(8) + pyproject + setup_cfg)
    if error := answer.get("error"):
        raise BadMetadata(f"pyproject.toml is not valid TOML: {error}.", rule="bad_pyproject")
    return Metadata(answer["pyproject"], answer["setup_cfg_has_name"])


def _in_a_child(files: bytes) -> Mapping[str, Any]:
    command = [sys.executable, "-I", "-S", str(_PARSER)]
    try:
        done = subprocess.run(command, input=files, capture_output=True, timeout=_PATIENCE, check=True)
        return json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError, RecursionError) as error:
        raise BadMetadata(
            "pyproject.toml or setup.cfg takes too much time or memory to read.", rule="bad_pyproject"
        ) from error
