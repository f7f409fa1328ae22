"""The `ci` command as a process, against a server on this machine and away from the person's own settings."""

import os
import subprocess
import sys
from pathlib import Path

COMMAND = (sys.executable, "-m", "ci_client")
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "XDG_CACHE_HOME")


def ci_environment(server_url: str | None, api_key: str | None, **more: str) -> dict[str, str]:
    """Return an environment in which only what is given here decides."""
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"CI_CONFIG_FILE": os.devnull, "PYTHONPATH": str(Path(__file__).parents[2])}
    if server_url is not None:
        environment["CI_SERVER_URL"] = server_url
    if api_key is not None:
        environment["CI_API_KEY"] = api_key
    return environment | more


def run_ci(
    *arguments: str, environment: dict[str, str], cwd: Path, timeout: float = 30
) -> subprocess.CompletedProcess[bytes]:
    """Return the finished command with what it wrote."""
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, cwd=cwd, capture_output=True, timeout=timeout, check=False
    )
