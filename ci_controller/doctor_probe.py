"""The program that `doctor` runs in a container: what limits hold there, and whether the package index answers.

Runs inside the runner image, standard library only, any Python from 3.8 on; prints one JSON object.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import ssl
import subprocess
import sys
import sysconfig
from pathlib import Path
from urllib.parse import urlsplit

PIPS_OWN_INDEX = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
SECONDS = 10


def user() -> dict[str, str | list[str] | None]:
    """Return the name of this process's user, and of the places that jobs write to those that it cannot."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = None
    home = os.environ.get("HOME", "")
    places = {"workspace": ".", "home": home, "packages": sysconfig.get_paths()["purelib"]}
    return {"name": name, "closed": [what for what, path in places.items() if not os.access(path, os.W_OK)]}


def limits() -> dict[str, str | int | None]:
    """Return what the kernel says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "capabilities": int(status["CapBnd"], 16),
        "no_new_privileges": int(status["NoNewPrivs"]),
        "seccomp": int(status["Seccomp"]),
        "memory": _cgroup_value("memory.max", "memory/memory.limit_in_bytes"),
        "pids": _cgroup_value("pids.max", "pids/pids.max"),
    }


def network() -> dict[str, str | int | None]:
    """Return how far a connection to the package index gets: resolve, connect, tls, or ok."""
    index = urlsplit(_index_url())
    host, port = index.hostname or "", index.port or (80 if index.scheme == "http" else 443)
    step = "resolve"
    try:
        socket.getaddrinfo(host, port)
        step = "connect"
        with socket.create_connection((host, port), timeout=SECONDS) as connection:
            step = "tls"
            if index.scheme == "https":
                _trusting().wrap_socket(connection, server_hostname=host).close()
    except OSError as error:
        return {"host": host, "step": step, "error": str(error)}
    return {"host": host, "step": "ok", "error": None}


def _cgroup_value(second: str, first: str) -> int | None:
    """Return a limit of this container's cgroup, version 2 or 1; None: there is none."""
    group = Path("/sys/fs/cgroup")
    path = group / second
    try:
        text = (path if path.exists() else group / first).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _index_url() -> str:
    configured = _said_by_python("-m", "pip", "config", "get", "global.index-url")
    return os.environ.get("PIP_INDEX_URL") or configured or _said_by_python("-c", PIPS_OWN_INDEX)


def _said_by_python(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False
    ).stdout.strip()


def _trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))


if __name__ == "__main__":
    print(json.dumps({"user": user(), "limits": limits(), "network": network()}))  # noqa: T201 - its answer
