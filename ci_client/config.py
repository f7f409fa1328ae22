"""Where the server is and with which key: flag over environment over `~/.ci/config` over default. No network."""

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ci_common.client_config import config_path, read_config
from ci_common.errors import InvalidRequest, Unauthorized

DEFAULT_SERVER = "http://localhost:8000"


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line said; None where it said nothing."""

    server: str | None = None
    api_key: str | None = None
    api_key_file: str | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """A server and the key for it, and what the person should know about them."""

    server_url: str
    api_key: str
    warnings: tuple[str, ...] = ()


def resolve(flags: Flags, environ: Mapping[str, str] = os.environ) -> Connection:
    """Return the connection in force; raises Unauthorized without a key, InvalidRequest for a server that is none."""
    path = config_path(environ)
    stored = read_config(path)
    server_url = _server_url(
        flags.server or environ.get("CI_SERVER_URL") or stored.get("server") or DEFAULT_SERVER
    )
    key = _key_of_flags(flags) or environ.get("CI_API_KEY", "").strip()
    warnings = [*_plain_http(server_url), *_on_the_command_line(flags)]
    if not key:
        key = stored.get("api_key", "")
        warnings += _readable_by_others(path) if key else []
    if not key:
        raise Unauthorized(
            f"There is no API key: give --api-key-file or --api-key, set CI_API_KEY, or put api_key=… into {path}; "
            "the operator issues one by `ci-admin key create`."
        )
    return Connection(server_url, check_key(key), tuple(warnings))


def check_key(key: str) -> str:
    """Return the key if it can travel in a header at all; the server judges the rest."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise Unauthorized(
            "The API key holds blanks or characters no key has: was it copied whole and alone?"
        )
    return key


def is_loopback(server_url: str) -> bool:
    """Tell whether the server is on this very machine."""
    host = urlsplit(server_url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    import ipaddress  # --help does without

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _server_url(text: str) -> str:
    problem = InvalidRequest(f"{text!r} is no server address: it looks like https://ci.example.org")
    try:
        parts = urlsplit(text.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError as error:
        raise problem from error
    if not usable or parts.username or parts.query or parts.fragment:
        raise problem
    return text.strip().rstrip("/")


def _key_of_flags(flags: Flags) -> str:
    if flags.api_key:
        return flags.api_key.strip()
    if not flags.api_key_file:
        return ""
    try:
        file = flags.api_key_file
        text = sys.stdin.read() if file == "-" else Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unauthorized(f"The API key file cannot be read: {error}") from error
    return text.strip() or _empty_key_file(flags.api_key_file)


def _empty_key_file(path: str) -> str:
    raise Unauthorized(f"The API key file {path} is empty.")


def _plain_http(server_url: str) -> list[str]:
    if server_url.startswith("https:") or is_loopback(server_url):
        return []
    return [
        f"{server_url} is not encrypted: the API key and the project can be read on the way; use https://"
    ]


def _on_the_command_line(flags: Flags) -> list[str]:
    if not flags.api_key:
        return []
    return ["--api-key shows the key to everyone on this machine (`ps`): use --api-key-file or CI_API_KEY"]


def _readable_by_others(path: Path) -> list[str]:
    if os.name == "nt" or not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return []
    return [f"{path} holds an API key and others can open it: chmod 600 {path}"]
