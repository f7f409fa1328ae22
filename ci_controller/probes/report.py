"""The probes from outside: what is sent into a container, and what its output says."""

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Final

from ci_controller.probes.attempt import Result

PACKAGE: Final = "ci_controller/probes"  # as here: the modules import each other by name
_INSIDE: Final = (
    "attempt",
    "all",
    "kernel",
    "namespaces",
    "sockets",
    "files",
    "process_one",
    "network",
    "limits",
)

# Process 1, as the harness is: it cannot be opened by its own user, and obeys nobody inside.
_PROCESS_1: Final = """\
import ctypes, json, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
signal.signal(signal.SIGINT, signal.SIG_IGN)
for path, text in json.load(sys.stdin).items():
    os.makedirs(os.path.dirname("/tmp/" + path), exist_ok=True)
    with open("/tmp/" + path, "w") as file:
        file.write(text)
command = [sys.executable, "-m", "ci_controller.probes", *sys.argv[1:]]
sys.exit(subprocess.call(command, cwd="/tmp", stdin=subprocess.DEVNULL))
"""
COMMAND: Final = ("python3", "-I", "-u", "-c", _PROCESS_1)
BARE_COMMAND: Final = (
    "python3",
    "-I",
    "-u",
    "-c",
    _PROCESS_1.replace("prctl(4, 0, 0, 0, 0)", "prctl(4, 1, 0, 0, 0)"),
)


def files(targets: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the program, text by path; `targets` are addresses that nobody inside may reach, by name."""
    package = resources.files("ci_controller.probes")
    names = ("__init__", "__main__", *_INSIDE)
    texts = {f"{PACKAGE}/{name}.py": package.joinpath(f"{name}.py").read_text("utf-8") for name in names}
    return texts | {f"{PACKAGE}/targets.json": json.dumps(dict(targets or {}))}


def program(targets: Mapping[str, str] | None = None) -> bytes:
    """Return what `COMMAND` reads from its standard input."""
    return json.dumps(files(targets)).encode()


def results(output: str) -> Iterator[Result]:
    """Yield what each probe said, in a text that may hold other lines."""
    for line in output.splitlines():
        if line.startswith('{"probe": '):
            yield Result(**json.loads(line))
