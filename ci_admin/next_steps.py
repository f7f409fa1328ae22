"""What `ci-admin up` tells the person once all is ready: where it is and what to type next."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from ci_admin.first_run import ClientSetup
from ci_common.settings import StorageSettings

_CLIENT_DEFAULT_SERVER = "http://localhost:8000"


def greeting(
    url: str, settings: StorageSettings, setup: ClientSetup, environ: Mapping[str, str] = os.environ
) -> str:
    """Return what is said when all is ready: where it is, and what to type next."""
    lines = ["", f"CI is ready at {url}; its database is {settings.database_name}."]
    if setup.written:
        assert setup.user is not None
        lines.append(f"{setup.config} now holds a key of {setup.user.email} and the address of this server.")
    lines += ["", *_next_steps(url, settings, setup, environ)]
    return "\n".join([*lines, "", "Ctrl-C stops it."])


def _next_steps(
    url: str, settings: StorageSettings, setup: ClientSetup, environ: Mapping[str, str]
) -> list[str]:
    addressed = environ.get("CI_SERVER_URL") or setup.stored_server or _CLIENT_DEFAULT_SERVER
    variables = "" if _same_place(addressed, url) else f"CI_SERVER_URL={url} "
    submit = f"  {variables}{_command('ci')} submit test"
    if setup.works:
        return ["In another terminal, in the root of a Python project:", "", submit]
    # A server is named in the environment, by a URL that may hold a password.
    named = "" if settings.server_url else f" --db-path {settings.db_path}"
    return [
        f"{setup.config} holds a key that is not valid here; it was left as it is. To use this server, make one:",
        "",
        f'  {_command("ci-admin")} user create --name "Your Name" --email you@example.com{named}',
        f'  {_command("ci-admin")} key create --email you@example.com --name "up"{named}',
        "",
        "and in the root of a Python project, with that key:",
        "",
        f"  CI_API_KEY=… CI_SERVER_URL={url} {_command('ci')} submit test",
    ]


def _same_place(one: str, other: str) -> bool:
    first, second = (url.rstrip("/").replace("//localhost:", "//127.0.0.1:") for url in (one, other))
    return first == second


def _command(name: str) -> str:
    """Return how the person calls one of our commands in any terminal: by name if that finds it, else by its path."""
    beside = Path(sys.executable).with_name(name)
    found = None if "VIRTUAL_ENV" in os.environ else shutil.which(name)
    return name if found is not None and Path(found).samefile(beside) else str(beside)
