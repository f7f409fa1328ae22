"""The child of `untrusted_metadata`: parses two files under limits. A program; it imports nothing of ours, to be quick.

Standard input: 8 bytes of length, pyproject.toml, setup.cfg. Standard output: one JSON object.
"""

import configparser
import json
import resource
import sys
import tomllib
from typing import Any

_MEMORY = 512 * 1024**2  # bytes of address space; a bare interpreter with both parsers takes some 30 MiB
_CPU = 2  # seconds; the largest real files take milliseconds


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU, _CPU))
    files = sys.stdin.buffer.read()
    length = int.from_bytes(files[:8])
    json.dump(_parse(files[8 : 8 + length], files[8 + length :]), sys.stdout, default=str)


def _parse(pyproject: bytes, setup_cfg: bytes) -> dict[str, Any]:
    try:
        parsed = tomllib.loads(pyproject.decode())
    except (ValueError, RecursionError) as error:  # also for numbers too long and for brackets too deep
        return {"error": str(error)[:200]}
    return {"pyproject": parsed, "setup_cfg_has_name": _has_name(setup_cfg)}


def _has_name(setup_cfg: bytes) -> bool:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(setup_cfg.decode(errors="replace"))
    except configparser.Error:
        return False  # flake8 and pytest keep their settings there too; a broken file is theirs to report
    return parser.has_option("metadata", "name")


if __name__ == "__main__":
    _main()
