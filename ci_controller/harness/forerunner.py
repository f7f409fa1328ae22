"""pytest ahead, inside its process: imports pytest as the interpreter starts, and waits there for the tree.

It runs from a `.pth` file that comes before all others, so everything that looks at the tree (the other `.pth` files,
`sitecustomize`, `sys.path[0]`, pytest itself) comes later and as always. Where the result might differ from that of
a fresh interpreter, the process starts the same command once more. Standard library only, Python >= 3.8.
"""

# ruff: noqa: PTH100, PTH108, PTH112, PTH118, PTH120, PTH123, PTH208 - nothing is imported that pytest would not import

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from typing import Any

# Code in a `.pth` file that comes before pytest in a fresh start. These do nothing that pytest could tell, coverage's
# unless the environment asks for it.
_INERT = ("distutils-precedence.pth", "_virtualenv.pth", "a1_coverage.pth", "_ci_paths.pth", "!_ci_ahead.pth")
_COVERAGE = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
_CUSTOM = ("sitecustomize", "usercustomize")


class Missed:
    """A finder that finds nothing: notes which modules there were not."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:  # noqa: ARG002
        self.names.add(name)


def wait() -> None:
    """There is a run, and this process is its pytest; returns at once where it was not started to wait."""
    sys.modules.pop("_ci_ahead", None)
    gate, _, parent = os.environ.pop("_CI_AHEAD", "").partition(":")
    if not parent or os.getppid() != int(parent):
        return
    packages = os.path.dirname(os.path.abspath(__file__))
    _remove_traces(packages)
    names = _import_pytest() if _is_ordinary(packages) else None
    run = _read_run(int(gate))
    os.environ.update(run["environment"])
    importlib.invalidate_caches()
    if names is None or names & _top_names(run["directories"]):
        os.execv(run["command"][0], run["command"])  # noqa: S606 - the same command, afresh
    sys.argv += run["arguments"]
    getattr(sys, "orig_argv", []).extend(run["arguments"])


def _remove_traces(packages: str) -> None:
    for path in (os.path.join(packages, "!_ci_ahead.pth"), __file__, globals().get("__cached__") or ""):
        with contextlib.suppress(OSError):
            os.unlink(path)


def _is_ordinary(packages: str) -> bool:
    """Tell whether no code of the packages' own runs in a fresh interpreter before pytest does."""
    import site

    if site.ENABLE_USER_SITE and os.path.isdir(site.getusersitepackages()):
        return False
    names = os.listdir(packages)
    hooks = [name for name in names if name.endswith(".pth") and name not in _INERT]
    if any(name.partition(".")[0] in _CUSTOM for name in names) or any(map(os.environ.get, _COVERAGE)):
        return False
    return not any(_has_code(os.path.join(packages, name)) for name in hooks if "-nspkg." not in name)


def _has_code(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        return any(line.startswith(("import ", "import\t")) for line in file)
    return True


def _import_pytest() -> frozenset[str] | None:
    """Return the top-level names of all modules that are imported, or were looked for in vain; None for a failure."""
    missed: Any = Missed()
    sys.meta_path.append(missed)
    try:
        plugins = importlib.import_module("_pytest.config").default_plugins
        for name in ("pytest", *(f"_pytest.{plugin}" for plugin in plugins)):
            importlib.import_module(name)
    except BaseException:  # noqa: BLE001 - it will fail once more, where it can be seen
        return None
    finally:
        sys.meta_path.remove(missed)
    return frozenset(name.partition(".")[0] for name in {*sys.modules, *missed.names, *_CUSTOM})


def _read_run(gate: int) -> dict[str, Any]:
    """Return what is to be run; does not return where there will be nothing."""
    data = b""
    while chunk := os.read(gate, 1 << 16):
        data += chunk
    os.close(gate)
    if not data:
        os._exit(0)
    run: dict[str, Any] = json.loads(data)
    return run


def _top_names(directories: list[str]) -> set[str]:
    """Return what can be imported from directories, and whatever else is there."""
    names: set[str] = set()
    for directory in directories:
        with contextlib.suppress(OSError):
            names.update(name.partition(".")[0] for name in os.listdir(directory))
    return names
